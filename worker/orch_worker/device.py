"""What torch says of the device, asked only where the model has brought torch with it; and what the driver says."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from orch.planning.footprint import MIN_DEVICE_BYTES
from orch.planning.sizes import GIB

# No context is larger by far: an H200's is 612 MiB, and 730 MiB once kernels are loaded.
MAX_CONTEXT_BYTES: Final = 2 * GIB
# What errors about memory say that have no type of their own. After each who says it, and an issue in which it stands.
SIGNS: Final = (
    # torch, of memory that others took (Comfy-Org/ComfyUI#12835): "CUDA error: out of memory". Its allocator by other
    # names: "CUDA out of memory. Tried to allocate", "CUDA driver error: out of memory". CTranslate2
    # (OpenNMT/CTranslate2#690): "CUDA failed with error out of memory". ONNX Runtime (hacksider/Deep-Live-Cam#584):
    # "CUDA failure 2: out of memory". TensorRT (NVIDIA/TensorRT#2198): "Cuda Runtime (out of memory)".
    r"\bcuda\b.{0,60}\bout of memory",
    # The driver's name for it, in Numba (NVIDIA/cudf#185), and the runtime's, in RMM (pytorch/pytorch#133280).
    r"CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation",
    # The mathematical libraries, through torch (QwenLM/Qwen3#873, pytorch/pytorch#20123 and #6511), ONNX Runtime
    # (hacksider/Deep-Live-Cam#645) and CuPy (cupy/cupy#1063).
    r"(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUFFT)(_STATUS)?_ALLOC_FAILED",
    # torch where NVML does not answer, as in MIG: it asks only to describe a refusal (pytorch/pytorch#112377).
    r"NVML_SUCCESS == .* INTERNAL ASSERT FAILED .*CUDACachingAllocator",
    # torch on the host (huggingface/pytorch-image-models#432).
    r"DefaultCPUAllocator: (can't allocate|not enough) memory",
    # The arena of ONNX Runtime (microsoft/onnxruntime#16307).
    r"Failed to allocate memory for requested buffer",
    # JAX (jax-ml/jax#22755). Its RESOURCE_EXHAUSTED alone may be a quota of a service that the model calls.
    r"out of memory (while trying to allocate|allocating)",
    # TensorFlow (tensorflow/tensorflow#136).
    r"OOM when allocating tensor",
)
OUT_OF_MEMORY: Final = re.compile("|".join(SIGNS), re.IGNORECASE)

log = logging.getLogger(__name__)


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def is_out_of_memory(err: BaseException) -> bool:
    """The device's allocator, or the host's, refused; also where another error was raised from that, or because of it.

    By its type where there is one: torch.OutOfMemoryError, ENOMEM, or MemoryError, from which CuPy and RMM derive
    theirs; else by what it says, see SIGNS. Another error of the device that came after it is the one that counts.
    """
    torch = sys.modules.get("torch")
    types = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    for each in _chain(err):
        text = _text(each)
        if isinstance(each, types) or OUT_OF_MEMORY.search(text):
            return True
        if isinstance(each, OSError) and each.errno == errno.ENOMEM:
            return True
        if text.startswith("CUDA error: "):
            return False
    return False


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from or during, and so on back to the first."""
    seen: set[int] = set()
    while err is not None and id(err) not in seen:
        seen.add(id(err))
        yield err
        err = err.__cause__ or (None if err.__suppress_context__ else err.__context__)


def _text(err: BaseException) -> str:
    try:
        return str(err)
    except Exception:  # noqa: BLE001  a model's exception may not be able to say what it is
        return ""


def release_memory(err: BaseException | None = None) -> None:
    """Give cached blocks back, so that a smaller batch finds them whole.

    err: what failed. The frames it passed through hold the batch's tensors for as long as it lives: they are emptied.
    """
    for each in _chain(err):
        traceback.clear_frames(each.__traceback__)
    if cuda := _cuda():
        cuda.empty_cache()


def is_lost() -> bool:
    """Whether a trivial operation fails too: then every later call in this process would."""
    cuda = _cuda()
    if cuda is None:
        return False

    def ask() -> None:
        sys.modules["torch"].zeros(1, device="cuda").add_(1)
        cuda.synchronize()

    return not answers(ask)


def answers(ask: Callable[[], None]) -> bool:
    """Whether the device can do what is asked, or has only no memory for it.

    It is asked twice: an error that has passed is reported once more, by the next call, where the library that met it
    did not clear it (cudaGetLastError does; seen to be left in Comfy-Org/ComfyUI#12835). One that lasts is reported
    each time.
    """
    for _ in range(2):
        try:
            ask()
        except Exception as err:  # noqa: BLE001  whatever it is, the device answered a trivial question with it
            if is_out_of_memory(err):
                return True
        else:
            return True
    return False


def synchronize() -> None:
    """Wait for kernels that still run, so that a late error is this batch's own."""
    if cuda := _cuda():
        cuda.synchronize()


def pin(memory: memoryview) -> bool:
    """Register memory with the driver, for copies at full speed. False: no device, or it refuses, which only costs."""
    cuda = _cuda()
    if cuda is None:
        return False
    try:
        code = int(cuda.cudart().cudaHostRegister(_address(memory), memory.nbytes, 0))
    except Exception as err:  # noqa: BLE001  whatever this build of torch makes of it
        code = -1
        log.warning("the shared memory could not be registered: %s", err)
    if code > 0:
        log.warning("the shared memory could not be registered with the device: CUDA error %d", code)
    return code == 0


def unpin(memory: memoryview) -> None:
    """What `pin` registered is about to be unmapped."""
    if cuda := _cuda():
        synchronize()
        cuda.cudart().cudaHostUnregister(_address(memory))


def _address(memory: memoryview) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def memory() -> dict[str, int]:
    """Torch's peak of reserved device bytes, and what the process itself can tell of the host's."""
    cuda = _cuda()
    facts = {"torch_reserved_bytes": int(cuda.max_memory_reserved()) if cuda else 0}
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    facts["resident_bytes"] = pages * os.sysconf("SC_PAGE_SIZE")
    return facts


class Meter:
    """Device bytes that this process holds: at any time, and noted at three stages of its start.

    `process_bytes` and `free_bytes` answer for the device as the driver does, or None; `torch` for the module, or None
    while nobody has imported it. Made before the process touches the device. On the CPU all of them answer None.
    """

    def __init__(
        self,
        process_bytes: Callable[[], int | None] = lambda: None,
        free_bytes: Callable[[], int | None] = lambda: None,
        torch: Callable[[], Any] = lambda: None,
    ) -> None:
        self._process_bytes, self._free_bytes, self._torch = process_bytes, free_bytes, torch
        self._free_at_start = free_bytes()
        # Without a context we hold nothing: a figure now is that of another process, which has our number outside of
        # our namespace.
        self._is_listed_as_us = process_bytes() is None
        self._facts: dict[str, int] = {}

    def held_bytes(self) -> int | None:
        """The driver's figure for this process, else what the device's free memory has fallen by since the start.

        The fall is the driver's too, not torch's: asking torch for free memory would make the context to be measured.
        """
        if self._is_listed_as_us and (told := self._process_bytes()):
            return told
        free = self._free_bytes()
        return None if free is None or self._free_at_start is None else max(0, self._free_at_start - free)

    def before_load(self) -> None:
        """The target is imported. Make the context now, alone, if it brought torch and made none itself."""
        torch = self._torch()
        if torch is None or torch.cuda.is_initialized() or not torch.cuda.is_available():
            return
        torch.cuda.init()
        torch.cuda.synchronize()  # init() alone only promises a context
        held = self.held_bytes()
        # Less is no context but a neighbour that has let go, and more is one that has come.
        if held is not None and MIN_DEVICE_BYTES <= held <= MAX_CONTEXT_BYTES:
            self._facts["context_bytes"] = held

    def after_load(self) -> None:
        """The weights are there."""
        self._note("loaded_bytes")
        torch = self._torch()
        if torch is not None and torch.cuda.is_initialized():
            self._facts["torch_loaded_bytes"] = int(torch.cuda.memory_reserved())

    def after_warmup(self) -> None:
        """The largest batch has run."""
        self._note("warm_bytes")

    def facts(self) -> dict[str, int]:
        """What was noted, by name; what is not known is left out."""
        return dict(self._facts)

    def _note(self, name: str) -> None:
        synchronize()
        if (held := self.held_bytes()) is not None:
            self._facts[name] = held


@contextlib.contextmanager
def metered(environ: Mapping[str, str] = os.environ) -> Iterator[Meter]:
    """A meter for the one GPU that this process sees, the driver kept open meanwhile; on the CPU it knows nothing.

    The supervisor names the GPU by its UUID in CUDA_VISIBLE_DEVICES.
    """
    uuid = environ.get("CUDA_VISIBLE_DEVICES", "")
    if not uuid.startswith(("GPU-", "MIG-")) or "," in uuid:
        yield Meter()
        return
    from orch.planning import gpu  # its 25 ms are for workers that have a GPU

    def free_bytes() -> int | None:
        found = gpu.read_gpu(uuid)
        return None if found is None or found.total_bytes is None else found.free_bytes

    with gpu.session():
        yield Meter(lambda: gpu.process_bytes(uuid, os.getpid()), free_bytes, lambda: sys.modules.get("torch"))
