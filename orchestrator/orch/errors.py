"""Everything orch raises on purpose, and the code each error has on the wire and at the shell.

    OrchError
    ├── ConfigError            a setting or a target that cannot work        exit 3
    │   └── DoesNotFit         the plan has no room for what was asked       exit 6
    ├── AlreadyRunning         another supervisor holds this name            exit 7
    ├── AddressInUse           somebody else listens on the endpoint         exit 9
    ├── RuntimeDirError        the runtime directory cannot be used          exit 10
    ├── StartFailed            replica 0 did not become READY               exit 3, 4 or 5
    ├── NotRunning             no instance answers under this name           exit 8
    ├── ProtocolError
    │   ├── LocalProtocolError     this program broke the wire's rules
    │   └── RemoteProtocolError    the peer did; decoding raises nothing else
    └── RequestError           one request failed                            exit 11
        ├── Overloaded         the queue is full; nothing was accepted
        ├── DeadlineExceeded   no answer in time
        ├── WorkerLost         every attempt ended with its worker
        ├── Poisoned           proven to kill workers; never run again
        ├── ModelError         the model raised an exception
        ├── NoSuchModel        this instance does not serve that model
        ├── PayloadTooLarge    over the instance's limit
        └── Closed             the client was closed, or forked, meanwhile

A payload that cannot travel at all is a plain ``TypeError``: a bug in the caller, not in a request.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Exit(enum.IntEnum):
    """What a process of orch says by its exit code. 1 is a bug in orch; 2 is click's usage error."""

    OK = 0
    BUG = 1
    USAGE = 2
    BAD_CONFIG = 3  # also: the target cannot be imported. Never restarted: nothing would change
    MODEL_LOAD = 4  # load() or warmup() raised, or took longer than load_timeout. Restarted once
    OUT_OF_MEMORY = 5  # at load or warm-up. Restarted once
    DOES_NOT_FIT = 6
    ALREADY_RUNNING = 7
    NOT_RUNNING = 8
    ADDRESS_IN_USE = 9
    RUNTIME_DIR = 10
    REQUEST_FAILED = 11
    DRAIN_INCOMPLETE = 12  # the drain deadline passed with accepted requests unanswered
    DEVICE_LOST = 13  # a sticky device error: no later call in that process could succeed
    ORPHANED = 14  # a child whose supervisor is gone


EXIT_CODES = frozenset(int(code) for code in Exit)


class OrchError(Exception):
    """Base of all. `exit_code` is what the command line ends with."""

    exit_code: Exit = Exit.BUG


class ConfigError(OrchError):
    """A setting that cannot work; the message names the key, the value, what is allowed and where it came from."""

    exit_code = Exit.BAD_CONFIG


class DoesNotFit(ConfigError):
    """Not one replica fits, or fewer than asked for; the message carries the sum and the knob to turn."""

    exit_code = Exit.DOES_NOT_FIT


class AlreadyRunning(OrchError):
    """Another supervisor runs under this name."""

    exit_code = Exit.ALREADY_RUNNING


class AddressInUse(OrchError):
    """Somebody else listens on the endpoint asked for."""

    exit_code = Exit.ADDRESS_IN_USE


class RuntimeDirError(OrchError):
    """No directory for sockets could be made or written."""

    exit_code = Exit.RUNTIME_DIR


class StartFailed(OrchError):
    """No replica became READY, and another try would not help. It ends with the worker's own exit code."""

    def __init__(self, message: str, exit_code: Exit) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NotRunning(OrchError):
    """No instance answers. Start one with `orch up`, or name the right one."""

    exit_code = Exit.NOT_RUNNING


class ProtocolError(OrchError):
    """The wire's rules were broken; abstract: it is always one of the two below."""


class LocalProtocolError(ProtocolError):
    """This side tried to send what the wire does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the wire does not allow."""


class RequestError(OrchError):
    """One request ended without a result. `code` is its name on the wire."""

    code: ClassVar[str] = "failed"
    exit_code = Exit.REQUEST_FAILED


class Overloaded(RequestError):
    """The queue is full. Nothing was accepted; try again after `retry_after_s` seconds."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RequestError):
    """No answer in time. If it was still queued it never ran; otherwise it may have."""

    code = "deadline"


class WorkerLost(RequestError):
    """Every allowed attempt ended with its worker. It may have run: send it again only if that is harmless."""

    code = "lost"


class Poisoned(RequestError):
    """This request, run alone, killed its worker again. It is never run again; change the input."""

    code = "poisoned"


class ModelError(RequestError):
    """The model raised; the message has the type and the text, the replica's log has the traceback."""

    code = "model"


class NoSuchModel(RequestError):
    """This instance does not serve the model named; the message lists what it serves."""

    code = "no_such_model"


class PayloadTooLarge(RequestError):
    """The payload is over the instance's limit; raised before anything is sent."""

    code = "too_large"


class Closed(RequestError):
    """The client was closed with this call unanswered, or the call belongs to the process it was forked from."""

    code = "closed"


BY_CODE: dict[str, type[RequestError]] = {
    kind.code: kind
    for kind in (
        Overloaded,
        DeadlineExceeded,
        WorkerLost,
        Poisoned,
        ModelError,
        NoSuchModel,
        PayloadTooLarge,
        Closed,
    )
}


def from_wire(code: str, message: str, retry_after_s: float) -> RequestError:
    """The error that an ERROR record stands for; a code of a newer version becomes a plain RequestError."""
    if code == Overloaded.code:
        return Overloaded(message, retry_after_s)
    return BY_CODE.get(code, RequestError)(message)
