"""Models that do what they should not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orch import Model


class Parent(Model):
    """Starts processes of its own: in its session, in a new one, and one that ignores SIGTERM; answers their pids."""

    def load(self, device: str) -> None:
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        sleep = ["sleep", "600"]
        self._children = [
            subprocess.Popen(sleep),
            subprocess.Popen(sleep, start_new_session=True),
            subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True),
        ]

    def predict(self, inputs: list[Any]) -> list[Any]:
        return [[child.pid for child in self._children]] * len(inputs)


class HangsOnce(Model):
    """Hangs on the input "hang" for ever, but only for the first worker that meets it."""

    def __init__(self, flag: str) -> None:
        self._flag = Path(flag)

    def predict(self, inputs: list[Any]) -> list[Any]:
        if "hang" in inputs and not self._flag.exists():
            self._flag.write_text("hanging")
            time.sleep(600)
        return [[each, os.getpid()] for each in inputs]


class Obedient(Model):
    """Does to its process what a request says; answers everything else by itself. Eight inputs a batch."""

    max_batch_size = 8

    def predict(self, inputs: list[Any]) -> list[Any]:
        return [self._one(each) for each in inputs]

    def _one(self, what: Any) -> Any:
        match what:
            case ["sleep", seconds]:
                time.sleep(seconds)
            case ["raise", text]:
                raise ValueError(text)
            case ["print", text]:
                print(text)  # noqa: T201  the point of it
                sys.stderr.write(f"{text} (error)\n")
            case ["write stdout", text]:
                os.write(1, text.encode() + b"\n")
            case ["close stdout"]:
                sys.stdout.close()
            case ["fork and return"]:
                os.fork()
            case ["sys.exit"]:
                sys.exit(3)
            case ["interrupt"]:
                raise KeyboardInterrupt
            case ["os._exit"]:
                os._exit(7)
            case ["abort"]:
                os.abort()
            case ["kill"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["pid"]:
                return os.getpid()
            case ["lambda"]:
                return lambda: None
            case ["zeros", num_bytes]:
                return bytes(num_bytes)
            case ["no memory"]:
                raise MemoryError
        return what


class Miscounts(Model):
    """One output too few, always."""

    def predict(self, inputs: list[Any]) -> list[Any]:
        return inputs[1:]


class NotAList(Model):
    """An output that is no list."""

    def predict(self, inputs: list[Any]) -> list[Any]:
        return "outputs"  # type: ignore[return-value]  # the point of it


class CannotLoad(Model):
    """load() fails in the way that `how` says, or takes too long."""

    def __init__(self, how: str) -> None:
        self._how = how

    def load(self, device: str) -> None:
        match self._how:
            case "raise":
                raise OSError("the weights are not there")
            case "memory":
                raise MemoryError("no room for the weights")
            case "exit":
                os._exit(9)
            case "sys.exit":
                sys.exit(0)
            case "hang":
                time.sleep(600)

    def warmup(self) -> list[Any]:
        return [1]

    def predict(self, inputs: list[Any]) -> list[Any]:
        if self._how == "warmup":
            raise RuntimeError("not even the samples")
        return inputs


class Flaps(Model):
    """Dies while loading for as long as the file `flag` is there; notes the times of its loads in `flag`.loads."""

    def __init__(self, flag: str) -> None:
        self._flag = Path(flag)

    def load(self, device: str) -> None:
        if self._flag.exists():
            with self._flag.with_suffix(".loads").open("a") as file:
                file.write(f"{time.monotonic()}\n")
            os._exit(9)

    def predict(self, inputs: list[Any]) -> list[Any]:
        return [["answer", *each] for each in inputs]


class LosesDevice(Model):
    """Once, while the file `flag` is not there, its predict() fails and its device answers nothing any more."""

    def __init__(self, flag: str) -> None:
        self._flag = Path(flag)

    def predict(self, inputs: list[Any]) -> list[Any]:
        if not self._flag.exists():
            self._flag.write_text("lost")
            sys.modules["torch"] = _torch_without_device()
            raise RuntimeError("an illegal memory access was encountered")
        return inputs


def _torch_without_device() -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    cuda = SimpleNamespace(is_initialized=lambda: True, synchronize=refuse, empty_cache=refuse)
    return SimpleNamespace(cuda=cuda, zeros=refuse, OutOfMemoryError=MemoryError)
