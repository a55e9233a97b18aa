"""Who is measured, and what each needs."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers.bodies import BYTES, RAW, TRITON
from benchmarks.peers.workloads import WORKERS

ORCH, ZMQ, HTTP = "orch", "zmq", "http"  # modules in clients/


@dataclass(frozen=True, slots=True)
class Row:
    """A server. Peers run in an environment of their own, orch and the floors in ours.

    module: its file in servers/, where that is not its name. front: what clients of a floor connect over.
    path, form: what an HTTP server is asked; tensor_path, tensor_form: with tensors, where that differs.
    gateways: of orch, those that serve HTTP.
    batched: it batches also where the workload is one by one. workloads: those that it is measured with.
    quiet: it takes next to nothing while nobody asks it, so it may stay up while others are measured.
    """

    name: str
    client: str = HTTP
    module: str = ""
    front: str = "ipc"
    path: str = "/"
    form: str = BYTES
    tensor_path: str = ""
    tensor_form: str = ""
    gateways: int = 0
    distributions: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    workers: int = WORKERS
    batched: bool = False
    workloads: tuple[str, ...] = ("echo", "tensor", "batch", "kill")
    quiet: bool = True

    @property
    def is_peer(self) -> bool:
        """Whether it comes from somebody else's distribution."""
        return self.client == HTTP and not self.gateways

    def asked(self, workload: str) -> tuple[str, str]:
        """Path and form of a request to an HTTP server."""
        if workload != "tensor":
            return self.path, self.form
        return self.tensor_path or self.path, self.tensor_form or self.form


def _gateways(name: str, count: int) -> Row:
    """Orch over HTTP: bytes to /predict as they are, a tensor as a raw request of the Open Inference Protocol."""
    return Row(
        name,
        module="orch",
        path="/predict",
        tensor_path="/v2/models/HttpMean/infer",
        tensor_form=RAW,
        gateways=count,
        distributions=("gpu-orch", "httptools", "uvloop"),
        programs=("wrk",),
        workloads=("echo", "tensor"),
    )


ROWS = (
    Row("orch", ORCH, distributions=("gpu-orch", "pyzmq", "msgpack", "numpy")),
    _gateways("orch_http", 1),
    _gateways("orch_http2", 2),
    Row("zmq_echo", ZMQ, distributions=("pyzmq",), workers=1, workloads=("echo", "tensor")),
    Row("zmq_proxy", ZMQ, distributions=("pyzmq",)),
    Row("zmq_broker", ZMQ, distributions=("pyzmq",)),
    Row("zmq_echo_tcp", ZMQ, "zmq_echo", "tcp", distributions=("pyzmq",), workers=1, workloads=("echo", "tensor")),
    Row("zmq_proxy_tcp", ZMQ, "zmq_proxy", "tcp", distributions=("pyzmq",)),
    Row("zmq_broker_tcp", ZMQ, "zmq_broker", "tcp", distributions=("pyzmq",)),
    Row(
        "nginx_uvicorn",
        distributions=("uvicorn", "starlette", "uvloop", "httptools"),
        programs=("nginx", "wrk"),
    ),
    Row("mosec", path="/inference", distributions=("mosec",), programs=("wrk",)),
    Row(
        "mosec_batched",
        module="mosec",
        path="/inference",
        distributions=("mosec",),
        programs=("wrk",),
        batched=True,
        workloads=("echo",),
    ),
    Row("litserve", path="/predict", distributions=("litserve", "fastapi", "uvicorn"), programs=("wrk",)),
    Row("bentoml", path="/run", distributions=("bentoml",), programs=("wrk",)),
    Row(
        "pytriton",
        path="/v2/models/m/infer",
        form=TRITON,
        distributions=("nvidia-pytriton",),
        programs=("wrk",),
        workers=1,
    ),
    Row("ray", distributions=("ray",), programs=("wrk",), quiet=False),
)
BY_NAME = {row.name: row for row in ROWS}
ORCHS = tuple(row.name for row in ROWS if row.client == ORCH or row.gateways)
GROUPS = {
    "http": tuple(row.name for row in ROWS if row.client == HTTP),
    "floors": ("orch", "zmq_echo", "zmq_proxy", "zmq_broker"),
    "all": tuple(row.name for row in ROWS if row.front != "tcp"),
}
