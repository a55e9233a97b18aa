"""What clients are told about the server and its models, and the generate extension."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from orch import Tensor
from orch_gateway import facts, generate
from orch_gateway.faults import BadRequest
from orch_gateway.inference import ModelSpec

TEXT = ModelSpec(
    "text",
    ("3",),
    (Tensor("text_input", "BYTES", (1,)), Tensor("ids", "INT64", (-1,))),
    (Tensor("text_output", "BYTES", ()), Tensor("scores", "FP32", (-1,))),
    max_batch_size=8,
    max_batch_wait_s=0.002,
    streams=True,
)
ECHO = ModelSpec("echo")


def test_shapes_in_the_metadata_begin_with_the_batch() -> None:
    """-1, because any number of rows may be sent."""
    found = facts.model_metadata(TEXT)
    assert (found["name"], found["versions"], found["platform"]) == ("text", ["3"], "orch")
    assert found["inputs"][1] == {"name": "ids", "datatype": "INT64", "shape": [-1, -1]}
    assert found["outputs"][0] == {"name": "text_output", "datatype": "BYTES", "shape": [-1]}
    assert facts.model_metadata(ECHO)["inputs"] == [{"name": "input", "datatype": "BYTES", "shape": [-1]}]


def test_the_server_names_only_extensions_that_it_has() -> None:
    """A client reads them to know what it may ask for."""
    found = facts.server_metadata("1.2")
    assert (found["name"], found["version"]) == ("orch", "1.2")
    assert "binary_tensor_data" in found["extensions"]
    assert not [name for name in found["extensions"] if "shared_memory" in name or name == "sequence"]


def test_the_configuration_has_tritons_form() -> None:
    """Shapes of one row, TYPE_STRING for BYTES, the batching in microseconds."""
    config = facts.model_config(TEXT)
    assert config["max_batch_size"] == 8
    assert [(each["name"], each["data_type"], each["dims"]) for each in config["input"]] == [
        ("text_input", "TYPE_STRING", [1]),
        ("ids", "TYPE_INT64", [-1]),
    ]
    assert config["dynamic_batching"] == {
        "preferred_batch_size": [8],
        "max_queue_delay_microseconds": 2000,
        "priority_levels": 3,
        "default_priority_level": 2,
    }
    assert config["model_transaction_policy"] == {"decoupled": True}


def test_statistics_have_tritons_form() -> None:
    """Counts and nanoseconds."""
    statistics = facts.Statistics(
        last_inference_ms=5,
        num_rows=7,
        num_batches=2,
        success=facts.Duration(7, 70),
        batches={4: facts.Duration(2, 60)},
    )
    (found,) = facts.model_statistics([(TEXT, statistics)])["model_stats"]
    assert (found["name"], found["version"], found["inference_count"], found["execution_count"]) == ("text", "3", 7, 2)
    assert found["inference_stats"]["success"] == {"count": 7, "ns": 70}
    assert found["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    assert [(each["batch_size"], each["compute_infer"]) for each in found["batch_stats"]] == [
        (4, {"count": 2, "ns": 60})
    ]


def test_statistics_are_those_of_the_status() -> None:
    """Seconds become nanoseconds, and the waits at the balancer and at the worker are one; nothing told is nothing."""
    status = {
        "queue": {"answered": 10, "failed": 2, "expired": 1, "lost": 3, "rejected": 50},
        "latency": {
            "bounds_s": [1.0],
            "total": {"counts": [9, 1], "sum_s": 5.0},
            "queue": {"counts": [11, 0], "sum_s": 1.5},
            "batch": {"counts": [8, 0], "sum_s": 0.5},
            "compute": {"counts": [8, 0], "sum_s": 2.25},
        },
        "batch_rows": {
            "bounds": [1, 2],
            "counts": [1, 2, 1],
            "sum": 10,
            "runs": [[1, 1, 0.25], [2, 2, 1.5], [5, 1, 0.5]],
            "last_at_s": 20.5,
        },
    }
    found = facts.statistics_of(status, since_1970_s=1000.0)
    assert found.last_inference_ms == 1_020_500
    assert found.batches[2] == facts.Duration(2, 1_500_000_000)
    assert list(found.batches) == [1, 2, 5]
    assert (found.num_rows, found.num_batches) == (8, 4)
    assert found.success == facts.Duration(8, 5_000_000_000)
    assert found.fail == facts.Duration(6)
    assert found.queue == facts.Duration(11, 2_000_000_000)
    assert found.compute_infer == facts.Duration(8, 2_250_000_000)
    assert facts.statistics_of({}) == facts.Statistics()


def test_the_index_lists_models_and_may_leave_out_those_that_are_not_ready() -> None:
    """With the reason why."""
    models = [(TEXT, ""), (ECHO, "loading")]
    assert facts.repository_index(models) == [
        {"name": "text", "version": "3", "state": "READY", "reason": ""},
        {"name": "echo", "version": "1", "state": "UNAVAILABLE", "reason": "loading"},
    ]
    assert [each["name"] for each in facts.repository_index(models, only_ready=True)] == ["text"]


# --- generate ------------------------------------------------------------------------------------------------------


def ask(spec: ModelSpec, **request: Any) -> Any:
    """The payload of a generate request."""
    (payload,) = generate.parse(json.dumps(request).encode(), spec).payloads
    return payload


def test_members_of_the_object_are_the_inputs() -> None:
    """A single value fills a tensor of one element; what is no input is passed over."""
    payload = ask(TEXT, text_input="hello", ids=[1, 2, 3], temperature=0.5)
    assert payload["text_input"] == [b"hello"]
    assert payload["ids"].tolist() == [1, 2, 3]
    assert set(payload) == {"text_input", "ids"}
    assert ask(TEXT, text_input=["hello"], ids=7)["ids"].tolist() == [7]


def test_a_model_that_declares_nothing_gets_the_input_or_the_whole_object() -> None:
    """Whichever is there."""
    assert ask(ECHO, input=[1, {"a": 2}], other=3) == [1, {"a": 2}]
    assert ask(ECHO, text_input="hello", max_tokens=3) == {"text_input": "hello", "max_tokens": 3}


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"text_input": "a"}, "Missing: ids"),
        ({"text_input": 3, "ids": 1}, "BYTES must be texts"),
        ({"text_input": ["a", "b"], "ids": 1}, "unexpected shape for input 'text_input'"),
        ({"text_input": "a", "ids": [[1]]}, "unexpected shape for input 'ids'"),
        ({"text_input": "a", "ids": [1, [2]]}, "true shape of"),
        ({"text_input": "a", "ids": 1, "id": 3}, "Unable to parse 'id'"),
        ({"text_input": "a", "ids": 1, "parameters": 3}, "Unable to parse 'parameters'"),
        ([], "must be an object"),
    ],
)
def test_a_wrong_generate_request_is_refused(request_: Any, why: str) -> None:
    """In the same words as an inference."""
    with pytest.raises(BadRequest, match=why):
        generate.parse(json.dumps(request_).encode(), TEXT)


def test_a_part_of_a_stream_is_one_event_in_one_line() -> None:
    """Single elements stand for themselves; the id is echoed."""
    body = json.dumps({"text_input": "a", "ids": 1, "id": "7", "parameters": {"priority": 1}}).encode()
    inference = generate.parse(body, TEXT)
    assert inference.priority == "high"
    found = generate.answer(inference, TEXT, {"text_output": "a\nb", "scores": np.array([0.5, 1.5], "f4")})
    assert found == {"model_name": "text", "model_version": "3", "id": "7", "text_output": "a\nb", "scores": [0.5, 1.5]}
    event = generate.event(found)
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event[6:]) == found


def test_the_answer_of_a_model_that_declares_nothing_is_its_value() -> None:
    """Not a text that holds JSON."""
    inference = generate.parse(b'{"input": 1}', ECHO)
    assert generate.answer(inference, ECHO, {"a": np.arange(2)})["output"] == {"a": [0, 1]}
