"""The control API, version 3: the calls that the users of a MediaMTX make.

Bodies of success are empty before v1.15.5 and ``{"status":"ok"}`` since; ``/v3/info`` exists
since v1.15.2. A call answers before its change is applied, as the real one's does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from understudy.standins.mediamtx.http import Request, Response, json_response, not_found
from understudy.standins.mediamtx.settings import SettingsError

if TYPE_CHECKING:
    from understudy.standins.mediamtx.settings import Settings
    from understudy.standins.mediamtx.state import State, Stream
    from understudy.standins.plain_yaml import Json

_EMPTY_LISTS = {
    "hlsmuxers": "hls",
    "rtmpconns": "rtmp",
    "srtconns": "srt",
    "webrtcsessions": "webrtc",
    "moqsessions": "moq",
}
"""Lists of servers that carry nothing here, and the switch of each server."""


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        """Answer with this HTTP status and, in the body, this text."""
        super().__init__(text)
        self.status = status


class Api:
    """The control API of one stand-in."""

    def __init__(self, state: State) -> None:
        """Serve what ``state`` knows."""
        self._state = state

    def answer(self, request: Request) -> Response:
        """Answer one request."""
        state = self._state
        if not state.allowed("api", request.ip, request.credentials()):
            headers = {"WWW-Authenticate": 'Basic realm="mediamtx"'}
            if state.version < (1, 15, 5):
                return Response(401, headers=headers)
            denied = json_response(401, {"status": "error", "error": "authentication error"})
            denied.headers.update(headers)
            return denied
        try:
            with state.lock:
                return self._route(request) or not_found()
        except (ApiError, SettingsError) as exc:
            state.log("error", f"[API] {exc}")
            error: dict[str, Json] = {"error": str(exc)}
            if state.version >= (1, 15, 5):
                error = {"status": "error", **error}
            return json_response(exc.status if isinstance(exc, ApiError) else 400, error)

    def _route(self, request: Request) -> Response | None:
        """The answer; None where the real router knows no such path and method."""
        state, method = self._state, request.method
        if not request.path.startswith("/v3/"):
            return None
        words = request.path.removeprefix("/v3/").split("/")
        match method, words:
            case "GET", ["info"] if state.version >= (1, 15, 2):
                version = "v" + ".".join(map(str, state.version))
                return json_response(200, {"version": version, "started": state.started})
            case "GET", ["config", "global", "get"]:
                return json_response(200, state.settings.public())
            case "PATCH", ["config", "global", "patch"]:
                return self._change(state.settings.patched(_body(request)))
            case "GET", ["config", "pathdefaults", "get"]:
                return json_response(200, state.settings.path_defaults())
            case "PATCH", ["config", "pathdefaults", "patch"]:
                return self._change(state.settings.patched({"pathDefaults": _body(request)}))
            case "GET", ["config", "paths", "list"]:
                names = sorted(state.settings.paths)
                return _listed(request, [state.settings.public_path(name) for name in names])
            case _, ["config", "paths", verb, *name]:
                return self._configure_path(request, verb, "/".join(name))
            case "GET", ["paths", "list"]:
                return _listed(request, [self._path(name) for name in self._path_names()])
            case "GET", ["paths", "get", *name]:
                if (wanted := "/".join(name)) not in self._path_names():
                    raise ApiError(404, "path not found")
                return json_response(200, self._path(wanted))
            case _, [("rtspsessions" | "rtspconns") as kind, *rest] if state.applied.flag("rtsp"):
                return self._rtsp(request, kind, rest)
            case "GET", [kind, "list"] if (switch := _EMPTY_LISTS.get(kind)) is not None:
                # A switch that this version does not know is off.
                on = state.applied.values.get(switch) is True
                return _listed(request, []) if on else None
        return None

    def _change(self, settings: Settings) -> Response:
        self._state.change(settings)
        return self._ok()

    def _ok(self) -> Response:
        if self._state.version < (1, 15, 5):
            return Response(200)
        return json_response(200, {"status": "ok"})

    def _configure_path(self, request: Request, verb: str, name: str) -> Response | None:
        settings = self._state.settings
        if (request.method, verb) not in (
            ("GET", "get"),
            ("POST", "add"),
            ("PATCH", "patch"),
            ("POST", "replace"),
            ("DELETE", "delete"),
        ):
            return None
        if not name:
            raise ApiError(400, "invalid name")
        if verb == "get":
            if name not in settings.paths:
                raise ApiError(404, "path configuration not found")
            return json_response(200, settings.public_path(name))
        if verb == "add" and name in settings.paths:
            raise ApiError(400, "path already exists")
        if verb in ("patch", "delete") and name not in settings.paths:
            raise ApiError(404, "path not found")
        if verb == "delete":
            return self._change(settings.without_path(name))
        return self._change(settings.with_path(name, _body(request), keep=verb == "patch"))

    def _path_names(self) -> list[str]:
        return sorted({*self._state.applied.fixed_paths(), *self._state.streams})

    def _path(self, name: str) -> dict[str, Json]:
        stream = self._state.streams.get(name)
        return {
            "name": name,
            "confName": stream.settings_name if stream else name,
            "source": {"type": "rtspSession", "id": stream.publisher.id} if stream else None,
            "ready": stream is not None,
            "readyTime": stream.ready if stream else None,
            "tracks": [*stream.tracks()] if stream else [],
            "bytesReceived": stream.publisher.received if stream else 0,
            "bytesSent": sum(reader.sent for reader in stream.readers) if stream else 0,
            "readers": _readers(stream),
        }

    def _rtsp(self, request: Request, kind: str, rest: list[str]) -> Response | None:
        sessions = self._state.sessions
        match request.method, rest:
            case "GET", ["list"]:
                return _listed(request, [session.public() for session in sessions.values()])
            case "GET", ["get", id_] if id_ in sessions:
                return json_response(200, sessions[id_].public())
            case "POST", ["kick", id_] if id_ in sessions and kind == "rtspsessions":
                sessions[id_].close()
                return self._ok()
            case ("GET", ["get", _]) | ("POST", ["kick", _]):
                raise ApiError(404, "session not found")
        return None


def _readers(stream: Stream | None) -> list[Json]:
    if stream is None:
        return []
    return [{"type": "rtspSession", "id": reader.id} for reader in stream.readers]


def _body(request: Request) -> Json:
    try:
        value: Json = json.loads(request.body)
    except ValueError as exc:
        text = "unexpected end of JSON input" if not request.body else f"invalid JSON: {exc}"
        raise ApiError(400, text) from exc
    return value


def _listed(request: Request, items: list[dict[str, Json]]) -> Response:
    """A page of a list: 100 items unless ``?itemsPerPage=`` says otherwise, from ``?page=`` 0."""
    numbers = {}
    for name, default in (("itemsPerPage", 100), ("page", 0)):
        text = request.parameter(name)
        if text and not (text.isascii() and text.isdigit()):
            raise ApiError(400, f'strconv.ParseUint: parsing "{text}": invalid syntax')
        numbers[name] = int(text) if text else default
    size, page = numbers["itemsPerPage"], numbers["page"]
    if size == 0:
        raise ApiError(400, "invalid items per page")
    return json_response(
        200,
        {
            "itemCount": len(items),
            "pageCount": -(-len(items) // size),
            "items": [*items[page * size : (page + 1) * size]],
        },
    )
