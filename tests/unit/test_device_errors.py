"""What the errors of a model say of the device, and what is done about them."""

from __future__ import annotations

import errno
import weakref

import pytest

from orch_worker.device import answers, is_out_of_memory, release_memory

NO_MEMORY = (
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.72 GiB of which 1 GiB is free.",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":830, please report a bug',
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3743729664 bytes.",
    "RESOURCE_EXHAUSTED: Out of memory allocating 20029400304 bytes.",
    "OOM when allocating tensor with shape[16,112,112,147] and type float on /job:localhost/device:GPU:0",
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 9",
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc",
    "CUDA failed with error out of memory",
    "[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY",
    "std::bad_alloc: out_of_memory: CUDA error at: resource.hpp:60: cudaErrorMemoryAllocation out of memory",
    "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
)
OTHER_ERRORS = (
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "out of resource: shared memory, Required: 163842, Hardware limit: 101376. Reducing block sizes may help.",
    "429 RESOURCE_EXHAUSTED. {'error': {'code': 429, 'message': 'You exceeded your current quota'}}",
    "index 5 is out of range",
    "",
)


class Foreign(Exception):
    """Of a library that derives its errors from nothing in particular."""


@pytest.mark.parametrize("text", NO_MEMORY)
@pytest.mark.parametrize("kind", [RuntimeError, Foreign])
def test_an_error_that_says_that_memory_ran_out_is_known_by_its_words(kind: type[Exception], text: str) -> None:
    """Whichever library says it, and whatever its type is."""
    assert is_out_of_memory(kind(text))


@pytest.mark.parametrize("text", OTHER_ERRORS)
def test_other_errors_of_the_device_and_other_shortages_are_none_of_memory(text: str) -> None:
    """A lost device, a kernel that is too large for any card, a quota of a service elsewhere."""
    assert not is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("err", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_the_hosts_memory_counts_too(err: Exception) -> None:
    """By its type or its number."""
    assert is_out_of_memory(err)
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))


def raised(*errors: Exception, explicitly: bool = False) -> Exception:
    """The last of these errors, each raised while the one before it was handled; explicitly: `from` it."""
    last: Exception | None = None
    for each in errors:
        try:
            try:
                if last is not None:
                    raise last
            finally:
                if explicitly:
                    raise each from last
                raise each
        except Exception as err:  # noqa: BLE001  whatever it is
            last = err
    assert last is not None
    return last


@pytest.mark.parametrize("explicitly", [True, False])
def test_an_error_that_was_raised_because_memory_ran_out_is_one_of_memory(explicitly: bool) -> None:
    """Models wrap what they catch."""
    wrapped = raised(
        RuntimeError("CUDA out of memory."), KeyError("cache"), ValueError("failed"), explicitly=explicitly
    )
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(raised(KeyError("cache"), ValueError("failed"), explicitly=explicitly))


def test_an_error_that_the_model_has_cut_off_from_its_cause_stands_alone() -> None:
    """`from None` says that what came before does not matter."""
    err = raised(MemoryError(), ValueError("too long"))
    err.__suppress_context__ = True
    assert not is_out_of_memory(err)


def test_a_device_error_after_one_of_memory_is_the_one_that_counts() -> None:
    """Else a lost device would be taken for a full one."""
    assert not is_out_of_memory(raised(MemoryError(), RuntimeError("CUDA error: device-side assert triggered")))
    assert is_out_of_memory(raised(RuntimeError("CUDA error: device-side assert triggered"), MemoryError()))


def test_a_ring_of_causes_ends() -> None:
    """Only a program could make one, but models are programs."""
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_out_of_memory(first)


def test_an_error_that_cannot_be_read_is_judged_by_its_type() -> None:
    """A model may raise anything."""

    class Mute(MemoryError):
        def __str__(self) -> str:
            raise ValueError

    assert is_out_of_memory(Mute())


def test_what_a_failed_batch_held_is_let_go_before_memory_is_given_back() -> None:
    """The error is still being handled, and its frames hold the tensors."""

    class Tensor:
        """What stands for one."""

    held: list[weakref.ref[Tensor]] = []

    def predict() -> None:
        activations = Tensor()
        held.append(weakref.ref(activations))
        raise MemoryError

    def wrapper() -> None:
        weights = Tensor()
        held.append(weakref.ref(weights))
        try:
            predict()
        except MemoryError as err:
            raise KeyError from err

    with pytest.raises(KeyError) as caught:
        wrapper()
    assert [tensor() is None for tensor in held] == [False, False]
    release_memory(caught.value)
    assert [tensor() is None for tensor in held] == [True, True]


@pytest.mark.parametrize(
    ("errors", "answered"),
    [
        ([None], True),
        (["CUDA error: invalid configuration argument", None], True),
        (["CUDA error: device-side assert triggered"] * 2, False),
        (["CUDA error: out of memory"], True),
        (["CUDA error: unspecified launch failure", "CUDA error: out of memory"], True),
    ],
)
def test_a_device_that_fails_twice_at_a_trivial_thing_is_lost(errors: list[str | None], answered: bool) -> None:
    """Once may be what an earlier error has left; and having no memory is an answer."""
    coming = iter(errors)

    def ask() -> None:
        if (text := next(coming)) is not None:
            raise RuntimeError(text)

    assert answers(ask) is answered
    assert next(coming, "no more") == "no more"
