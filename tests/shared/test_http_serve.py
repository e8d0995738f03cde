"""Listening, and stopping by signals."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from shared.http.asgi import send_body
from shared.http.serve import PortTaken, bind, run, server_options
from shared.kit.clock import monotonic
from shared.testing.serving import serving


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with bind("127.0.0.1", 0) as found:
        yield found


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    kinds = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(kind) for kind in kinds]
    yield
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)
    gc.unfreeze()  # other tests look for what is left behind


class App:
    """Answers, and records how it was started and stopped."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.events: list[str] = []
        self.frozen = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await send_body(send, 200, [], b"hello")
            return
        await receive()
        self.events.append("start")
        if self.fails:
            await send({"type": "lifespan.startup.failed", "message": "no"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.events.append("stop")
        self.frozen = gc.get_freeze_count()
        await send({"type": "lifespan.shutdown.complete"})


def test_a_free_port_is_taken(listener: socket.socket) -> None:
    assert listener.getsockname()[1] > 0


def test_a_taken_port_is_named(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(PortTaken, match=f"Port {port} on 127.0.0.1 is taken"):
        bind("127.0.0.1", port)


def test_an_address_of_another_machine_is_an_os_error() -> None:
    with pytest.raises(OSError, match="assign") as failed:
        bind("192.0.2.1", 0)
    assert failed.value.errno == errno.EADDRNOTAVAIL


def test_ipv6() -> None:
    with bind("::1", 0) as found:
        assert found.family == socket.AF_INET6


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(listener: socket.socket, kind: signal.Signals) -> None:
    app, exits, answers = App(), [], []

    def ask() -> None:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with urllib.request.urlopen(url, timeout=5) as answer:
            answers.append(answer.read())
        os.kill(os.getpid(), signal.SIGHUP)  # the terminal closes: that ends nothing
        os.kill(os.getpid(), kind)

    client = threading.Thread(target=ask)
    client.start()
    run(app, listener, drain_s=lambda: 1, on_exit=lambda: exits.append("exit"))
    client.join()
    assert answers == [b"hello"]
    assert exits == ["exit"]
    assert app.events == ["start", "stop"]
    assert app.frozen > 10_000, "full collections would walk through all that was loaded"


def test_a_second_signal_waits_for_nobody(listener: socket.socket) -> None:
    class Stuck(App):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await super().__call__(scope, receive, send)
                return
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.get_running_loop().create_future()

    app, port = Stuck(), listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        run(app, listener, drain_s=lambda: 60, on_exit=lambda: None)
        assert app.events == ["start", "stop"]


@pytest.mark.slow
def test_a_drain_takes_as_long_as_is_set_when_it_begins(listener: socket.socket) -> None:
    limits = [60.0]

    class Stuck(App):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await super().__call__(scope, receive, send)
                return
            limits[0] = 0.1  # the configuration has changed since the start
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.get_running_loop().create_future()

    with socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        started = monotonic()
        run(Stuck(), listener, drain_s=lambda: limits[0], on_exit=lambda: None)
        assert monotonic() - started < 5


def test_an_application_that_cant_start_is_no_success(listener: socket.socket) -> None:
    with pytest.raises(SystemExit) as ended:
        run(App(fails=True), listener, drain_s=lambda: 1, on_exit=lambda: None)
    assert ended.value.code == 3


async def test_nobody_can_name_their_own_address() -> None:
    clients: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await App()(scope, receive, send)
            return
        clients.append(scope["client"][0])
        await send_body(send, 200, [], b"")

    async with serving(app) as base_url, httpx.AsyncClient() as client:
        answer = await client.get(base_url, headers={"x-forwarded-for": "10.9.9.9"})
    assert clients == ["127.0.0.1"]
    assert "server" not in answer.headers


def test_the_drain_is_at_least_a_second() -> None:
    assert server_options(drain_s=0)["timeout_graceful_shutdown"] == 1
    assert server_options(drain_s=7.4)["timeout_graceful_shutdown"] == 7
