"""JSON Schemas of what travels over HTTP, by their names in the OpenAPI document. Pure.

Other fields may be there besides: clients of the protocol send some, and orch tells more with each version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from orch.model import DATATYPES
from orch_gateway.inference import MAX_ROWS, MAX_UINT64

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
FLAG: Final[Schema] = {"type": "boolean"}
ANY_JSON: Final[Schema] = {"description": "Any JSON value."}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
UNSIGNED: Final[Schema] = {**COUNT, "maximum": MAX_UINT64}
OBJECT: Final[Schema] = {"type": "object"}
DATATYPE: Final[Schema] = {"enum": list(DATATYPES)}
STATE: Final[Schema] = {"enum": ["READY", "UNAVAILABLE"]}


def ref(name: str) -> Schema:
    """The schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema, **bounds: int) -> Schema:
    """A list of these."""
    return {"type": "array", "items": items, **bounds}


def record(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None, **more: Any) -> Schema:
    """An object with these fields."""
    return {**OBJECT, "properties": {**required, **(optional or {})}, "required": list(required), **more}


def parameters(**known: Schema) -> Schema:
    """The protocol's open place for what else one wishes; null is none."""
    return {"type": ["object", "null"], "properties": known}


SIZES: Final = array({"type": "integer", "minimum": -1})
NAMED_TENSORS: Final = array(record({"name": TEXT, "datatype": DATATYPE, "shape": SIZES}))
CONFIGURED: Final = array(record({"name": TEXT, "data_type": TEXT, "dims": SIZES}))
SCHEDULING: Final = {
    "priority": {**UNSIGNED, "description": "1: high, 0 and 2: normal, others: low."},
    "timeout": {**UNSIGNED, "description": "Microseconds after which nobody waits any more; 0: as long as it takes."},
}
DURATION: Final = record({"count": COUNT, "ns": COUNT})
GENERATED: Final = record({"model_name": TEXT, "model_version": TEXT}, {"id": TEXT})

SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": record({"error": TEXT}, {"code": {**TEXT, "description": "A word for programs."}}),
    "Input": {
        **ANY_JSON,
        "description": "One input: any JSON value. Or several: an object with the one key `instances`, a list of at "
        f"most {MAX_ROWS}.",
        "examples": ["hello", {"instances": ["one", "two"]}],
    },
    "Output": {
        **ANY_JSON,
        "description": "The output of one input; of several an object with the one key `predictions`, a list. Numbers "
        "that are not finite are null.",
    },
    "InferRequest": record(
        {"inputs": array(ref("InferInput"), minItems=1)},
        {
            "id": TEXT,
            "parameters": parameters(binary_data_output=FLAG, **SCHEDULING),
            "outputs": array(ref("InferWish")),
        },
    ),
    "InferInput": record(
        {"name": TEXT, "shape": array(COUNT, minItems=1), "datatype": DATATYPE},
        {
            "parameters": parameters(binary_data_size=UNSIGNED),
            "data": {**array({}), "description": "The elements, flat or nested; or they follow in binary."},
        },
    ),
    "InferWish": record({"name": TEXT}, {"parameters": parameters(binary_data=FLAG, classification=UNSIGNED)}),
    "InferAnswer": record(
        {"model_name": TEXT, "model_version": TEXT, "outputs": array(ref("InferOutput"), minItems=1)}, {"id": TEXT}
    ),
    "InferOutput": record(
        {"name": TEXT, "shape": array(COUNT, minItems=1), "datatype": DATATYPE},
        {"parameters": OBJECT, "data": array({})},
    ),
    "GenerateRequest": record(
        {}, {"id": TEXT, "parameters": {**OBJECT, "properties": SCHEDULING}},
        description="Inputs by their names; `input` where the model declares none.",
    ),
    "GenerateAnswer": {**GENERATED, "description": "With the outputs by their names."},
    "Server": record({"name": TEXT, "version": TEXT, "extensions": array(TEXT)}),
    "Model": record(
        {
            "name": TEXT, "versions": array(TEXT, minItems=1), "platform": TEXT,
            "inputs": NAMED_TENSORS, "outputs": NAMED_TENSORS,
        }
    ),
    "ModelConfig": record(
        {"name": TEXT, "platform": TEXT, "max_batch_size": COUNT, "input": CONFIGURED, "output": CONFIGURED}
    ),
    "ModelStatistics": record(
        {
            "model_stats": array(
                record(
                    {
                        "name": TEXT, "version": TEXT, "last_inference": COUNT,
                        "inference_count": COUNT, "execution_count": COUNT,
                        "inference_stats": {**OBJECT, "additionalProperties": DURATION},
                        "batch_stats": array(record({"batch_size": COUNT, "compute_infer": DURATION})),
                    }
                )
            )
        }
    ),
    "IndexRequest": record({}, {"ready": {**FLAG, "description": "Only models that serve."}}),
    "Index": array(record({"name": TEXT, "version": TEXT, "state": STATE, "reason": TEXT})),
    "Models": record(
        {
            "models": array(
                record(
                    {
                        "name": TEXT, "ready": FLAG, "reason": TEXT, "max_batch_size": COUNT, "streams": FLAG,
                        "inputs": NAMED_TENSORS, "outputs": NAMED_TENSORS,
                    }
                )
            )
        }
    ),
    "Status": record(
        {
            "name": TEXT, "version": TEXT, "state": TEXT, "model": TEXT, "pid": COUNT,
            "uptime_s": {"type": "number", "minimum": 0}, "gpus": array(OBJECT), "gateways": array(OBJECT),
            "replicas": array(record({"id": TEXT, "state": TEXT, "device": TEXT, "restarts": COUNT})),
            "queue": record({"queued": COUNT, "outstanding": COUNT, "answered": COUNT}),
            "events": array(record({"number": COUNT, "at": {"type": "number"}, "severity": TEXT, "text": TEXT})),
            "history": OBJECT,
        }
    ),
    "Gpus": record(
        {"gpus": array(OBJECT), "mps": OBJECT, "host": OBJECT, "replicas": array(record({"id": TEXT, "state": TEXT}))}
    ),
}  # fmt: skip
