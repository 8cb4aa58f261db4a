"""A camera service: JSON-RPC over WebSocket on 8002, health over HTTP on 8003, MediaMTX behind it.

``python camera_service.py`` runs it until SIGTERM; ``--health-only`` leaves the WebSocket out.
"""

import asyncio
import http.client
import http.server
import json
import os
import signal
import sys
import threading

import websockets

WEBSOCKET_PORT = 8002
HEALTH_PORT = 8003


class MediaMTXError(Exception):
    """MediaMTX does not answer, or answers with an error."""


class MediaMTXController:
    """Talks to the MediaMTX of this host."""

    def __init__(self, host="127.0.0.1", api_port=9997):
        self.host = host
        self.api_port = api_port

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.host, self.api_port, timeout=5)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            text = answer.read()
        except OSError as e:
            raise MediaMTXError(f"MediaMTX on port {self.api_port} does not answer: {e}") from e
        finally:
            connection.close()
        if answer.status != 200:
            raise MediaMTXError(f"{method} {path}: {answer.status} {text.decode()}")
        return json.loads(text) if text else {}

    def health_check(self):
        return "items" in self.request("GET", "/v3/paths/list")

    def list_paths(self):
        names = []
        page = pages = 0
        while page <= pages:
            answer = self.request("GET", f"/v3/config/paths/list?page={page}")
            names += [item["name"] for item in answer["items"]]
            pages = answer["pageCount"] - 1
            page += 1
        return names

    def create_stream(self, name):
        self.request("POST", f"/v3/config/paths/add/{name}", {"source": "publisher"})

    def delete_stream(self, name):
        self.request("DELETE", f"/v3/config/paths/delete/{name}")


class WebSocketJsonRpcServer:
    """JSON-RPC 2.0 for the clients."""

    def __init__(self, host="0.0.0.0", port=WEBSOCKET_PORT, mediamtx=None, reuse_port=None):
        self.host = host
        self.port = port
        self.mediamtx = mediamtx
        self.reuse_port = reuse_port
        self.clients = 0
        self._server = None

    async def start(self):
        self._server = await websockets.serve(
            self._handle, self.host, self.port, reuse_port=self.reuse_port
        )

    async def stop(self):
        if self._server:
            self._server.close()
            await self._server.wait_closed()

    async def _handle(self, websocket):
        self.clients += 1
        async for message in websocket:
            request = json.loads(message)
            answer = {"jsonrpc": "2.0", "id": request.get("id")}
            try:
                answer["result"] = await self._call(request["method"])
            except KeyError:
                answer["error"] = {"code": -32601, "message": "Method not found"}
            except MediaMTXError as e:
                answer["error"] = {"code": -32001, "message": str(e)}
            await websocket.send(json.dumps(answer))

    async def _call(self, method):
        methods = {"ping": self._ping, "whoami": self._whoami, "get_streams": self._get_streams}
        return await methods[method]()

    async def _ping(self):
        return "pong"

    async def _whoami(self):
        return os.getpid()

    async def _get_streams(self):
        return await asyncio.to_thread(self.mediamtx.list_paths)


class HealthServer:
    """The health endpoint, in a thread."""

    def __init__(self, host="0.0.0.0", port=HEALTH_PORT, mediamtx=None):
        self.mediamtx = mediamtx
        self._server = http.server.ThreadingHTTPServer((host, port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def start(self):
        self._thread.start()

    def stop(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def status(self):
        try:
            healthy = self.mediamtx is None or self.mediamtx.health_check()
        except MediaMTXError:
            healthy = False
        return {"status": "healthy" if healthy else "unhealthy", "pid": os.getpid()}

    def _handler(self):
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                status = owner.status() if self.path == "/health/ready" else None
                code = 404 if status is None else 200 if status["status"] == "healthy" else 503
                body = json.dumps(status or {"error": "not found"}).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        return Handler


class ServiceManager:
    """Starts and stops all of it."""

    def __init__(self, config=None):
        config = config or {}
        self.mediamtx = MediaMTXController(api_port=config.get("api_port", 9997))
        self.websocket = WebSocketJsonRpcServer(
            port=config.get("websocket_port", WEBSOCKET_PORT), mediamtx=self.mediamtx
        )
        self.health_port = config.get("health_port", HEALTH_PORT)
        self.health = None

    async def start(self):
        await self.websocket.start()
        try:
            self.health = HealthServer(port=self.health_port, mediamtx=self.mediamtx)
        except OSError:
            await self.websocket.stop()
            raise
        self.health.start()

    async def stop(self):
        if self.health:
            await asyncio.to_thread(self.health.stop)
        await self.websocket.stop()


async def main(health_only):
    """Run until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    if health_only:
        service = HealthServer()
        service.start()
        print("ready", flush=True)
        await ended.wait()
        await asyncio.to_thread(service.stop)
        return
    service = ServiceManager()
    await service.start()
    print("ready", flush=True)
    await ended.wait()
    await service.stop()


if __name__ == "__main__":
    asyncio.run(main("--health-only" in sys.argv))
