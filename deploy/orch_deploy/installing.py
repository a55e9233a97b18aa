"""Installing an instance on a host, bringing it up to date, and taking it away: which steps, in which order. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from orch_deploy import layout, steps, systemd
from orch_deploy.layout import Wanted
from orch_deploy.steps import BESIDE, Do, Found, Manifest, Step

USER: Final = "orch"
AS_WRITTEN: Final = "as that file says"
NGINX: Final = "/etc/nginx/"
PROXY_CHECKS: Final = {"nginx": ("nginx", "-t"), "haproxy": ("haproxy", "-c", "-f")}


@dataclass(frozen=True, slots=True)
class Host:
    """What is known of a host. found: texts of its files. root: "" for this one, running, else a folder that is none.

    active: units that run. directories: those of ours that exist. others: what was installed for other instances.
    """

    found: Found
    has_user: bool
    active: frozenset[str] = frozenset()
    directories: frozenset[str] = frozenset()
    others: Mapping[str, Manifest] = dataclasses.field(default_factory=dict)
    root: str = ""

    @property
    def runs(self) -> bool:
        """Whether there is a service manager to talk to."""
        return not self.root

    def command(self, *words: str) -> tuple[str, ...]:
        """One of systemd's programs, for this host."""
        return (words[0], f"--root={self.root}", *words[1:]) if self.root else words


def install(wanted: Wanted, before: Manifest | None, host: Host, version: str, *, again: bool = False) -> list[Step]:
    """The steps until the instance is there and runs; none, where it does already. again: an upgrade.

    The list of what is made goes first, so that it is known for ours should a later step fail, and last once more.
    Until then it is incomplete, and the next time every command runs again.
    """
    before = before or Manifest()
    writes, recorded = steps.writes(layout.files(wanted), _known(before, host), host.found)
    made_user = not host.has_user or any(each.made_user for each in (before, *host.others.values()))
    path = layout.manifest_path(wanted.name)
    listed = host.found(path)
    units = layout.enabled_units(wanted)
    gone = dataclasses.replace(before, files={path: was for path, was in before.files.items() if path not in recorded})
    rest = [
        *_other_lists(wanted, writes, host),
        *_disable([unit for unit in before.enabled if unit not in units], host, "not wanted any more"),
        *steps.removals(gone, _shared(host), host.found, purge=False),
        *_with_commands(writes, host, again=not before.complete),
    ]
    written = {step.path for step in rest if step.do in (Do.WRITE, Do.REMOVE)}
    removed = {step.path for step in rest if step.do is Do.REMOVE}
    if not before.complete:
        written |= recorded.keys()
    done = []
    if written:
        first = _begun(before, {step.path: recorded[step.path] for step in writes if step.do is Do.WRITE})
        enabled = tuple(dict.fromkeys((*before.enabled, *units)))
        first = dataclasses.replace(first, enabled=enabled, made_user=made_user, choices=wanted.choices)
        if listed != first.dump():
            why = "the list of what orch makes here, for uninstall"
            done.append(Step(Do.WRITE, why, path, first.dump(), listed, ours=True))
            listed = first.dump()
    done += rest
    if wanted.http_proxy != "none" and layout.proxy_path(wanted.name, wanted.http_proxy) in written and host.runs:
        done += _proxy(wanted)
    elif any(path.startswith(NGINX) for path in removed) and host.runs:
        done.append(_forget_nginx())
    if any(path.startswith(layout.UNITS) for path in written) and host.runs:
        done.append(_run("systemctl", "daemon-reload", why="systemd reads the units"))
    if missing := [unit for unit in units if unit not in before.enabled or not before.complete]:
        done.append(Step(Do.RUN, "start with the host", command=host.command("systemctl", "enable", *missing)))
    if host.runs:
        done += _start(wanted.name, units, written, before, host, version, again=again)
    manifest = Manifest(recorded, units, made_user, wanted.choices, version)
    if listed != manifest.dump():
        done.append(Step(Do.WRITE, "the list of what orch has made here", path, manifest.dump(), listed, ours=True))
    return done


def _begun(before: Manifest, made: Mapping[str, str]) -> Manifest:
    """The list while its files are written: each may still be as it was, or be as it will be."""
    either = {path: f"{before.files[path]}|{new}" for path, new in made.items() if path in before.files}
    return dataclasses.replace(before, files={**before.files, **made, **either}, complete=False)


def uninstall(name: str, before: Manifest, host: Host, *, purge: bool) -> list[Step]:
    """The steps until nothing of it is left that is not yours. purge: nor its logs, keys and changed files.

    While something stays, so does the list, shortened to it: another install, or --purge, goes on from there. It goes
    last, so that the same command goes on where an earlier one broke off.
    """
    done: list[Step] = []
    done += _disable(before.enabled, host, "it drains first")
    shared = _shared(host)
    done += steps.removals(before, shared, host.found, purge=purge)
    removed = {step.path for step in done if step.do is Do.REMOVE}
    if host.runs and any(path.startswith(layout.UNITS) for path in removed):
        done.append(_run("systemctl", "daemon-reload"))
        done.append(_run("systemctl", "reset-failed", *before.enabled, why="forget its failures", may_fail=True))
    if host.runs and any(path.startswith(NGINX) for path in removed):
        done.append(_forget_nginx())
    left = {step.path: before.files[step.path] for step in done if step.do is Do.KEEP and step.path not in shared}
    done += _leave_data(name, host, purge=purge)
    if not host.others and before.made_user and host.has_user:
        if purge or not _has_data(name, host):
            there = ("--prefix", host.root) if host.root else ()
            done.append(_run("userdel", *there, USER, why="nothing is its own any more"))
            # It may be gone with its user already, and is not where a proxy's user is in it.
            done.append(_run("groupdel", *there, USER, may_fail=True))
        else:
            done.append(Step(Do.KEEP, f"the user {USER} stays: its logs and keys do (--purge removes them)"))
    done += _list_what_stays(name, dataclasses.replace(before, files=left, enabled=()), host, purge=purge)
    if not host.others and layout.manifest_path(name) in {step.path for step in done if step.do is Do.REMOVE}:
        done += [Step(Do.EMPTY, "", path) for path in (layout.MANIFESTS, systemd.CONFIG_DIR)]
    return done


def _known(before: Manifest, host: Host) -> Manifest:
    """The list, with what others have written of the files that are theirs, too."""
    files = dict(before.files)
    for other in host.others.values():
        for path in filter(layout.is_shared, other.files):
            files[path] = f"{files[path]}|{other.files[path]}" if path in files else other.files[path]
    return dataclasses.replace(before, files=files)


def _other_lists(wanted: Wanted, writes: list[Step], host: Host) -> Iterator[Step]:
    """What the lists of the other instances are to say of files that are theirs, too."""
    changed = {step.path: step for step in writes if step.do is Do.WRITE and layout.is_shared(step.path)}
    limits = {key: wanted.choices[key] for key in layout.SLICE_CHOICES if key in wanted.choices}
    for name, other in host.others.items():
        both = {
            path: f"{steps.digest(step.was or '')}|{steps.digest(step.text)}"
            for path, step in changed.items()
            if path in other.files
        }
        after = dataclasses.replace(other, files={**other.files, **both}, choices={**other.choices, **limits})
        if after != other:
            path = layout.manifest_path(name)
            yield Step(Do.WRITE, f"{name} shares files with it", path, after.dump(), host.found(path), ours=True)


def _shared(host: Host) -> set[str]:
    """Files that another instance needs."""
    return {path for other in host.others.values() for path in other.files if layout.is_shared(path)}


def _disable(units: Sequence[str], host: Host, why: str) -> Iterator[Step]:
    """Those that are there: systemctl refuses the others, which an uninstall that broke off may have removed."""
    words = ("disable", "--now") if host.runs else ("disable",)
    if there := [unit for unit in units if host.found(f"{layout.UNITS}/{unit}") is not None]:
        yield Step(Do.RUN, why, command=host.command("systemctl", *words, *there))
    if running := [unit for unit in units if unit in host.active and unit not in there]:
        yield _run("systemctl", "stop", *running, why=why)


def _with_commands(writes: list[Step], host: Host, *, again: bool) -> Iterator[Step]:
    """The steps, and behind the files about users and directories the programs that make them.

    again: first of all for those that are there already.
    """
    is_made = host.has_user
    if again:
        there = [path for path in (layout.SYSUSERS, *layout.PROXY_SYSUSERS.values()) if host.found(path) is not None]
        for path in there:
            is_made = True
            yield _sysusers(host, path, AS_WRITTEN)
        if host.found(layout.TMPFILES) is not None and is_made:
            yield _tmpfiles(host)
    for step in writes:
        if step.path not in (layout.SYSUSERS, layout.TMPFILES) and not is_made:
            is_made = True
            yield _sysusers(host, layout.SYSUSERS, f"makes the user {USER}")
        yield step
        if step.do is Do.WRITE and step.path.startswith(layout.USERS) and not step.path.endswith(BESIDE):
            is_made = True
            yield _sysusers(host, step.path, AS_WRITTEN)
        if step.do is Do.WRITE and step.path == layout.TMPFILES:
            yield _tmpfiles(host)


def _name(path: str) -> str:
    """Of a file as systemd's programs look for it, also below another root."""
    return path.rpartition("/")[2]


def _sysusers(host: Host, path: str, why: str) -> Step:
    return Step(Do.RUN, why, command=host.command("systemd-sysusers", _name(path)))


def _tmpfiles(host: Host) -> Step:
    return Step(Do.RUN, AS_WRITTEN, command=host.command("systemd-tmpfiles", "--create", _name(layout.TMPFILES)))


def _proxy(wanted: Wanted) -> list[Step]:
    path = layout.proxy_path(wanted.name, wanted.http_proxy)
    if wanted.http_proxy == "nginx":
        return [
            _run(*PROXY_CHECKS["nginx"], why="nginx checks it"),
            _run("systemctl", "reload-or-restart", "nginx", why="nginx takes it"),
        ]
    return [
        _run(*PROXY_CHECKS["haproxy"], path, why="HAProxy checks it"),
        Step(Do.KEEP, f"HAProxy reads one file: put CONFIG={path} into /etc/default/haproxy, and restart it"),
    ]


def _forget_nginx() -> Step:
    return _run("systemctl", "try-reload-or-restart", "nginx", why="nginx forgets it")


def _start(
    name: str,
    units: tuple[str, ...],
    changed: set[str],
    before: Manifest,
    host: Host,
    version: str,
    *,
    again: bool,
) -> list[Step]:
    service, port = units[-1], f"{systemd.unit_name(name)}.socket"
    written = set(map(_name, changed))
    if port in written and service in host.active:
        return [
            _run("systemctl", "stop", service, why="the port is another: what comes meanwhile is refused"),
            _run("systemctl", "restart", port),
            _run("systemctl", "start", *units, why="ready when the first replica serves"),
        ]
    if not set(units) <= host.active:
        # A failed instance may have used up its starts.
        failed = [_run("systemctl", "reset-failed", *units, may_fail=True)] if before.enabled else []
        return [*failed, _run("systemctl", "start", *units, why="ready when the first replica serves")]
    # What watches for a proxy holds no request: it may always start anew.
    watches = [each for each in units if each.endswith("-nginx.service") and (each in written or again)]
    done = [_run("systemctl", "restart", *watches)] if watches else []
    if layout.needs_restart(name, changed, before, version):
        held = ": connections wait at the socket meanwhile" if port in units else ""
        return [
            *done,
            _run("systemctl", "reset-failed", *units, may_fail=True),
            _run("systemctl", "restart", service, why=f"it drains, and starts anew{held}"),
        ]
    reload = [_run("systemctl", "reload", service, why="its replicas start anew, one by one")] if again else []
    return [*done, *reload]


def _leave_data(name: str, host: Host, *, purge: bool) -> Iterator[Step]:
    own = f"{layout.STATE}/{name}"
    for path in (own, *(() if host.others else (layout.STATE, layout.CACHE, layout.RUN))):
        if path not in host.directories:
            continue
        if purge:
            yield Step(Do.CLEAR, "logs, caches: nothing of it comes back", path)
        elif path == own:
            yield Step(Do.KEEP, f"{path} stays, with its logs (--purge removes it)")
        else:
            yield Step(Do.EMPTY, "", path)


def _list_what_stays(name: str, after: Manifest, host: Host, *, purge: bool) -> list[Step]:
    path = layout.manifest_path(name)
    if purge or not (after.files or _has_data(name, host)):
        return [Step(Do.REMOVE, "the list of what orch has made here", path)]
    text, was = after.dump(), host.found(path)
    return [] if text == was else [Step(Do.WRITE, "the list of what stays", path, text, was, ours=True)]


def _has_data(name: str, host: Host) -> bool:
    return f"{layout.STATE}/{name}" in host.directories


def _run(*command: str, why: str = "", may_fail: bool = False) -> Step:
    return Step(Do.RUN, why, command=command, may_fail=may_fail)
