"""The TCP connections of a server on this host, asked of the kernel: sock_diag(7), else /proc/net/tcp.

Anybody may ask for these facts of all connections of the network namespace; nothing of what is sent can be seen.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orch.supervising.servers import Connection

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLM_F_REQUEST_DUMP = 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
INET_DIAG_INFO = 2
TCP_ESTABLISHED = 1
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_REQUEST: Final = struct.Struct("=BBBBI")  # inet_diag_req_v2 up to its socket: family, protocol, ext, pad, states
_PORTS: Final = struct.Struct("!HH")
_NO_COOKIE: Final = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_QUEUES: Final = struct.Struct("=II")  # inet_diag_msg: idiag_rqueue, idiag_wqueue
_QUEUES_AT, _ATTRIBUTES_AT = 56, 72
_ATTRIBUTE: Final = struct.Struct("=HH")
_LAST: Final = struct.Struct("=IIII")  # tcp_info: last_data_sent, last_ack_sent, last_data_recv, last_ack_recv, in ms
_LAST_AT = 44
_SEGMENTS: Final = struct.Struct("=II")  # tcp_info: data_segs_in, data_segs_out; since Linux 4.6
_SEGMENTS_AT = 152
READ_BYTES: Final = 256 * 1024
ASK_S: Final = 1.0  # the kernel answers at once


def connections(port: int) -> list[Connection]:
    """Those that are established at this local port, at the server's end. A kernel that tells less gives less.

    Raises:
        OSError: nothing can be found out now, such as without a descriptor to ask with.
    """
    try:
        return [each for family in (socket.AF_INET, socket.AF_INET6) for each in _ask(family, port)]
    except OSError:  # a sandbox without netlink
        return list(listed(port))


def count(address: str) -> int | None:
    """How many there are at `host:port`; None: that cannot be found out now."""
    try:
        return len(connections(port_of(address)))
    except OSError:
        return None


def port_of(address: str) -> int:
    """The port of `host:port`."""
    return int(address.rpartition(":")[2])


def _ask(family: int, port: int) -> list[Connection]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0, 1 << TCP_ESTABLISHED)
    request += _PORTS.pack(port, 0) + bytes(32) + _NO_COOKIE
    found: list[Connection] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG) as asked:
        asked.settimeout(ASK_S)
        length = _HEADER.size + len(request)
        asked.send(_HEADER.pack(length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 1, 0) + request)
        while True:
            datagram = asked.recv(READ_BYTES)
            at = 0
            while at + _HEADER.size <= len(datagram):
                length, kind, *_ = _HEADER.unpack_from(datagram, at)
                body = datagram[at + _HEADER.size : at + length]
                if kind == NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR or length < _HEADER.size:
                    raise OSError("sock_diag refuses")
                if _PORTS.unpack_from(body, 4)[0] == port:
                    found.append(parse(body))
                at += (length + 3) & ~3


def parse(body: bytes) -> Connection:
    """One inet_diag_msg and its attributes."""
    unread, unsent = _QUEUES.unpack_from(body, _QUEUES_AT)
    at = _ATTRIBUTES_AT
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        info = body[at + _ATTRIBUTE.size : at + length]
        if kind == INET_DIAG_INFO and len(info) >= _SEGMENTS_AT + _SEGMENTS.size:
            sent_ms, _, received_ms, acked_ms = _LAST.unpack_from(info, _LAST_AT)
            received, sent = _SEGMENTS.unpack_from(info, _SEGMENTS_AT)
            return Connection(unread, unsent, received, sent, received_ms / 1e3, sent_ms / 1e3, acked_ms / 1e3)
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return Connection(unread, unsent)


def listed(port: int, proc: Path = Path("/proc")) -> Iterator[Connection]:
    """What proc(5) has of them, which is not when they were used.

    Raises:
        OSError: it cannot be read.
    """
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text().splitlines()[1:]
        except FileNotFoundError:  # a kernel without that family
            continue
        for line in lines:
            _, local, _, state, queues, *_ = line.split()
            if int(state, 16) == TCP_ESTABLISHED and int(local.rpartition(":")[2], 16) == port:
                unsent, _, unread = queues.partition(":")
                yield Connection(int(unread, 16), int(unsent, 16))
