"""The protocol's gRPC messages as classes, made from inference.proto in a pool of their own."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from orch_gateway.protofile import parse

FILE = "inference.proto"

POOL = DescriptorPool()
POOL.AddSerializedFile(parse(files("orch_gateway").joinpath(FILE).read_text("utf-8"), FILE).SerializeToString())
SERVICE = POOL.FindServiceByName("inference.GRPCInferenceService")


def message(name: str) -> Any:
    """The class of a message, by its name in the file."""
    return GetMessageClass(POOL.FindMessageTypeByName(f"{SERVICE.file.package}.{name}"))


ModelInferResponse = message("ModelInferResponse")
ModelStreamInferResponse = message("ModelStreamInferResponse")
