"""The JSON-RPC server on its port."""

import asyncio
import json
import os
import socket

import pytest
import websockets
from camera_service import WebSocketJsonRpcServer


async def call(connection, method, id_=1):
    await connection.send(json.dumps({"jsonrpc": "2.0", "id": id_, "method": method}))
    return json.loads(await asyncio.wait_for(connection.recv(), 5))


def with_server(scenario, **options):
    """Run a scenario while the server is up on 8002."""

    async def run():
        server = WebSocketJsonRpcServer("0.0.0.0", 8002, **options)
        await server.start()
        try:
            return await scenario(server)
        finally:
            await server.stop()

    return asyncio.run(run())


def test_ping():
    async def scenario(server):
        async with websockets.connect("ws://127.0.0.1:8002/ws") as connection:
            return await call(connection, "ping")

    assert with_server(scenario) == {"jsonrpc": "2.0", "id": 1, "result": "pong"}


def test_unknown_method():
    async def scenario(server):
        async with websockets.connect("ws://localhost:8002/ws") as connection:
            return await call(connection, "no_such_method")

    assert with_server(scenario)["error"]["code"] == -32601


def test_many_clients():
    async def one(number):
        async with websockets.connect("ws://127.0.0.1:8002/ws") as connection:
            return (await call(connection, "ping", number))["id"]

    async def scenario(server):
        answered = await asyncio.gather(*(one(number) for number in range(10)))
        return answered, server.clients

    try:
        answered, clients = with_server(scenario)
    except OSError as e:
        if "[Errno 98]" in str(e):
            pytest.skip(f"Port 8002 already in use: {e}")
        raise
    assert answered == list(range(10))
    assert clients == 10


def test_every_client_reaches_this_server():
    # The production build sets SO_REUSEPORT, so this one does too.
    async def one():
        async with websockets.connect("ws://127.0.0.1:8002/ws") as connection:
            return (await call(connection, "whoami"))["result"]

    async def scenario(server):
        return [await one() for _ in range(20)]

    assert with_server(scenario, reuse_port=True) == [os.getpid()] * 20


def test_restart_on_the_same_port():
    async def scenario(server):
        async with websockets.connect("ws://127.0.0.1:8002/ws") as connection:
            return (await call(connection, "ping"))["result"]

    assert [with_server(scenario) for _ in range(3)] == ["pong"] * 3


def test_port_is_free_after_stop():
    async def scenario(server):
        return server.port

    port = with_server(scenario)
    with socket.socket() as s:
        assert s.connect_ex(("127.0.0.1", port)) != 0
