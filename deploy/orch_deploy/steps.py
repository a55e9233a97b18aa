"""What is to be done so that a host has the files of an instance, or has them no more. Pure.

The rule for every file: what stands there is replaced or removed only if it is what we wrote. What somebody has changed
stays, and what we would have written goes beside it, as FILE.new.
"""

from __future__ import annotations

import difflib
import enum
import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from orch.errors import ConfigError

BESIDE: Final = ".new"
FORMAT: Final = 1
LIVE: Final = "live"  # in a digest's place: the file changes, and is ours all the same


@dataclass(frozen=True, slots=True)
class File:
    """A file to be there. path: absolute, on the host. group: the owner is root.

    seed: once it is there, it is the user's. live: once it is there, another program of ours keeps it. has_env: it is a
    settings file, whose variables may be secret.
    """

    path: str
    text: str
    why: str
    mode: int = 0o644
    group: str = "root"
    seed: bool = False
    live: bool = False
    has_env: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was made for one instance: digests of files by path, units that were enabled, and by which version.

    A file that is about to be changed has two digests, with a bar between: whatever happens, it is known for ours.
    choices: the options that it was made with, by name, so that the next time needs none of them. complete: all steps
    that made it so were carried out.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    enabled: tuple[str, ...] = ()
    made_user: bool = False
    choices: Mapping[str, str | bool] = field(default_factory=dict)
    version: str = ""
    complete: bool = True

    @property
    def proxy(self) -> str:
        """What stands in front of it."""
        return str(self.choices.get("proxy", "none"))

    def dump(self) -> str:
        """As a file."""
        facts = {
            "format": FORMAT,
            "version": self.version,
            "complete": self.complete,
            "made_user": self.made_user,
            "choices": dict(self.choices),
            "enabled": list(self.enabled),
            "files": dict(self.files),
        }
        return json.dumps(facts, indent=2) + "\n"


def load(text: str, path: str) -> Manifest:
    """A manifest from its file.

    Raises:
        ConfigError: it is none, or of a later version of orch.
    """
    try:
        facts: dict[str, Any] = json.loads(text)
        if facts["format"] != FORMAT:
            raise ConfigError(f"{path} was written by another version of orch ({facts.get('version')}): use that one")
        files = {str(name): str(digest) for name, digest in facts["files"].items()}
        enabled, choices = tuple(map(str, facts["enabled"])), dict(facts["choices"])
        made_user, complete = bool(facts["made_user"]), bool(facts["complete"])
        return Manifest(files, enabled, made_user, choices, str(facts["version"]), complete)
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise ConfigError(f"{path} is no list of what was installed ({type(err).__name__}); see what is in it") from err


class Do(enum.Enum):
    """Kinds of steps."""

    WRITE = "write"
    REMOVE = "remove"
    KEEP = "keep"  # nothing is done, which is worth a line
    EMPTY = "empty"  # a directory is removed if nothing is in it
    CLEAR = "clear"  # a directory is removed with all that is in it
    RUN = "run"


@dataclass(frozen=True, slots=True)
class Step:
    """One deed. path: of a file; text, mode, group: to be written; was: what is there. command: to be run.

    may_fail: what it does may be done already, or have nothing to do. ours: of no interest to whoever reads a file.
    has_env: as of `File`.
    """

    do: Do
    why: str
    path: str = ""
    text: str = ""
    was: str | None = None
    mode: int = 0o644
    group: str = "root"
    command: tuple[str, ...] = ()
    may_fail: bool = False
    ours: bool = False
    has_env: bool = False


Found = Callable[[str], str | None]  # the text of a file on the host; None: there is none


def digest(text: str) -> str:
    """By which a file is known again."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def is_ours(text: str, known: str | None) -> bool:
    """Whether a file's text is what was written, by what the manifest says of it."""
    return known is not None and (known == LIVE or digest(text) in known.split("|"))


def writes(files: Iterable[File], before: Manifest, found: Found) -> tuple[list[Step], dict[str, str]]:
    """The steps for these files, and what the manifest is to say of them afterwards."""
    steps: list[Step] = []
    recorded: dict[str, str] = {}
    for file in files:
        was, known = found(file.path), before.files.get(file.path)
        if file.live and (was is None or known is not None):
            if was is None:
                steps.append(_write(file, file.path, file.why, was))
            recorded[file.path] = LIVE
        elif was is None or (is_ours(was, known) and was != file.text and not file.seed):
            steps.append(_write(file, file.path, file.why, was))
            recorded[file.path] = digest(file.text)
        elif was == file.text:
            recorded[file.path] = digest(file.text)
        elif file.seed:
            if known is not None:
                recorded[file.path] = known
        else:
            beside = file.path + BESIDE
            text = f"{file.path} is not as orch wrote it: it stays, and what orch would write is {beside}"
            if known is None:
                text = f"{file.path} is there, and not from orch: it stays, and what orch would write is {beside}"
            steps.append(Step(Do.KEEP, text, file.path))
            if found(beside) != file.text:
                steps.append(_write(file, beside, "to be compared, and merged by you", found(beside)))
            recorded[beside] = digest(file.text)
            if known is not None:
                recorded[file.path] = known
    return steps, recorded


def removals(manifest: Manifest, shared: Iterable[str], found: Found, *, purge: bool) -> list[Step]:
    """The steps that take away what was made. shared: what another instance needs, too. purge: changed files, too."""
    others = set(shared)
    steps = []
    for path, known in manifest.files.items():
        was = found(path)
        if was is None:
            continue
        if path in others:
            steps.append(Step(Do.KEEP, f"{path} stays: another instance needs it", path))
        elif is_ours(was, known) or purge:
            why = "" if is_ours(was, known) else "changed since it was written"
            steps.append(Step(Do.REMOVE, why, path, was=was))
        else:
            steps.append(Step(Do.KEEP, f"{path} was changed since it was written: it stays (--purge removes it)", path))
    return steps


def told(step: Step, *, whole: bool = False) -> list[str]:
    """A step for people. whole: with a file's text, or how it changes."""
    match step.do:
        case Do.RUN:
            return [f"run     {shlex.join(step.command)}" + (f"   ({step.why})" if step.why else "")]
        case Do.KEEP:
            return [f"keep    {step.why}"]
        case Do.REMOVE:
            return [f"remove  {step.path}" + (f"   ({step.why})" if step.why else "")]
        case Do.EMPTY:
            return [f"remove  {step.path}/   (if it is empty)"]
        case Do.CLEAR:
            return [f"remove  {step.path}/   ({step.why})"]
        case Do.WRITE:
            verb = "write " if step.was is None else "change"
            lines = [f"{verb}  {step.path}   ({step.why}; mode {step.mode:04o}, root:{step.group})"]
            if whole and not step.ours:
                lines += [f"        | {line}" for line in _shown(step)]
            return lines


def without_values(text: str) -> str:
    """A settings file as anybody may see it: without the values of the variables that it sets, which may be secret."""
    lines, is_env = [], False
    for line in text.splitlines():
        if re.match(r"\s*\[", line):
            is_env = re.match(r"\s*\[\s*env\s*\]", line) is not None
        elif is_env or re.match(r"\s*env\b", line):
            name, equals, _ = line.partition("=")
            lines.append(f"{name}= ..." if equals else "..." * bool(line.strip()))
            continue
        lines.append(line)
    return "\n".join(lines)


def _shown(step: Step) -> list[str]:
    before, after = step.was, step.text
    if step.has_env:
        before, after = before and without_values(before), without_values(after)
    if before is None:
        return after.splitlines()
    changes = list(difflib.unified_diff(before.splitlines(), after.splitlines(), "is", "will be", lineterm=""))
    return changes or ["values of variables, which are not shown"]


def _write(file: File, path: str, why: str, was: str | None) -> Step:
    return Step(Do.WRITE, why, path, file.text, was, file.mode, file.group, has_env=file.has_env)
