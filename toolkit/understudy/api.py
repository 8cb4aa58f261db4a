"""MediaMTX's control API, as far as sharing a server needs it (API v3 of v1.13 to v1.20).

The versions answer differently: bodies of success are empty before v1.15.5 and
``{"status":"ok"}`` since, errors are ``{"error":…}`` or ``{"status":"error","error":…}``,
``/v3/info`` exists since v1.15.2, and keys come and go. So what is not needed is not looked at,
what is missing has a default, and what has another type than it should is an error that names it.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from understudy.errors import ProductionError
from understudy.ready import basic

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

TIMEOUT_S = 5.0
PAGES_MAX = 1000
ITEMS_PER_PAGE = 100

SESSIONS: Final = (
    "rtspsessions",
    "rtspssessions",
    "rtmpconns",
    "rtmpsconns",
    "srtconns",
    "webrtcsessions",
    "moqsessions",
)
"""What can be listed and kicked, where that server is on and this version has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What a server says of itself.

    Attributes:
        version: ``v1.20.1``.
        started: When it started, in RFC 3339; "" where it does not say.
    """

    version: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PathState:
    """A path that there is now, configured or used.

    Attributes:
        name: Its name.
        conf_name: The configured path that it is of: itself, a pattern, or ``all_others``.
        ready: Whether somebody publishes to it.
        source: The kind of what publishes (``rtspSession``); "" if nothing does.
        tracks: Its codecs.
        readers: How many read it.
        bytes_received: From the publisher.
        bytes_sent: To readers.
    """

    name: str
    conf_name: str
    ready: bool
    source: str
    tracks: tuple[str, ...]
    readers: int
    bytes_received: int
    bytes_sent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A client's session.

    Attributes:
        kind: The list that it is in: ``rtspsessions``.
        id: Its id in that.
        path: The path that it publishes or reads; "" for none yet.
        state: ``publish``, ``read``, ``idle``.
        remote: The client's address.
    """

    kind: str
    id: str
    path: str
    state: str
    remote: str


class Api:
    """The control API of one server. Each call has a connection of its own.

    Every method raises ProductionError, with what the server said, if it refuses, answers what
    no version answers, or does not answer.

    Args:
        url: ``http://127.0.0.1:9997``; a user and password in it are sent along.
        credentials: User and password, where they are not in the URL.
        timeout_s: Seconds for each step of an answer.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: tuple[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ProductionError(f"Cannot use the control API at '{url}': that is no http:// URL")
        self.url = url.replace(f"{parts.netloc}", parts.netloc.rpartition("@")[2], 1)
        self.timeout_s = timeout_s
        self._host, self._port = parts.hostname, parts.port or 80
        self._headers = {"Connection": "close", "User-Agent": "understudy"}
        if parts.username is not None:
            credentials = unquote(parts.username), unquote(parts.password or "")
        if credentials is not None:
            name, _, value = basic(*credentials).strip().partition(": ")
            self._headers[name] = value

    def __repr__(self) -> str:
        return f"<Api http://{self._host}:{self._port}>"

    def info(self) -> Info | None:
        """What the server says of itself; None before v1.15.2, which does not."""
        value = self._get("/v3/info")
        if value is None:
            return None
        found = _object(value, "/v3/info")
        return Info(
            version=_text(found, "version", "/v3/info"), started=_text(found, "started", "/v3/info")
        )

    def settings(self) -> dict[str, Json]:
        """The server's settings, as they are in force."""
        path = "/v3/config/global/get"
        value = self._get(path)
        if value is None:
            raise self._error("GET", path, "404")
        return _object(value, path)

    def configured(self) -> dict[str, dict[str, Json]]:
        """The configured paths with their settings, by name."""
        path = "/v3/config/paths/list"
        return {_text(item, "name", path): item for item in self._items(path)}

    def add(self, name: str, **settings: Json) -> None:
        """Configure a path. It is answered before it is done: see `path`.

        Args:
            name: Its name.
            settings: In MediaMTX's words (``source="rtsp://…"``).
        """
        self._change("POST", f"/v3/config/paths/add/{_quoted(name)}", settings)

    def delete(self, name: str) -> bool:
        """Remove a configured path; False if there is none of that name."""
        return self._change("DELETE", f"/v3/config/paths/delete/{_quoted(name)}", missing=True)

    def paths(self) -> list[PathState]:
        """The paths that there are now."""
        where = "/v3/paths/list"
        return [_path(item, where) for item in self._items(where)]

    def path(self, name: str) -> PathState | None:
        """A path that there is now; None if there is not."""
        where = f"/v3/paths/get/{_quoted(name)}"
        value = self._get(where)
        return None if value is None else _path(_object(value, where), where)

    def sessions(self) -> list[Session]:
        """All sessions of all servers of it that are on, as far as this version lists them."""
        found = []
        for kind in SESSIONS:
            where = f"/v3/{kind}/list"
            for item in self._items(where, missing=True):
                found.append(
                    Session(
                        kind=kind,
                        id=_text(item, "id", where),
                        path=_text(item, "path", where),
                        state=_text(item, "state", where),
                        remote=_text(item, "remoteAddr", where),
                    )
                )
        return found

    def kick(self, session: Session) -> bool:
        """End a session; False if it has ended meanwhile."""
        return self._change("POST", f"/v3/{session.kind}/kick/{_quoted(session.id)}", missing=True)

    def _items(self, path: str, *, missing: bool = False) -> Iterator[dict[str, Json]]:
        """The items of all pages of a list; none where there is no such list, if it may miss."""
        for page in range(PAGES_MAX):
            value = self._get(f"{path}?page={page}&itemsPerPage={ITEMS_PER_PAGE}")
            if value is None:
                if missing:
                    return
                raise self._error("GET", path, "404")
            found = _object(value, path)
            items = found.get("items")
            if items is None:  # Go's empty list may be null
                items = []
            if not isinstance(items, list):
                raise _unlike(path, "items", items)
            for item in items:
                yield _object(item, path)
            pages = _number(found, "pageCount", path, 1)
            if not items or page + 1 >= pages:
                return

    def _get(self, path: str) -> Json:
        """The answer; None for what there is not."""
        status, body = self._ask("GET", path, None)
        if status == 404:
            return None
        if status != 200:
            raise self._error("GET", path, _said(status, body))
        try:
            value: Json = json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise self._error("GET", path, f"an answer that is no JSON: {_short(body)}") from exc
        if value is None:
            raise _unlike(path, "the answer", value)
        return value

    def _change(
        self,
        method: str,
        path: str,
        settings: Mapping[str, Json] | None = None,
        *,
        missing: bool = False,
    ) -> bool:
        """Change something; False for what there is not, if it may miss."""
        body = None if settings is None else json.dumps(settings).encode()
        status, answer = self._ask(method, path, body)
        if 200 <= status < 300:
            return True
        if status == 404 and missing:
            return False
        raise self._error(method, path, _said(status, answer))

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {**self._headers, **({"Content-Type": "application/json"} if body else {})}
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self.timeout_s)
        try:
            connection.request(method, path, body, headers)
            with connection.getresponse() as answer:
                return answer.status, answer.read()
        except TimeoutError as exc:
            raise self._error(method, path, f"no answer in {self.timeout_s:g} s") from exc
        except OSError as exc:
            raise self._error(method, path, exc.strerror or str(exc)) from exc
        except http.client.HTTPException as exc:
            said = f"no HTTP answer ({type(exc).__name__})"
            raise self._error(method, path, said) from exc
        finally:
            connection.close()

    def _error(self, method: str, path: str, said: str) -> ProductionError:
        hint = None
        if said.startswith("401"):
            hint = (
                "its authInternalUsers must let 'any' use the api from 127.0.0.1, as they do by "
                "default; or it has a password: UNDERSTUDY_MEDIAMTX_API_PASSWORD=… in the "
                "environment (docs/secrets.md)"
            )
        path = path.partition("?")[0]
        return ProductionError(
            f"Cannot use MediaMTX's control API: {method} {path} at {self._host}:{self._port}: "
            f"{said}",
            hint=hint,
        )


def _said(status: int, body: bytes) -> str:
    """What a server gives as the reason, in whichever shape."""
    text = ""
    try:
        value: Json = json.loads(body)
    except (ValueError, RecursionError):
        text = _short(body) if body.strip() else ""
    else:
        error = value.get("error") if isinstance(value, dict) else value
        text = " ".join(error.split()) if isinstance(error, str) else ""
    return f"{status} {text}".rstrip()


def _short(body: bytes) -> str:
    text = " ".join(body[:200].decode(errors="replace").split())
    return repr(text[:80] + "…" * (len(text) > 80))


def _quoted(name: str) -> str:
    return quote(name, safe="/")


def _path(item: Mapping[str, Json], where: str) -> PathState:
    source = item.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    tracks, readers = item.get("tracks"), item.get("readers")
    # Later versions speak of being available where earlier ones said ready.
    ready = any(item.get(word) is True for word in ("ready", "available"))
    return PathState(
        name=_text(item, "name", where),
        conf_name=_text(item, "confName", where),
        ready=ready,
        source=kind if isinstance(kind, str) else "",
        tracks=tuple(str(track) for track in tracks) if isinstance(tracks, list) else (),
        readers=len(readers) if isinstance(readers, list) else 0,
        bytes_received=_number(item, "bytesReceived", where, 0),
        bytes_sent=_number(item, "bytesSent", where, 0),
    )


def _object(value: Json, where: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise _unlike(where, "an object", value)
    return value


def _text(item: Mapping[str, Json], key: str, where: str) -> str:
    """A text that may be missing or null."""
    value = item.get(key)
    if value is None:
        if key in ("name", "id", "version"):
            raise _unlike(where, f"'{key}'", value)
        return ""
    if not isinstance(value, str):
        raise _unlike(where, f"'{key}'", value)
    return value


def _number(item: Mapping[str, Json], key: str, where: str, default: int) -> int:
    value = item.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise _unlike(where, f"'{key}'", value)
    return value


def _unlike(where: str, what: str, value: Json) -> ProductionError:
    text = json.dumps(value)
    text = text[:60] + "…" * (len(text) > 60)
    return ProductionError(
        f"Cannot understand MediaMTX's control API: GET {where}: {what} should not be {text}",
        hint="is it a MediaMTX, of v1.13 or newer?",
    )
