"""The warden: cleans up when the supervisor dies.

A process in a session of its own that does nothing but wait for the end of a pipe whose other end only the supervisor
has. A parent-death signal alone would not do: what a model has started does not inherit it.

`python -P -m orch.supervising.warden PIPE_FD INSTANCE_ID RUNTIME_DIR`
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from orch.supervising.process import INSTANCE_VARIABLE, kill_marked

# A process that dies may have started another meanwhile: look again until none is found, but not for ever.
LOOK_S = 5.0
PAUSE_S = 0.05


class Warden:
    """The supervisor's end. `dismiss` when everything was stopped in order."""

    def __init__(self, instance_id: str, runtime_dir: str, environ: Mapping[str, str]) -> None:
        read_end, self._write_end = os.pipe()
        # The warden must not carry the mark that it hunts.
        clean = {key: value for key, value in environ.items() if key != INSTANCE_VARIABLE}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "orch.supervising.warden", str(read_end), instance_id, runtime_dir],
                env=clean,
                pass_fds=[read_end],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(read_end)

    def dismiss(self) -> None:
        """Nothing is left to clean up: it looks once, finds nothing, and ends."""
        try:
            os.write(self._write_end, b"done")
        except BrokenPipeError:
            pass  # somebody has killed it
        os.close(self._write_end)
        try:
            self._process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(argv: list[str]) -> int:
    """Wait for end-of-file, then kill what carries the instance's mark and unlink its files."""
    pipe_fd, instance_id, runtime_dir = int(argv[0]), argv[1], argv[2]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    said = b""
    while piece := os.read(pipe_fd, 64):
        said += piece
    deadline = time.monotonic() + LOOK_S
    while kill_marked(INSTANCE_VARIABLE, instance_id) and time.monotonic() < deadline:
        time.sleep(PAUSE_S)
    if not said:
        shutil.rmtree(runtime_dir, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
