"""`orch tune` on the command line: wrong input, and what needs no instance. The rest is in tests/process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orch.config import resolve
from orch.errors import ConfigError, Exit
from orch.tuning.facts import facts_of
from orch.tuning.grid import Cell, Outcome, Row
from orch.tuning.results import Results
from orch_cli import main, tune, tune_view, up


@pytest.fixture
def place(place: Path) -> Path:
    """With a model in it."""
    (place / "m.py").write_text("")
    return place


def run(*words: str) -> Result:
    """`orch tune` in this process."""
    return CliRunner().invoke(main.main, ["tune", *words], prog_name="orch")


def refusal(result: Result) -> str:
    """The one line that it is."""
    assert result.exit_code == Exit.BAD_CONFIG
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("orch: ").rstrip("\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no target given"),
        (["n.py:M"], "target = n.py:M (from TARGET): there is no file n.py"),
        (["m.py:M", "--replicas=0"], "replicas = 0 (from --replicas): 0 is not a whole number from"),
        (["m.py:M", "--max-batch-size=8,2000"], "max_batch_size = 8,2000 (from --max-batch-size): 2000 is not a"),
        (["m.py:M", "--mps=maybe"], "mps = maybe (from --mps): use auto, on or off"),
        (["m.py:M", "--mps=on", "--device=cpu"], "mps = on (from --mps): the replicas run on no GPU; use --mps off"),
        (["m.py:M", "--seconds=0"], "seconds = 0 (from --seconds): use seconds from 0.1 to 600, such as 2, 7m or 50ms"),
        (["m.py:M", "--time-limit=soon"], "time_limit = soon (from --time-limit): not a number; use seconds from 1 to"),
        (["m.py:M", "--max-latency=-1"], "max_latency = -1 (from --max-latency): use seconds from 0.0001 to"),
        (["m.py:M", "--out=no/where/x.json"], "out = no/where/x.json (from --out): there is no directory no/where"),
        (["m.py:M", "--out=nowhere/"], "out = nowhere/ (from --out): there is no directory nowhere; make it first"),
        (["m.py:M", "--min-gain=2"], "min_gain = 2 (from --min-gain): use a number above 0, at most 1"),
        (["m.py:M", "--device=cpu", "--out=m.py"], "m.py is no result file of orch tune; it is left as"),
        (["m.py:M", "--device=cpu", "--out=m.py", "--fresh"], "m.py is no result file of orch tune; it is left as"),
        (["m.py:M", "--out=y.html"], "out = y.html (from --out): that is the report; name the result file"),
        (["m.py:M", "--replicas=a,b"], "replicas = a,b (from --replicas): a is not a whole number from 1 to 4096; use"),
    ],
)
def test_wrong_input_is_one_line(place: Path, words: list[str], said: str) -> None:
    """It names the value, where it came from, and what is allowed; nothing was started or written."""
    assert refusal(run(*words)).startswith(said)
    assert [each.name for each in place.iterdir()] == ["m.py"]
    assert (place / "m.py").read_text() == ""


def test_results_of_something_else_are_refused(place: Path) -> None:
    """The line names what differs."""
    results = Results.open(place / "orch-tune-m-M.json", {"target": "other.py:M"}, fresh=True)
    results.add(Row(Cell(1, 4, mps=False), Outcome.MEASURED, answers_per_s=1.0))
    said = refusal(run("m.py:M", "--device=cpu"))
    assert "orch-tune-m-M.json was measured for something else: target is other.py:M there and m.py:M now" in said


@pytest.mark.parametrize(("source", "text"), [("ORCH_REPLICAS", "1,2"), ("orch.toml", "a")])
def test_a_list_elsewhere_is_told_where_lists_go(
    place: Path, monkeypatch: pytest.MonkeyPatch, source: str, text: str
) -> None:
    """`best` is no way out here."""
    if source == "orch.toml":
        (place / source).write_text(f'replicas = "{text}"')
    else:
        monkeypatch.setenv(source, text)
    said = refusal(run("m.py:M"))
    assert said.startswith(f"replicas = {text} (from {source}): a list is taken from the command line alone")
    assert "best" not in said


def known(place: Path) -> list[str]:
    """A result file in which everything is known; the words that ask for it."""
    config = resolve({"target": "m.py:M", "device": "cpu"}).config
    results = Results.open(place / "orch-tune-m-M.json", facts_of(config, 2.0), fresh=True)
    for replicas, rate in ((1, 100.0), (2, 190.0)):
        cell = Cell(replicas, 4, mps=False)
        results.add(Row(cell, Outcome.MEASURED, answers_per_s=rate, p99_s=0.05 * replicas, alone_s=0.01))
    return ["m.py:M", "--device=cpu", "--replicas=1,2", "--max-batch-size=4"]


def test_what_is_known_is_told_at_once(place: Path) -> None:
    """Settings on standard output, the rest as comments; the report is written anew."""
    result = run(*known(place))
    assert result.exit_code == 0
    settings = '\ntarget = "m.py:M"\nreplicas = 2\nmax_batch_size = 4\n'
    assert f"{settings}# results: orch-tune-m-M.json\n" in result.stdout
    assert "nothing left to measure; 2 configurations known from before" in result.stderr
    assert "2 replicas, batches of 4" in (place / "orch-tune-m-M.html").read_text()


def test_what_was_not_asked_for_this_time_is_never_chosen(place: Path) -> None:
    """It stays in the file and in the report, marked."""
    words = known(place)
    result = run(*words, "--replicas=1", "--json")
    answer = json.loads(result.stdout)
    assert answer["best"]["replicas"] == 1
    assert [row["replicas"] for row in answer["rows"]] == [1]
    assert [row["replicas"] for row in answer["other_rows"]] == [2]
    assert "1 configuration known from before" in result.stderr
    assert "not asked for this time" in (place / "orch-tune-m-M.html").read_text()
    assert json.loads(run(*words, "--json").stdout)["best"]["replicas"] == 2


def test_another_window_goes_on_with_the_same_rows(place: Path) -> None:
    """It changes how sure a figure is, not what it is of."""
    assert "nothing left to measure; 2 configurations" in run(*known(place), "--seconds=5").stderr


def test_a_report_of_somebody_else_is_refused(place: Path) -> None:
    """Also with --fresh."""
    (place / "orch-tune-m-M.html").write_text("<title>mine</title>")
    said = refusal(run("m.py:M", "--device=cpu", "--fresh"))
    assert said.startswith("orch-tune-m-M.html, where the report would be, is no report of orch tune")
    assert (place / "orch-tune-m-M.html").read_text() == "<title>mine</title>"


def test_a_target_of_the_file_is_not_printed_again(place: Path) -> None:
    """TOML takes no key twice."""
    words = known(place)
    (place / "orch.toml").write_text('target = "m.py:M"')
    assert "target =" not in run(*words[1:]).stdout


def test_a_latency_limit_chooses_among_what_is_known(place: Path) -> None:
    """Without measuring anything again."""
    result = run(*known(place), "--max-latency=60ms", "--json")
    answer = json.loads(result.stdout)
    assert answer["best"]["replicas"] == 1
    assert answer["orch.toml"] == 'target = "m.py:M"\nreplicas = 1\nmax_batch_size = 4\n'
    assert answer["left"] == 0


def test_a_bad_orch_toml_is_told(place: Path) -> None:
    """It would be in the way of every instance."""
    (place / "orch.toml").write_text("replica = 3")
    assert "unknown key replica; did you mean replicas?" in refusal(run("m.py:M"))


def test_instances_get_the_options_that_tune_got(place: Path) -> None:
    """Each of them is one of `orch up`; the name, and what is tried out, tune says itself."""
    options = {"load_timeout_s": "9", "set": ("a=1", "b=2"), "env": (), "device": None, "target": "m.py:M"}
    words = tune.command_words(options, "my.toml")
    assert words[:4] == ["--config=my.toml", "--load-timeout=9", "--set=a=1", "--set=b=2"]
    known_options = {option for parameter in up.up.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words} <= known_options


@pytest.mark.parametrize(
    ("out", "found"),
    [
        (None, "orch-tune-m-M.json"), (".", "orch-tune-m-M.json"), ("d", "d/orch-tune-m-M.json"), ("d/y", "d/y"),
        ("y.json", "y.json"), ("y.txt", "y.txt"),
    ],
)  # fmt: skip
def test_the_result_file_is_where_it_is_asked_for(place: Path, out: str | None, found: str) -> None:
    """A directory, or exactly that path."""
    (place / "d").mkdir()
    assert tune.result_file(out, "/somewhere/m.py:M") == Path(found)
    assert tune.result_file(None, "a.b:M") == Path("orch-tune-a.b-M.json")


def test_a_missing_directory_is_not_made(place: Path) -> None:
    """It is a slip more often than a wish."""
    with pytest.raises(ConfigError, match="make it first"):
        tune.result_file("nowhere/x.json", "m.py:M")


def test_lines_say_what_became_of_each_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    """One for each, with how many there are in all."""
    measured = Row(Cell(1, 8, mps=True), Outcome.MEASURED, answers_per_s=100.0, p99_s=0.05, alone_s=0.01)
    with tune_view.Lines([], 3, has_gpu=True) as lines:
        lines.measured(measured, 2)
        lines.measured(Row(Cell(2, 8, mps=True), Outcome.DOES_NOT_FIT, "2 do not fit: the sum"), 0)
    assert capsys.readouterr().err.splitlines() == [
        "orch: about 3 configurations to measure",
        "orch: 1/3 1 replica, batches of 8, MPS on: 100 answers/s, p99 50.0 ms, alone 10.0 ms",
        "orch: 2/2 2 replicas, batches of 8, MPS on: does not fit: 2 do not fit",
    ]
