"""Which port each server listens on, and what the kernel tells of its connections."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from orch.errors import AddressInUse
from orch.supervising.connections import connections, listed
from orch.supervising.ports import Ports, is_free


def test_each_slot_has_the_next_port() -> None:
    """The first and those behind it."""
    ports = Ports(9100, free=lambda port: True)
    assert [ports.take(slot) for slot in range(3)] == [9100, 9101, 9102]
    assert (ports.of(1), ports.of(7)) == (9101, None)


def test_ports_that_are_taken_are_passed_over() -> None:
    """By other programs, and by our own slots."""
    ports = Ports(9100, free=lambda port: port != 9100)
    assert [ports.take(slot) for slot in range(3)] == [9101, 9102, 9103]


def test_of_a_port_that_was_passed_over_one_word_is_said() -> None:
    """Which is taken, and what is used instead; our own slots are no news, and nothing is said twice."""
    taken = {9100}
    ports = Ports(9100, free=lambda port: port not in taken)
    ports.take(0)
    assert ports.told() == "listens on port 9101: port 9100 is taken (--first-port chooses)"
    ports.take(0)
    ports.take(1)
    assert (ports.of(1), ports.told()) == (9102, "")
    taken |= {9101, 9102, 9103, 9104}
    ports.take(2)
    assert ports.told() == "listens on port 9105: 2 ports from 9103 on are taken (--first-port chooses)"


def test_a_slot_that_has_served_keeps_its_port() -> None:
    """Proxies know it; before that, a start that met somebody else tries another."""
    taken: set[int] = set()
    ports = Ports(9100, free=lambda port: port not in taken)
    assert ports.take(0) == 9100
    taken.add(9100)
    assert ports.take(0) == 9101
    ports.serves(0)
    taken.add(9101)
    assert ports.take(0) == 9101


def test_when_none_is_left_it_says_so() -> None:
    """65535 is the last."""
    with pytest.raises(AddressInUse, match="no port from 65535 on is free; choose another --first-port"):
        Ports(65535, free=lambda port: False).take(0)


def test_the_kernel_tells_whose_turn_it_is_on_a_connection() -> None:
    """Seen at the server's end alone, from the request's arrival to the answer's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        assert connections(port) == []
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"request")
            (waiting,) = connections(port)
            assert waiting.unread_bytes == len(b"request")
            ours, _ = server.accept()
            with ours:
                ours.recv(100)
                (running,) = connections(port)
                assert (running.unread_bytes, running.num_received, running.num_sent) == (0, 1, 0)
                assert running.is_busy(computes=False)
                ours.sendall(b"answer")
                (answered,) = connections(port)
                assert (answered.num_received, answered.num_sent) == (1, 1)
                assert answered.sent_ago_s <= answered.received_ago_s
    assert is_free(port)


def test_without_netlink_every_open_connection_is_one_that_may_be_busy(tmp_path: Path) -> None:
    """What proc(5) has of them is no time; other ports, and those that only listen, are left out."""
    rows = [
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
        "   0: 0100007F:238C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0",
        "   1: 0100007F:238C 0100007F:D431 01 00000003:00000010 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0",
        "   2: 0100007F:238D 0100007F:D432 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0",
    ]
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text("\n".join(rows) + "\n")
    (found,) = listed(0x238C, tmp_path)
    assert (found.unread_bytes, found.unsent_bytes) == (16, 3)
    (quiet,) = listed(0x238D, tmp_path)
    assert quiet.is_busy(computes=False)
    (tmp_path / "net" / "tcp6").mkdir()
    with pytest.raises(OSError):  # noqa: PT011  what cannot be read is not nobody
        list(listed(0x238D, tmp_path))
