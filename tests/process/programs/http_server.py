"""A small HTTP server, as a command's replica: `http_server.py PORT [NOTES]`.

Of the standard library alone, so that it starts fast. Any request is answered by {"who": its process, "path": ...,
"body": ..., "headers": ...}, after `?ms=` milliseconds. /die ends the process. /events is a stream of three events with
a tenth of a second between them. With `Upgrade: websocket` it becomes an echo of lines. NOTES: a file that gets a line
with the body of each POST as it begins to run.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sys
from urllib.parse import parse_qs, urlsplit

WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
NOTES = os.open(sys.argv[2] if len(sys.argv) > 2 else os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


async def _stream(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
    for number in range(3):
        writer.write(b"data: %d\n\n" % number)
        await writer.drain()
        await asyncio.sleep(0.1)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
    accepted = base64.b64encode(hashlib.sha1(f"{key}{WEBSOCKET}".encode()).digest()).decode()
    head = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    writer.write(f"{head}sec-websocket-accept: {accepted}\r\n\r\n".encode())
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()


async def _connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            method, target, _ = line.decode().split()
            headers = {}
            while (line := await reader.readline()).strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            url = urlsplit(target)
            if method == "POST":
                os.write(NOTES, body + b"\n")
            if url.path == "/die":
                os._exit(1)
            if url.path == "/events":
                await _stream(writer)
                return
            if headers.get("upgrade") == "websocket":
                await _echo(reader, writer, headers.get("sec-websocket-key", ""))
                return
            await asyncio.sleep(float(parse_qs(url.query).get("ms", ["0"])[0]) / 1000)
            told = {"who": os.getpid(), "path": target, "body": body.decode(), "headers": headers}
            answer = json.dumps(told).encode()
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(answer)}\r\n\r\n"
            writer.write(head.encode() + answer)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def _main(port: int) -> None:
    server = await asyncio.start_server(_connection, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
