"""From what the user names to a model, or to one clear line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orch.errors import ConfigError
from orch.model import Model, Tensor
from orch_worker.target import declaration, describe, load_target


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    """Forget what was imported, and from where."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """The directory in which the command is typed."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


class Project:
    """A user's files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def load(self, source: str | bytes, target: str = "user_model.py:It", **settings: Any) -> Model:
        """The model in a file with this source."""
        place, _, name = target.rpartition(":")
        path = self.root / place
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
        return load_target(f"{path}:{name}", settings)

    def complaint(self, source: str | bytes, target: str = "user_model.py:It", **settings: Any) -> str:
        """The one line in place of a model."""
        with pytest.raises(ConfigError) as caught:
            self.load(source, target, **settings)
        message = str(caught.value)
        assert "\n" not in message
        return message


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty directory."""
    return Project(tmp_path)


# --- what works ----------------------------------------------------------------------------------------------------


def test_a_class_with_predict_is_a_model(project: Project) -> None:
    """With orch.Model as its parent it is used as it is."""
    model = project.load("""
import orch
class It(orch.Model):
    max_batch_size = 4
    def predict(self, inputs): return inputs
""")
    assert type(model).__name__ == "It"
    assert (model.max_batch_size, model.predict([1, 2])) == (4, [1, 2])


def test_a_class_of_any_parent_is_a_model_if_it_has_predict(project: Project) -> None:
    """Its limits count, on the class or on the object; what it lacks is orch.Model's."""
    model = project.load("""
class It:
    max_batch_wait = 0.5
    def __init__(self): self.max_batch_size = 16
    def load(self, device): self.device = device
    def predict(self, inputs): return [self.device] * len(inputs)
""")
    model.load("cpu")
    assert (model.max_batch_size, model.max_batch_wait) == (16, 0.5)
    assert model.warmup() is None
    assert model.predict([1]) == ["cpu"]
    assert list(model.predict_stream(1)) == ["cpu"]


def test_a_function_of_a_list_is_a_model(project: Project) -> None:
    """Its attributes are the model's, and settings are its keyword arguments."""
    model = project.load(
        """
def It(inputs, factor=1): return [factor * each for each in inputs]
It.max_batch_size = 32
""",
        factor=3,
    )
    assert model.max_batch_size == 32
    assert model.max_batch_wait == Model.max_batch_wait
    assert model.predict([1, 2]) == [3, 6]


@pytest.mark.parametrize("parent", ["object", "orch.Model"])
def test_a_model_that_only_streams_can_also_predict(project: Project, parent: str) -> None:
    """A request gets the parts gathered."""
    model = project.load(f"""
import orch
class It({parent}):
    max_batch_size = 2
    def predict_stream(self, input):
        yield input
        yield input + 1
""")
    assert list(model.predict_stream(1)) == [1, 2]
    assert model.predict([1, 5]) == [[1, 2], [5, 6]]
    assert model.max_batch_size == 2


def test_an_object_that_is_a_model_already_is_used(project: Project) -> None:
    """A module may build its own."""
    model = project.load("""
import orch
class Kind(orch.Model):
    def predict(self, inputs): return inputs
It = Kind()
""")
    assert model.predict([1]) == [1]


def test_settings_go_to_the_constructor(project: Project) -> None:
    """As keyword arguments."""
    model = project.load(
        """
class It:
    def __init__(self, size, name="x"): self.max_batch_size, self.name = size, name
    def predict(self, inputs): return [self.name]
""",
        size=7,
        name="y",
    )
    assert (model.max_batch_size, model.predict([0])) == (7, ["y"])


def test_a_file_may_import_its_neighbours(project: Project) -> None:
    """Its directory is searched, last, so that it shadows nothing."""
    (project.root / "user_helper.py").write_text("answer = 42")
    (project.root / "json.py").write_text("raise RuntimeError('not this one')")
    model = project.load("import json, user_helper\ndef It(inputs): return [user_helper.answer]")
    assert model.predict([0]) == [42]


@pytest.mark.parametrize("name", ["json.py", "my-model.py", "torch.py", "1.py"])
def test_a_file_may_have_any_name(project: Project, name: str) -> None:
    """Also that of a module that is there already: it replaces none."""
    import json

    assert project.load("def It(inputs): return inputs", f"{name}:It").predict([1]) == [1]
    assert sys.modules["json"] is json


def test_a_module_is_found_from_the_current_directory(here: Path) -> None:
    """package.module:Name, with dots."""
    (here / "user_package").mkdir()
    (here / "user_package" / "inside.py").write_text("def It(inputs): return ['inside']")
    assert load_target("user_package.inside:It", {}).predict([0]) == ["inside"]


# --- what does not -------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """As it was typed."""
    with pytest.raises(ConfigError, match=r"no such file: no/such/model\.py"):
        load_target("no/such/model.py:It", {})
    with pytest.raises(ConfigError, match="no such file"):
        load_target(f"{tmp_path}:It", {})


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    """It would have to be guessed how to read it."""
    (tmp_path / "weights.bin").write_bytes(b"\0")
    with pytest.raises(ConfigError, match="is not a Python file"):
        load_target(f"{tmp_path}/weights.bin:It", {})


def test_a_syntax_error_is_shown_with_its_file_and_line(project: Project) -> None:
    """The first thing that goes wrong with a new file."""
    message = project.complaint("import os\n\ndef It(inputs:\n    return inputs\n")
    assert "user_model.py, line 3: '(' was never closed" in message
    assert "line 2: unexpected indent" in project.complaint("x = 1\n  y = 2\n")


def test_bytes_that_are_no_source_are_refused_with_the_file(project: Project) -> None:
    """A binary with the wrong ending, or an old encoding."""
    assert "user_model.py" in project.complaint(b"x = 1\0")
    assert "user_model.py" in project.complaint(b"x = '\xff'")


def test_a_missing_name_is_answered_with_what_is_there(project: Project) -> None:
    """What was imported, or is private, is no candidate."""
    source = (
        "import os\nfrom pathlib import Path\nclass Embedder: pass\ndef rank(x): return x\n_hidden = print\nN = 3\n"
    )
    assert project.complaint(source, "user_model.py:Embeder").endswith("has no 'Embeder'; it defines Embedder, rank")
    assert project.complaint("N = 3", "other.py:It").endswith("it defines no class or function")


def test_a_missing_module_is_told_from_a_missing_requirement(here: Path) -> None:
    """One is a slip in the target; the other is to be installed."""
    with pytest.raises(ConfigError, match=r"no module named 'no_such_package'; for a file write"):
        load_target("no_such_package.models:It", {})
    (here / "user_package").mkdir()
    with pytest.raises(ConfigError, match=r"no module named 'user_package.sub'"):
        load_target("user_package.sub.deep:It", {})
    (here / "user_needy.py").write_text("import no_such_requirement")
    with pytest.raises(ConfigError, match="user_needy imports 'no_such_requirement', which is not installed"):
        load_target("user_needy:It", {})


def test_a_requirement_that_is_missing_is_named_for_a_file_too(project: Project) -> None:
    """With the file that needs it."""
    assert "user_model.py imports 'no_such_requirement', which is not installed here" in project.complaint(
        "from no_such_requirement.sub import thing"
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("from os import no_such_thing", "ImportError: cannot import name 'no_such_thing'"),
    ],
)
def test_whatever_an_import_raises_becomes_one_line(project: Project, source: str, reason: str) -> None:
    """Also an exit: it is not the worker's."""
    message = project.complaint(source)
    assert "user_model.py failed: " in message
    assert reason in message


def test_a_constructor_that_refuses_a_setting_is_quoted(project: Project) -> None:
    """With what it was given."""
    source = "class It:\n    def __init__(self, size=1): pass\n    def predict(self, inputs): return inputs\n"
    message = project.complaint(source, colour="red")
    assert "could not be built with colour='red': TypeError" in message
    assert "unexpected keyword argument 'colour'" in message
    message = project.complaint("class It:\n    def __init__(self): raise OSError('no weights')\n", "other.py:It")
    assert message.endswith("could not be built with no settings: OSError: no weights")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("class It: pass", "has no predict(self, inputs: list) -> list"),
        ("import orch\nclass It(orch.Model): pass", "has no predict(self, inputs: list) -> list"),
        ("It = 5", "is a int; name a class with predict(), or a function of a list"),
        ("import os as It", "is a module; name a class"),
    ],
)
def test_what_is_no_model_is_refused_with_what_would_be_one(project: Project, source: str, reason: str) -> None:
    """Before anything is loaded."""
    assert reason in project.complaint(source)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("max_batch_size = 0", "max_batch_size is 0; it must be 1 to 1024"),
        ("max_batch_size = 1025", "max_batch_size is 1025"),
        ("max_batch_size = 8.0", "max_batch_size is 8.0"),
        ("max_batch_size = True", "max_batch_size is True"),
        ("max_batch_wait = -1", "max_batch_wait is -1; it must be 0 to 10 seconds"),
        ("max_batch_wait = 100", "max_batch_wait is 100"),
        ("max_batch_wait = float('nan')", "max_batch_wait is nan"),
        ("max_batch_wait = '1'", "max_batch_wait is '1'"),
        (
            "inputs = [('x', 'float32', ())]",
            "user_model.py:It: inputs[0]: datatype is 'float32'; it must be one of BOOL",
        ),
        ("outputs = 'x'", "outputs is 'x'; it must be a tuple of orch.Tensor(name, datatype, shape)"),
    ],
)
def test_limits_that_cannot_work_are_refused(project: Project, line: str, reason: str) -> None:
    """With what is allowed."""
    assert reason in project.complaint(f"class It:\n    {line}\n    def predict(self, inputs): return inputs\n")


@pytest.mark.parametrize(
    ("source", "streams"),
    [
        (
            "import orch\nclass It(orch.Model):\n    inputs = [('x', 'FP32', [2])]\n    def predict(self, x): return x",
            False,
        ),
        ("class It:\n    inputs = [('x', 'FP32', (2,))]\n    def predict_stream(self, x): yield x", True),
        ("def It(x): return x\nIt.inputs = [('x', 'FP32', (2,))]", False),
    ],
)
def test_a_model_of_any_kind_may_declare_its_tensors(project: Project, source: str, streams: bool) -> None:
    """A class, orch's or not, or a function; whether it answers in parts is seen from its methods."""
    found = declaration(project.load(source), "It")
    assert tuple(found) == ((Tensor("x", "FP32", (2,)),), (), streams)
    assert json.loads(json.dumps(found._asdict())) == {
        "inputs": [["x", "FP32", [2]]],
        "outputs": [],
        "streams": streams,
    }


def test_an_exception_is_described_in_one_line_of_bounded_length() -> None:
    """Whatever its text is."""
    assert describe(ValueError("a\n b\tc")) == "ValueError: a b c"
    assert describe(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(describe(ValueError("x" * 10_000))) == 1000
