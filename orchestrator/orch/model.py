"""What a user's model looks like to a worker, and the tensors that it may declare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from orch.errors import ConfigError

MAX_BATCH_SIZE = 1024  # rows whose tickets fit a worker's status page

# The datatypes of the Open Inference Protocol v2, and Triton's BF16.
DATATYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "BF16", "FP32", "FP64", "BYTES"),
)
MAX_TENSORS = 256  # of one side of a model; they travel in every READY and in the gateway's answers
MAX_DIMENSIONS = 31  # with the batch dimension 32, which every numpy takes
ANY = -1  # a dimension of any size


class Tensor(NamedTuple):
    """One input or output of a model: `orch.Tensor("image", "FP32", (3, 224, 224))`.

    datatype: the Open Inference Protocol's name, one of BOOL, UINT8 to UINT64, INT8 to INT64, FP16, BF16, FP32, FP64
    and BYTES. shape: of one row, without the batch dimension; -1 is a dimension of any size, () a single element.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] = ()


class Model:
    """A model that workers load once and call with batches. Subclass it and name it as `path/to/file.py:Name`.

    A plain function that takes and returns a list will do as well. `--set key=value` options are passed to the
    constructor as keyword arguments. One instance lives in one process, and one method runs at a time.
    """

    #: Rows given to one `predict` at most; 1 to 1024.
    max_batch_size: ClassVar[int] = 1
    #: Seconds that the first row of a batch, once it could run, may wait for company; 0: never wait.
    max_batch_wait: ClassVar[float] = 0.0
    #: Seconds after which a running batch counts as hung and its worker is killed; None: the instance's --timeout.
    timeout: ClassVar[float | None] = None
    #: What HTTP and gRPC clients send for one row: `predict` then gets a dict from name to array for each row. numpy
    #: arrays; of BF16 a torch.bfloat16 tensor; of BYTES nested lists of bytes. (): one JSON value of any form.
    inputs: ClassVar[tuple[Tensor, ...]] = ()
    #: What `predict` returns for one row, as such a dict, or the array alone where one is declared. (): anything that
    #: JSON can say.
    outputs: ClassVar[tuple[Tensor, ...]] = ()

    def load(self, device: str) -> None:
        """Load weights onto `device`: "cpu" or "cuda:0" (a worker sees only the GPU it was given)."""

    def warmup(self) -> list[Any] | None:
        """Sample inputs, the largest kinds first. They are run in full batches before the worker is READY."""
        return None

    def predict(self, inputs: list[Any]) -> list[Any]:
        """One output per input, in order. An exception fails only the inputs that cause it: the batch is split."""
        raise NotImplementedError(f"{type(self).__name__} has no predict(); define predict(self, inputs: list) -> list")

    def predict_stream(self, input: Any) -> Iterator[Any]:  # noqa: A002  the contract's word
        """Answer one input in parts, for `client.stream(...)`. Without it a stream is predict()'s one output."""
        yield from self.predict([input])


def declared(tensors: Any, what: str) -> tuple[Tensor, ...]:
    """A declaration as it should be. Plain tuples and lists will do in place of `Tensor`; None and () declare nothing.

    Raises:
        ConfigError: it cannot be one; `what` (such as "model.py:Name: inputs") begins the message.
    """
    if tensors is None:
        return ()
    if isinstance(tensors, Tensor) or not isinstance(tensors, (list, tuple)):
        raise ConfigError(f"{what} is {tensors!r:.80}; it must be a tuple of orch.Tensor(name, datatype, shape)")
    if len(tensors) > MAX_TENSORS:
        raise ConfigError(f"{what} has {len(tensors)} tensors; at most {MAX_TENSORS}")
    found = tuple(_tensor(each, f"{what}[{i}]") for i, each in enumerate(tensors))
    names = [tensor.name for tensor in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{what} has {name!r} twice; each name stands for one tensor")
    return found


def _tensor(each: Any, what: str) -> Tensor:
    if not isinstance(each, (list, tuple)) or len(each) != len(Tensor._fields):
        raise ConfigError(f"{what} is {each!r:.80}; it must be orch.Tensor(name, datatype, shape)")
    name, datatype, shape = each
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ConfigError(f"{what}: name is {name!r:.80}; it must be a text of one printable character or more")
    if datatype not in DATATYPES:
        raise ConfigError(f"{what}: datatype is {datatype!r:.80}; it must be one of {', '.join(DATATYPES)}")
    return Tensor(name, datatype, _shape(shape, what))


def _shape(shape: Any, what: str) -> tuple[int, ...]:
    sizes: Sequence[Any] = shape if isinstance(shape, (list, tuple)) else [None]
    if len(sizes) > MAX_DIMENSIONS or any(type(size) is not int or (size < 1 and size != ANY) for size in sizes):
        raise ConfigError(
            f"{what}: shape is {shape!r:.80}; it must be a tuple of at most {MAX_DIMENSIONS} sizes of 1 and more, "
            "without the batch dimension; -1 for any size"
        )
    return tuple(sizes)
