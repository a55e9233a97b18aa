"""A model's warm-up samples in a file: a worker writes them, whoever makes a load of them reads them.

One msgpack map: {"format": 1, "samples": [[body, [frame, ...]], ...]}, each sample encoded as a request's payload, or
{"format": 1, "refusal": TEXT} where no load can be made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack

from orch import payload
from orch.errors import ConfigError, RemoteProtocolError
from orch.planning.sizes import format_size
from orch.whole import write_whole

FORMAT = 1
# A load goes round and round a few, and whoever reads them holds them in memory.
MAX_BYTES = 512 * 1024 * 1024
INSTEAD = "for a count without a load use --replicas auto or a number"


def write_samples(path: Path, samples: Iterable[Any], model: str, *, max_bytes: int = MAX_BYTES) -> None:
    """Write the samples of `model`, or why they cannot be used; a file that is there already stays as it is.

    max_bytes: of all samples together; those beyond it are left out.

    Raises:
        OSError: the file cannot be written.
    """
    if not path.exists():
        write_whole(path, msgpack.packb({"format": FORMAT, **_content(samples, model, max_bytes)}))


def load_samples(path: str | os.PathLike[str], *, instead: str = INSTEAD) -> list[Any]:
    """The samples as payloads, at least one.

    instead: what to do without a load, for the message.

    Raises:
        ConfigError: there are none, or no load can be made of them; the message says why and what to do.
    """
    try:
        content = msgpack.unpackb(Path(path).read_bytes(), strict_map_key=False)
    except OSError as err:
        raise ConfigError(
            f"no warm-up samples at {path} ({err.strerror}), of which a load could be made; the log of replica 0 may "
            f"say why; {instead}"
        ) from err
    except Exception as err:  # msgpack raises a dozen types for what it did not write
        raise _not_ours(path) from err
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _not_ours(path)
    if isinstance(content.get("refusal"), str):
        raise ConfigError(f"{content['refusal']}; {instead}")
    try:
        samples = [payload.decode(body, frames) for body, frames in content["samples"]]
    except (KeyError, TypeError, ValueError, RemoteProtocolError) as err:
        raise _not_ours(path) from err
    if not samples:
        raise _not_ours(path)
    return samples


def _not_ours(path: str | os.PathLike[str]) -> ConfigError:
    return ConfigError(f"{path} holds no warm-up samples of this version of orch; remove it and start again")


def _content(samples: Iterable[Any], model: str, max_bytes: int) -> dict[str, Any]:
    encoded: list[tuple[bytes, list[bytes]]] = []
    left_bytes = max_bytes
    for number, sample in enumerate(samples, start=1):
        try:
            body, frames = payload.encode(sample)
        except TypeError as err:
            return {"refusal": f"sample {number} of {model}'s warmup() cannot be sent as a request: {err}"}
        left_bytes -= payload.nbytes(body, frames)
        if left_bytes < 0:
            break
        encoded.append((body, [bytes(frame) for frame in frames]))
    if left_bytes < 0 and not encoded:
        return {"refusal": f"the first sample of {model}'s warmup() is larger than {format_size(max_bytes)}"}
    if not encoded:
        text = f"{model}'s warmup() returns no samples, of which a load could be made; let it return some"
        return {"refusal": text}
    return {"samples": encoded}
