"""The proxy does what is asked of it, to the requests that are meant, and counts only what happened."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import LOOPBACK, Ambush, Fault, Proxy

MARK = b"submit"


class Server(socketserver.ThreadingTCPServer):
    """Answers each request, a line, with the same in capitals; remembers what it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), Handler)
        self.requests: list[bytes] = []


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        for line in self.rfile:
            self.server.requests.append(line)
            self.wfile.write(line.upper())


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.server_address[1], mark=MARK) as proxy:
        yield proxy


def ask(proxy: Proxy, request: bytes, *, timeout_s: float = 5.0) -> bytes:
    """Send a request on a connection of its own; return what came, empty where the connection broke."""
    with socket.create_connection((LOOPBACK, proxy.port), timeout=timeout_s) as connection:
        connection.sendall(request)
        try:
            return connection.recv(100)
        except ConnectionResetError:
            return b""


def wait_for_requests(server: Server, number: int) -> list[bytes]:
    deadline = time.monotonic() + 5
    while len(server.requests) < number and time.monotonic() < deadline:
        time.sleep(0.01)
    return server.requests


def test_without_a_fault_everything_passes(proxy: Proxy) -> None:
    assert ask(proxy, b"submit 1\n") == b"SUBMIT 1\n"
    assert proxy.marked == 1
    assert not proxy.happened


def test_a_dropped_reply_leaves_the_request_with_the_server(server: Server, proxy: Proxy) -> None:
    proxy.arm(Ambush(fault=Fault.REPLY_DROPPED))
    assert ask(proxy, b"submit 1\n") == b""
    assert server.requests == [b"submit 1\n"]
    assert proxy.happened == {Fault.REPLY_DROPPED: 1}


def test_requests_without_the_mark_are_left_alone(proxy: Proxy) -> None:
    proxy.arm(Ambush(fault=Fault.REPLY_DROPPED))
    assert ask(proxy, b"query\n") == b"QUERY\n"
    assert not proxy.happened


def test_a_mark_that_comes_in_two_portions_is_seen(proxy: Proxy) -> None:
    proxy.arm(Ambush(fault=Fault.REPLY_DROPPED))
    with socket.create_connection((LOOPBACK, proxy.port), timeout=5) as connection:
        connection.sendall(b"please sub")
        time.sleep(0.2)
        connection.sendall(b"mit\n")
        assert connection.recv(100) == b""


def test_a_cut_request_is_never_whole_at_the_server(server: Server, proxy: Proxy) -> None:
    proxy.arm(Ambush(fault=Fault.REQUEST_CUT))
    assert ask(proxy, b"submit number 1\n") == b""
    assert wait_for_requests(server, 1) == [b"submit n"]
    assert proxy.happened == {Fault.REQUEST_CUT: 1}


def test_a_delayed_request_arrives_although_its_client_has_gone(server: Server, proxy: Proxy) -> None:
    proxy.arm(Ambush(fault=Fault.REQUEST_DELAYED, delay_s=0.5))
    with pytest.raises(TimeoutError):
        ask(proxy, b"submit 1\n", timeout_s=0.1)
    assert server.requests == []
    assert wait_for_requests(server, 1) == [b"submit 1\n"]


def test_a_delayed_reply_comes_late_and_only_once(proxy: Proxy) -> None:
    proxy.arm(Ambush(fault=Fault.REPLY_DELAYED, delay_s=0.3))
    began = time.monotonic()
    assert ask(proxy, b"submit 1\n") == b"SUBMIT 1\n"
    assert time.monotonic() - began >= 0.3


def test_refused_means_that_nobody_listens_until_it_is_healed(proxy: Proxy) -> None:
    proxy.arm(Ambush(fault=Fault.REFUSED))
    with pytest.raises(ConnectionRefusedError):
        ask(proxy, b"submit 1\n")
    proxy.heal()
    assert ask(proxy, b"submit 1\n") == b"SUBMIT 1\n"


def test_a_fault_meets_as_many_requests_as_was_said(proxy: Proxy) -> None:
    proxy.arm(Ambush(fault=Fault.REPLY_DROPPED, times=2))
    assert [ask(proxy, b"submit\n") for _ in range(4)] == [b"", b"", b"SUBMIT\n", b"SUBMIT\n"]


def test_the_same_seed_chooses_the_same_requests(server: Server) -> None:
    def chosen(seed: int) -> list[bool]:
        with Proxy(server.server_address[1], mark=MARK, seed=seed) as proxy:
            proxy.arm(Ambush(fault=Fault.REPLY_DROPPED, share=0.5))
            return [ask(proxy, b"submit\n") == b"" for _ in range(20)]

    assert chosen(1) == chosen(1) != chosen(2)


def test_a_server_that_is_down_looks_like_a_broken_connection(server: Server, proxy: Proxy) -> None:
    server.server_close()
    assert ask(proxy, b"submit\n") == b""
