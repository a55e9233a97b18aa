"""HTTP requests to a real instance: plain JSON, streams, the protocol's bodies, and every way to get an error."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.process.harness import Instance, Place, eventually
from tests.process.web import Web, read_all


@pytest.fixture(scope="module")
def echo(shared_place: Place) -> Instance:
    """One model that answers with its input, and limits that a test can reach."""
    return shared_place.up("plain.py:Echo", "--http-max-body=1MiB", "--access-log=json", http=True)


@pytest.fixture
def web(echo: Instance) -> Iterator[Web]:
    """A connection to it."""
    with Web(echo.url) as found:
        yield found


def test_one_value_is_answered_by_one_value(web: Web) -> None:
    """Any JSON value is an input, whatever the content type says."""
    for value in ("hello", 3, None, [1, "two"], {"a": {"b": [True]}}):
        answer = web.post("/predict", value)
        assert (answer.status, answer.json) == (200, value)
        assert answer.headers["content-type"] == "application/json"


def test_instances_are_answered_by_predictions(web: Web) -> None:
    """In their order, and so is an empty list."""
    assert web.post("/predict", {"instances": [3, "x", None]}).json == {"predictions": [3, "x", None]}
    assert web.post("/v1/models/Echo:predict", {"instances": []}).json == {"predictions": []}


def test_bytes_are_answered_by_bytes(web: Web) -> None:
    """Large ones, too, which travel in frames."""
    for size in (0, 5, 400_000):
        answer = web.post("/predict", bytes(size), content_type="application/octet-stream")
        assert (answer.status, answer.body) == (200, bytes(size))
        assert answer.headers["content-type"] == "application/octet-stream"


def test_a_batch_of_the_protocol_comes_back_in_binary_and_in_json(web: Web) -> None:
    """The model declares nothing: each element is a JSON value."""
    tensor = {"name": "input", "shape": [2], "datatype": "BYTES", "data": ["1", '"x"']}
    answer = web.post("/v2/models/Echo/infer", {"id": "7", "inputs": [tensor]})
    assert answer.json["outputs"][0]["data"] == ["1", '"x"']
    assert answer.json["id"] == "7"
    binary = web.post("/v2/models/Echo/infer", {"inputs": [tensor], "parameters": {"binary_data_output": True}})
    length = int(binary.headers["inference-header-content-length"])
    described = json.loads(binary.body[:length])["outputs"][0]
    assert described["parameters"]["binary_data_size"] == len(binary.body) - length
    assert binary.body[length:] == np.uint32(1).tobytes() + b"1" + np.uint32(3).tobytes() + b'"x"'


def test_bodies_may_be_compressed_both_ways(web: Web) -> None:
    """What comes in is unfolded up to the limit and no further."""
    text = "word " * 2000
    answer = web.post(
        "/predict", gzip.compress(json.dumps(text).encode()), content_encoding="gzip", accept_encoding="gzip"
    )
    assert answer.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(answer.body)) == text
    bomb = web.post("/predict", gzip.compress(bytes(2 * 2**20)), content_encoding="gzip")
    assert (bomb.status, "unfolds to more than 1048576 bytes" in bomb.error) == (413, True)
    assert web.post("/predict", b"no gzip", content_encoding="gzip").status == 400
    assert web.post("/predict", b"1", content_encoding="br").status == 415


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/predict", b"hello", 400, "quotation marks"),
        ("POST", "/predict", b'{"instances": 3}', 400, "'instances' must be a list"),
        ("POST", "/v1/models/Nobody:predict", b"1", 404, "Nobody"),
        ("POST", "/v2/models/Echo/infer", b"{}", 400, "inputs"),
        ("POST", "/v2/models/Echo/versions/9/infer", b"{}", 404, "version 9"),
        ("POST", "/v2/repository/models/Echo/unload", b"", 501, "orch down"),
        ("GET", "/predict", None, 405, "POST"),
        ("GET", "/nothing/here", None, 404, "/openapi.json"),
        ("POST", "/predict", bytes(2**20 + 1), 413, "--http-max-body"),
    ],
)
def test_a_wrong_request_gets_the_protocols_error(
    web: Web, method: str, path: str, body: bytes | None, status: int, says: str
) -> None:
    """One line that says what is wrong, under a status of its own."""
    answer = web.ask(method, path, body)
    assert answer.status == status
    assert says in answer.error


def test_who_offers_another_protocol_is_answered_in_this_one(web: Web) -> None:
    """As curl --http2 does: its body is read, large or small, and the connection goes on."""
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA"}
    for text in ("hello", "x" * 300_000):
        answer = web.ask("POST", "/predict", json.dumps(text).encode(), offer)
        assert (answer.status, answer.json) == (200, text)
    assert "upgrade" not in answer.headers
    assert "connection" not in answer.headers


def test_wrong_headers_are_told(web: Web) -> None:
    """Neither is silently taken for something else."""
    assert "seconds" in web.post("/predict", 1, x_request_timeout="soon").error
    assert "high, normal, low" in web.post("/predict", 1, x_request_priority="urgent").error


def test_a_request_id_is_echoed_or_made(web: Web) -> None:
    """One that could break a header or a log is replaced."""
    assert web.post("/predict", 1, x_request_id="mine-7").headers["x-request-id"] == "mine-7"
    made = [web.post("/predict", 1, x_request_id=given).headers["x-request-id"] for given in ("", "with blanks", "ü")]
    assert len(set(made)) == 3


def test_what_is_no_http_is_refused_and_the_next_client_is_served(web: Web) -> None:
    """Junk, a smuggled length, no Host, a head without end: an answer, and a closed connection."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
    for junk, status in (
        (b"\x16\x03\x01 hello\r\n\r\n", b"400"),
        (head + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (head + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (head + b"X: " + b"x" * 70_000, b"431"),
    ):
        assert read_all(web.raw(junk)).startswith(b"HTTP/1.1 " + status), junk[:80]
    assert web.post("/predict", 1).json == 1


def test_requests_sent_ahead_are_answered_in_order(web: Web) -> None:
    """More than are read ahead, on one connection."""
    one = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n%s\r\n%02d"
    sent = b"".join(one % (b"" if n < 39 else b"Connection: close\r\n", n + 10) for n in range(40))
    answers = read_all(web.raw(sent)).split(b"HTTP/1.1 200 OK")[1:]
    assert [int(answer[-2:]) for answer in answers] == list(range(10, 50))


def test_a_page_of_another_site_may_not_ask(web: Web) -> None:
    """Its reader's browser would reach what only this host should."""
    assert web.post("/predict", 1, origin="https://example.org").status == 403
    assert web.post("/predict", 1, origin="http://localhost:3000").status == 200


def test_it_tells_of_itself(web: Web, echo: Instance) -> None:
    """Health, models, status, GPUs, metrics, the page, and the document about all of it."""
    assert [
        web.get(path).status for path in ("/healthz", "/v2/health/live", "/v2/health/ready", "/v2/models/Echo/ready")
    ] == [200] * 4
    assert web.get("/v1/models").json["models"][0]["name"] == "Echo"
    assert web.get("/v2/models/Echo").json["inputs"] == [{"name": "input", "datatype": "BYTES", "shape": [-1]}]
    assert web.post("/v2/repository/index", {}).json[0]["state"] == "READY"
    web.post("/predict", 1)
    eventually(lambda: web.get("/v2/models/Echo/stats").json["model_stats"][0]["inference_count"] > 0)
    model = web.get("/v2/models/Echo/stats").json["model_stats"][0]
    assert abs(model["last_inference"] / 1000 - time.time()) < 60
    assert sum(each["compute_infer"]["count"] for each in model["batch_stats"]) == model["execution_count"]
    spent = model["inference_stats"]
    assert spent["success"]["ns"] >= spent["compute_infer"]["ns"] > 0
    assert web.get("/v1/status").json["pid"] == echo.process.pid
    assert "gpus" in web.get("/v1/gpu/info").json
    assert b"orch_build_info" in web.get("/metrics").body
    assert web.get("/").body.startswith(b"<!doctype html>")
    assert "/v2/models/{model}/infer" in web.get("/openapi.json").json["paths"]


def test_the_access_log_has_a_line_for_each_answer(web: Web, echo: Instance) -> None:
    """As JSON, with the request's id."""
    web.post("/predict", 1, x_request_id="to-be-found")
    line = eventually(lambda: next((line for line in echo.log("g0").splitlines() if "to-be-found" in line), ""))
    found = json.loads(line[line.index("{") :])
    assert (found["method"], found["route"], found["status"]) == ("POST", "/predict", 200)
