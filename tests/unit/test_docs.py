"""The README and docs/ say what the code does: tables, commands, options, paths and programs are compared with it."""

from __future__ import annotations

import itertools
import re
import shlex
import struct
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

import orch
from orch import payload, wire
from orch.config import OTHER_VARIABLES, SETTINGS, resolve
from orch.errors import BY_CODE, Exit
from orch.supervising import restart
from orch.supervising.replica import TRANSITIONS
from orch_cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = ("architecture", "wire", "operations", "deploy")
ARCHITECTURE, WIRE, OPERATIONS, DEPLOY = (ROOT / "docs" / f"{name}.md" for name in DOCS)
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
MAX_README_LINES = 150

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
# `orch scale`, but not `from orch import Client`; a word in capitals or an option is no command.
CALL = re.compile(r"(?<![\w./-])(?<!from )(?:\.venv/bin/)?orch ([a-z][a-z-]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*|(?<![\w-])-[a-z]\b")
OUR_PATH = re.compile(r"\b(?:orchestrator|worker|balancer|deploy|tests|examples|benchmarks|docs)/[\w./-]*")


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table whose header begins like this, row by row, without the marks of code."""
    lines = iter(page.read_text().splitlines())
    for line in lines:
        if line.startswith(heading):
            assert next(lines).startswith("|---"), f"a table below {heading!r}"
            break
    else:
        raise AssertionError(f"{page.name} has no table that begins with {heading!r}")
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return found


def fragments(page: Path) -> Iterator[str]:
    """Every piece of code of a page: the lines of its blocks, and what stands between backticks in its text."""
    text = page.read_text()
    for language, block in FENCE.findall(text):
        if language != "python":
            yield from (line.partition("  #")[0] for line in block.splitlines() if not line.startswith("orch: "))
    yield from SPAN.findall(FENCE.sub("", text))


def calls(page: Path) -> list[tuple[str, str]]:
    """Each use of a command: its name, and the rest of the fragment."""
    return [(match[1], piece[match.end() :]) for piece in fragments(page) for match in CALL.finditer(piece)]


@cache
def options_of(name: str) -> frozenset[str]:
    """The options of one command, and of the commands below it."""
    command = main.get_command(click.Context(main), name)
    assert command is not None, name
    opts = [parameter.opts + parameter.secondary_opts for each in family(command) for parameter in each.params]
    return frozenset(option for each in opts for option in each) | {"--help", "-h"}


def family(command: click.Command) -> Iterator[click.Command]:
    """A command, and those below it."""
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from family(below)


def typed(page: Path) -> Iterator[list[str]]:
    """Every call of orch behind a prompt: the words after `orch`, without what a shell makes of the rest."""
    for language, block in FENCE.findall(page.read_text()):
        lines = block.splitlines() if language == "console" else ()
        for line in (line[2:] for line in lines if line.startswith(("$ ", "# "))):
            for piece in re.split(r"&&|\|", line):
                words = shlex.split(piece, comments=True)
                words = list(itertools.dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=\S*", word) is not None, words))
                if words and Path(words[0]).name == "orch":
                    yield words[1:]


def anchor(title: str) -> str:
    """A heading as links name it."""
    return re.sub(r"[^\w -]", "", title.strip().lower()).replace(" ", "-")


# --- tables


def test_the_states_of_a_replica_are_those_of_the_code() -> None:
    """Each state with exactly the states that may follow it."""
    told = {row[0]: frozenset(filter(None, row[1].split(", "))) for row in rows(ARCHITECTURE, "| from | to |")}
    assert told == {str(state): frozenset(map(str, following)) for state, following in TRANSITIONS.items()}


def test_every_state_is_explained() -> None:
    """The list above the table has each state once, in the code's order."""
    assert re.findall(r"^- \*\*([A-Z]+)\*\*: ", ARCHITECTURE.read_text(), re.MULTILINE) == [str(s) for s in TRANSITIONS]


def test_the_exit_codes_are_those_of_the_code() -> None:
    """All of them, in order, each by its name and with a meaning."""
    told = rows(README, "| code | name | meaning |")
    assert [(int(row[0]), row[1]) for row in told] == [(int(code), code.name) for code in Exit]
    assert all(row[2] for row in told)


def test_the_header_is_laid_out_as_told() -> None:
    """Offsets and sizes follow from the format string, and the table covers all of it."""
    codes = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q"}
    offset = 0
    told = rows(WIRE, "| offset | size | type | field |")
    for row in told:
        code = codes[row[2]]
        assert (int(row[0]), int(row[1])) == (offset, struct.calcsize(f"<{code}")), row
        offset += struct.calcsize(f"<{code}")
    assert "<" + "".join(codes[row[2]] for row in told) == wire.HEADER.format
    assert offset == wire.HEADER.size


def test_kinds_and_flags_are_those_of_the_code() -> None:
    """Every number with its name, none missing."""
    assert {(int(row[0]), row[1]) for row in rows(WIRE, "| kind | name |")} == {
        (int(kind), kind.name) for kind in wire.Kind
    }
    flags = {name: value for name, value in vars(wire.Flag).items() if name.isupper()}
    assert {row[1]: int(row[0]) for row in rows(WIRE, "| bit | name |")} == flags


def test_the_extensions_of_a_payload_are_those_of_the_code() -> None:
    """Every code under the name of its constant."""
    told = {int(row[0]): row[1] for row in rows(WIRE, "| code | name | inside |")}
    assert len(told) == payload.TREE
    assert {name: vars(payload)[name] for name in told.values()} == {name: code for code, name in told.items()}


def test_the_fields_of_the_bodies_are_those_of_the_code() -> None:
    """What orch itself says: each field by its name, in order."""
    fields = {
        "HELLO": wire.HELLO_FIELDS, "WELCOME": wire.WELCOME_FIELDS, "READY": wire.READY_FIELDS,
        "ERROR": wire.ERROR_FIELDS,
    }  # fmt: skip
    told = {row[0]: re.findall(r"(?:^|; )(\w+):", row[1]) for row in rows(WIRE, "| kind | fields |")}
    assert told == {kind: list(names) for kind, names in fields.items()}
    sent = BY_CODE.keys() - {"closed"}  # raised by the client alone
    assert sent <= set(SPAN.findall(WIRE.read_text()))


def test_the_limits_are_those_of_the_code() -> None:
    """Numbers of the wire and of restarting, where the pages state them."""
    text = WIRE.read_text()
    assert f"{wire.MAX_RECORDS} records or {wire.MAX_FRAMES} large frames" in text
    assert f"within {wire.MAX_INLINE_BYTES // 1024} KiB" in text
    assert f"{wire.FRAME_BYTES // 1024} KiB or more into a frame" in text
    assert f"at most {wire.STREAM_CREDIT} PARTs ahead" in text
    text = OPERATIONS.read_text()
    assert f"READY for {restart.HEALTHY_S:g} s" in text
    assert f"waits {restart.BASE_S:g} s, then 1, 2, 4, ... up to {restart.CAP_S:g} s" in text
    assert f"| {restart.MAX_FLAPS} such deaths in a row |" in text
    assert f"tried at least every {restart.LAST_CAP_S:g} s" in text


# --- commands, options, settings, paths


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_named_exists(page: Path) -> None:
    """Nobody is told to run what is not there."""
    assert {name for name, _ in calls(page)} <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_named_exists(page: Path) -> None:
    """An option beside a command is that command's; one that stands alone is some command's."""
    anywhere = frozenset[str]().union(*map(options_of, COMMANDS))
    slips = [(name, set(OPTION.findall(rest)) - options_of(name)) for name, rest in calls(page) if name in COMMANDS]
    slips += [("orch", set(OPTION.findall(piece)) - anywhere) for piece in fragments(page) if piece.startswith("-")]
    assert [slip for slip in slips if slip[1]] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_typed_can_be_read(page: Path) -> None:
    """By click, to its last word: the command is there, as are its options, and none is missing."""
    for words in typed(page):
        command: click.Command = main
        rest = words
        while isinstance(command, click.Group):
            assert rest, words
            below = command.get_command(click.Context(command), rest[0])
            assert below is not None, words
            command, rest = below, rest[1:]
        command.make_context(str(command.name), list(rest))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_group_exists(page: Path) -> None:
    """`orch deploy` and `orch keys` have others below them, and the pages name no other."""
    text = "\n".join(fragments(page))
    for name in ("deploy", "keys"):
        group = main.get_command(click.Context(main), name)
        assert isinstance(group, click.Group)
        named = set(re.findall(rf"(?<![\w/.-])orch {name} +([a-z]+)", text))
        assert named <= set(group.list_commands(click.Context(group)))


def test_every_command_is_named_somewhere() -> None:
    """The pages leave no command out."""
    assert {name for page in PAGES for name, _ in calls(page)} >= set(COMMANDS)


def test_every_setting_of_the_example_and_every_variable_exists() -> None:
    """The file that people copy is accepted, and no variable is invented."""
    blocks = dict(FENCE.findall(OPERATIONS.read_text()))
    example: dict[str, Any] = tomllib.loads(blocks["toml"])
    assert resolve(file=example).config.to_json()["name"] == example["name"]
    known = OTHER_VARIABLES | {setting.variable for setting in SETTINGS.values()}
    for page in (README, ARCHITECTURE, OPERATIONS, DEPLOY):
        assert set(re.findall(r"\bORCH_[A-Z_]*[A-Z]\b", page.read_text())) <= known, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_and_link_leads_somewhere(page: Path) -> None:
    """A file that was moved takes its mention with it."""
    text = page.read_text()
    for path in OUR_PATH.findall(text):
        assert (ROOT / path.rstrip(".")).exists(), path
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, fragment = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert not fragment or fragment in map(anchor, headings), link


# --- the README's programs


def test_the_readme_is_short() -> None:
    """One sitting."""
    assert len(README.read_text().splitlines()) <= MAX_README_LINES


def test_the_readmes_model_and_client_work_as_printed(tmp_path: Path) -> None:
    """The model does what the client's output shows; the client uses names that orch has."""
    model, client = (block for language, block in FENCE.findall(README.read_text()) if language == "python")
    names: dict[str, Any] = {}
    exec(compile(model, str(tmp_path / "shout.py"), "exec"), names)
    shout = names["Shout"]()
    shout.load("cpu")
    assert shout.predict(["hello"]) == ["HELLO!"]
    compile(client, "hello.py", "exec")
    imported = re.findall(r"^from orch import (.*)$", client, re.MULTILINE)
    assert all(hasattr(orch, name.strip()) for line in imported for name in line.split(","))
    assert all(hasattr(orch.errors, name) for name in re.findall(r"errors\.(\w+)", client))
