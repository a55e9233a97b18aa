# mypy: ignore-errors
# Its libraries live in the environment of the peers, out of the type checker's sight.
"""nginx (least_conn, kept-alive upstreams) in front of two uvicorn + Starlette processes.

What people write by hand: the launcher starts a dead uvicorn again after 0.1 s, as a systemd unit would, and batching
is a queue in each process.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from benchmarks.peers.servers import work
from benchmarks.peers.workloads import MAX_WAIT_S

RESTART_S = 0.1
CONF = """
daemon off; worker_processes {workers}; pid {folder}/nginx.pid; error_log {folder}/error.log error;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  client_max_body_size 16m; client_body_buffer_size 1m; keepalive_requests 1000000000;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream models {{ least_conn; {servers} keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ proxy_pass http://models; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


def serve(address: str) -> None:
    """One uvicorn, on a Unix socket."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    waiting: asyncio.Queue[tuple[bytes, asyncio.Future[bytes]]] = asyncio.Queue()
    tasks: list[asyncio.Task[None]] = []

    async def run_batches() -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await waiting.get()]
            until = loop.time() + MAX_WAIT_S
            while len(batch) < work.MAX_BATCH:
                try:
                    async with asyncio.timeout_at(until):
                        batch.append(waiting.get_nowait() if waiting.qsize() else await waiting.get())
                except TimeoutError:
                    break
            outputs = await asyncio.to_thread(work.batch, [body for body, _ in batch])
            for (_, future), output in zip(batch, outputs, strict=True):
                if not future.cancelled():
                    future.set_result(output)

    async def run(request: Request) -> Any:
        output = body = await request.body()
        if work.BATCHED:
            if not tasks:
                tasks.append(asyncio.create_task(run_batches()))
            future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            waiting.put_nowait((body, future))
            output = await future
        else:
            output = work.one(body)
        return Response(output, media_type="application/octet-stream")

    work.here()
    app = Starlette(routes=[Route("/", run, methods=["POST"])])
    uvicorn.run(app, uds=address, log_level="error", access_log=False)


def start(address: str) -> subprocess.Popen[bytes]:
    """A uvicorn of its own process."""
    return subprocess.Popen([sys.executable, "-m", "benchmarks.peers.servers.nginx_uvicorn", address])


def listens(address: str) -> bool:
    """Whether a server is there; asked before one is, nginx would leave it out for 10 s."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(address) == 0


def main() -> None:
    """Start all, and again what dies."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    addresses = [f"{work.FOLDER}/uvicorn{i}" for i in range(work.WORKERS)]
    servers = {address: start(address) for address in addresses}
    while not all(map(listens, addresses)):
        time.sleep(0.01)
    conf = work.FOLDER / "nginx.conf"
    upstreams = " ".join(f"server unix:{address};" for address in addresses)
    conf.write_text(CONF.format(workers=work.WORKERS, folder=work.FOLDER, servers=upstreams, port=work.PORT))
    work.FOLDER.chmod(0o755)  # nginx's workers run as another user where root starts them
    words = ["nginx", "-c", conf, "-p", work.FOLDER, "-e", f"{work.FOLDER}/error.log"]
    nginx = subprocess.Popen(words)
    try:
        while True:
            time.sleep(RESTART_S)
            for address, process in servers.items():
                if process.poll() is not None:
                    servers[address] = start(address)
    finally:
        for process in (nginx, *servers.values()):
            process.terminate()


if __name__ == "__main__":
    serve(sys.argv[1]) if len(sys.argv) > 1 else main()
