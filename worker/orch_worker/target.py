"""From `path/to/file.py:Name` or `package.module:Name` to an object with the methods of orch.Model."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from orch.errors import ConfigError
from orch.model import MAX_BATCH_SIZE, Model, Tensor, declared

log = logging.getLogger(__name__)

# As of --max-batch-wait: longer than this is a slip of the unit.
MAX_WAIT_S = 10.0


def load_target(target: str, settings: dict[str, Any]) -> Model:
    """Import the target and build the model; `settings` are its constructor's keyword arguments.

    Raises:
        ConfigError: whatever is wrong, in one line that says where. The traceback goes to the log.
    """
    place, _, name = target.rpartition(":")
    module = _import_file(place) if place.endswith(".py") or os.sep in place else _import_module(place)
    found = getattr(module, name, None)
    if found is None:
        there = ", ".join(sorted(_candidates(module))) or "no class or function"
        raise ConfigError(f"{place} has no {name!r}; it defines {there}")
    return _checked(_build(found, target, settings), target)


def _import_file(place: str) -> ModuleType:
    path = Path(place).absolute()
    if not path.is_file():
        raise ConfigError(f"no such file: {place}")
    sys.path.append(str(path.parent))
    # Under its own name, so that a model may start processes that import it; never over a module that is loaded.
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"orch_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{place} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    _run(lambda: loader.exec_module(module), place)
    return module


def _import_module(place: str) -> ModuleType:
    sys.path.append(str(Path.cwd()))
    module: ModuleType = _run(lambda: importlib.import_module(place), place)
    return module


def _run(action: Any, place: str) -> Any:
    """Run the user's module-level code; whatever it raises becomes one line."""
    try:
        return action()
    except SyntaxError as err:
        raise ConfigError(f"{err.filename or place}, line {err.lineno or '?'}: {err.msg}") from err
    except ModuleNotFoundError as err:
        if err.name and f"{place}.".startswith(f"{err.name}."):
            raise ConfigError(f"no module named {err.name!r}; for a file write path/to/file.py:Name") from err
        raise ConfigError(f"{place} imports {err.name!r}, which is not installed here") from err
    except BaseException as err:
        log.exception("importing %s failed", place)
        raise ConfigError(f"importing {place} failed: {describe(err)}") from err


def _candidates(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    ]


def _build(found: Any, target: str, settings: dict[str, Any]) -> Any:
    if inspect.isclass(found):
        try:
            return found(**settings)
        except BaseException as err:
            log.exception("building %s failed", target)
            given = ", ".join(f"{key}={value!r}" for key, value in settings.items()) or "no settings"
            raise ConfigError(f"{target} could not be built with {given}: {describe(err)}") from err
    if isinstance(found, Model):
        return found
    if not callable(found):
        raise ConfigError(f"{target} is a {type(found).__name__}; name a class with predict(), or a function of a list")
    return FunctionModel(found, settings)


class FunctionModel(Model):
    """A plain function that takes and returns a list. Attributes of the function count as the model's."""

    def __init__(self, function: Any, settings: dict[str, Any]) -> None:
        self._function, self._settings = function, settings
        _copy_facts(function, self)

    def predict(self, inputs: list[Any]) -> list[Any]:
        """Call the function."""
        outputs: list[Any] = self._function(inputs, **self._settings)
        return outputs


def _copy_facts(source: Any, model: Model) -> None:
    for name in ("max_batch_size", "max_batch_wait", "timeout", "inputs", "outputs"):
        if hasattr(source, name):
            setattr(model, name, getattr(source, name))


class Adapter(Model):
    """A model that lacks some of orch.Model's methods: predict() from its stream, or the optional ones."""

    def __init__(self, model: Any) -> None:
        self._model = model
        _copy_facts(model, self)
        for name in ("load", "warmup", "predict", "predict_stream"):
            own = getattr(type(model), name, None)
            if own is not None and own is not getattr(Model, name):
                setattr(self, name, getattr(model, name))

    def predict(self, inputs: list[Any]) -> list[Any]:
        """The parts of each stream, gathered."""
        return [list(self.predict_stream(each)) for each in inputs]


def _checked(model: Any, target: str) -> Model:
    has_predict = getattr(type(model), "predict", Model.predict) is not Model.predict
    has_stream = getattr(type(model), "predict_stream", Model.predict_stream) is not Model.predict_stream
    if not has_predict and not has_stream:
        raise ConfigError(f"{target} has no predict(self, inputs: list) -> list")
    checked = model if isinstance(model, Model) and has_predict else Adapter(model)
    if inspect.iscoroutinefunction(checked.predict) or inspect.iscoroutinefunction(getattr(model, "_function", None)):
        raise ConfigError(f"{target} is `async def`; a worker runs one batch at a time: make it a plain `def`")
    size: Any = checked.max_batch_size
    wait: Any = checked.max_batch_wait
    if type(size) is not int or not 1 <= size <= MAX_BATCH_SIZE:
        raise ConfigError(f"{target}: max_batch_size is {size!r}; it must be 1 to {MAX_BATCH_SIZE}")
    if not isinstance(wait, (int, float)) or not 0 <= wait <= MAX_WAIT_S:
        raise ConfigError(f"{target}: max_batch_wait is {wait!r}; it must be 0 to {MAX_WAIT_S:g} seconds")
    declaration(checked, target)
    return checked


class Declaration(NamedTuple):
    """What a model takes and gives for one row, and whether it answers in parts: it has a predict_stream of its own."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    streams: bool


def declaration(model: Model, target: str) -> Declaration:
    """What the model declares, checked.

    Raises:
        ConfigError: it is not a declaration; the message begins with the target.
    """
    inputs = declared(model.inputs, f"{target}: inputs")
    outputs = declared(model.outputs, f"{target}: outputs")
    return Declaration(inputs, outputs, getattr(model.predict_stream, "__func__", None) is not Model.predict_stream)


def describe(err: BaseException) -> str:
    """Type and text of an exception, in one line of bounded length."""
    try:
        text = " ".join(str(err).split())
    except Exception:  # noqa: BLE001  a model's exception may not be able to say what it is
        text = ""
    return f"{type(err).__name__}: {text}"[:1000] if text else type(err).__name__
