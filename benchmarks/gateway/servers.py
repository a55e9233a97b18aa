"""`python -m benchmarks.gateway.servers KIND PORT`: one of the HTTP libraries with the same four paths.

GET /get answers 1 KiB, POST /echo its body, POST /length the body's length, GET /stream 100 server-sent events.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import uvloop

from orch_gateway.memory import keep_memory

EVENTS = [b"data: %d\n\n" % number for number in range(100)]
KIB = b"x" * 1024
BACKLOG = 1024


def listening(port: int) -> socket.socket:
    """A socket of our own, as the supervisor's are."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", port))
    found.listen(BACKLOG)
    found.setblocking(False)
    return found


def answer(path: str, body: bytes) -> bytes:
    """The body of an answer that is whole."""
    return KIB if path == "/get" else b"%d" % len(body) if path == "/length" else body


async def orch_gateway(port: int) -> None:
    """The gateway's own server, without its application."""
    from orch_gateway.messages import BINARY, Request, Response
    from orch_gateway.messages import EVENTS as KIND
    from orch_gateway.server import Server

    async def handle(request: Request) -> Response:
        if request.path == "/stream":
            return Response(200, (), KIND, [], parts())
        return Response(200, (answer(request.path, request.body),), BINARY)

    server = Server(handle, lambda *_: None, max_body_bytes=2**28, max_connections=1024, keep_alive_s=75.0)
    await server.start([listening(port)])
    await asyncio.Event().wait()


async def parts() -> Any:
    """Events, with a turn of the loop between them."""
    for event in EVENTS:
        yield event
        await asyncio.sleep(0)


async def uvicorn(port: int) -> None:
    """Uvicorn with httptools."""
    import uvicorn

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kind = b"text/event-stream" if scope["path"] == "/stream" else b"application/octet-stream"
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
        if scope["path"] == "/stream":
            await send(start)
            async for event in parts():
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        pieces, more = [], True
        while more:
            message = await receive()
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = answer(scope["path"], b"".join(pieces))
        start["headers"].append((b"content-length", b"%d" % len(body)))
        await send(start)
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(app, http="httptools", loop="none", log_level="error", access_log=False, lifespan="off")
    await uvicorn.Server(config).serve(sockets=[listening(port)])


async def granian(port: int) -> None:
    """Granian's RSGI in our own process. Sockets that we open are not in its public interface."""
    from granian._futures import _future_watcher_wrapper, _new_cbscheduler
    from granian._granian import RSGIWorker, SocketHolder, WorkerSignal
    from granian.http import HTTP1Settings

    async def app(scope: Any, protocol: Any) -> None:
        if scope.path == "/stream":
            stream = protocol.response_stream(200, [("content-type", "text/event-stream")])
            async for event in parts():
                await stream.send_bytes(event)
            return
        body = await protocol()
        protocol.response_bytes(200, [("content-type", "application/octet-stream")], answer(scope.path, body))

    loop = asyncio.get_running_loop()
    holder = SocketHolder(listening(port).detach(), False, BACKLOG)
    tls = (False, None, None, None, "tls1.3", None, [], False)
    worker = RSGIWorker(
        1, (None, holder), None, 1, 512, 1, 30, BACKLOG, "1", HTTP1Settings(), None, False, None, *tls, (None, None)
    )
    scheduler = _new_cbscheduler(loop, _future_watcher_wrapper(app), impl_asyncio=True)
    worker.serve_async(scheduler, loop, WorkerSignal())
    await asyncio.Event().wait()


KINDS = {"orch": orch_gateway, "uvicorn": uvicorn, "granian": granian}

if __name__ == "__main__":
    keep_memory()  # as a gateway does; it helps all of them
    uvloop.run(KINDS[sys.argv[1]](int(sys.argv[2])))
