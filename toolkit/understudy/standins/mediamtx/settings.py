"""MediaMTX's settings: its file, then ``MTX_*`` of the environment, which wins.

Names and defaults are those of MediaMTX's ``internal/conf``, v1.13.1 to v1.20.1. A key that is
unknown is fatal in the file and ignored in the environment, as there; of the keys that came
later than v1.13.1 only the ``moq…`` ones depend on the version here.
"""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.standins import plain_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from understudy.standins.plain_yaml import Json

    Version: TypeAlias = tuple[int, ...]

SEARCHED = (
    "mediamtx.yml",
    "/usr/local/etc/mediamtx.yml",
    "/usr/etc/mediamtx.yml",
    "/etc/mediamtx/mediamtx.yml",
)
"""Where a server that was given no file looks for one, in this order."""

_LISTENER_SETTINGS = ("Encryption", "ServerKey", "ServerCert", "AllowOrigins", "TrustedProxies")


def _http(name: str, address: str, *, on: bool) -> dict[str, Json]:
    """The settings that every HTTP listener has."""
    values: tuple[Json, ...] = (False, "server.key", "server.crt", ["*"], [])
    named = dict(zip((name + part for part in _LISTENER_SETTINGS), values, strict=True))
    return {name: on, f"{name}Address": address, **named}


_PERMISSION: dict[str, Json] = {"action": "", "path": ""}
_USER: dict[str, Json] = {"user": "", "pass": "", "ips": [], "permissions": [_PERMISSION]}
_ICE_SERVER: dict[str, Json] = {"url": "", "username": "", "password": "", "clientOnly": False}

_ITEMS: dict[str, dict[str, Json]] = {
    "authInternalUsers": _USER,
    "authHTTPExclude": _PERMISSION,
    "authJWTExclude": _PERMISSION,
    "permissions": _PERMISSION,
    "webrtcICEServers2": _ICE_SERVER,
}
"""What one item looks like, of the lists whose items have names."""

_PATH: dict[str, Json] = {
    "source": "publisher",
    "sourceFingerprint": "",
    "sourceOnDemand": False,
    "sourceOnDemandStartTimeout": "10s",
    "sourceOnDemandCloseAfter": "10s",
    "maxReaders": 0,
    "srtReadPassphrase": "",
    "fallback": "",
    "useAbsoluteTimestamp": False,
    "alwaysAvailable": False,
    "alwaysAvailableFile": "",
    "alwaysAvailableTracks": [],
    "record": False,
    "recordPath": "./recordings/%path/%Y-%m-%d_%H-%M-%S-%f",
    "recordFormat": "fmp4",
    "recordPartDuration": "1s",
    "recordMaxPartSize": "50M",
    "recordSegmentDuration": "1h",
    "recordDeleteAfter": "1d",
    "overridePublisher": True,
    "srtPublishPassphrase": "",
    "rtspTransport": "automatic",
    "rtspAnyPort": False,
    "rtspRangeType": "",
    "rtspRangeStart": "",
    "rtspUDPReadBufferSize": 0,
    "rtpSDP": "",
    "mpegtsUDPReadBufferSize": 0,
    "rtpUDPReadBufferSize": 0,
    "whepBearerToken": "",
    "whepSTUNGatherTimeout": "5s",
    "whepHandshakeTimeout": "10s",
    "whepTrackGatherTimeout": "2s",
    "sourceRedirect": "",
    "runOnInit": "",
    "runOnInitRestart": False,
    "runOnDemand": "",
    "runOnDemandRestart": False,
    "runOnDemandStartTimeout": "10s",
    "runOnDemandCloseAfter": "10s",
    "runOnUnDemand": "",
    "runOnReady": "",
    "runOnReadyRestart": False,
    "runOnNotReady": "",
    "runOnRead": "",
    "runOnReadRestart": False,
    "runOnUnread": "",
    "runOnRecordSegmentCreate": "",
    "runOnRecordSegmentComplete": "",
}

_GLOBAL: dict[str, Json] = {
    "logLevel": "info",
    "logDestinations": ["stdout"],
    "logStructured": False,
    "logFile": "mediamtx.log",
    "sysLogPrefix": "mediamtx",
    "dumpPackets": False,
    "readTimeout": "10s",
    "writeTimeout": "10s",
    "writeQueueSize": 512,
    "udpMaxPayloadSize": 1452,
    "udpReadBufferSize": 0,
    "runOnConnect": "",
    "runOnConnectRestart": False,
    "runOnDisconnect": "",
    "authMethod": "internal",
    "authInternalUsers": [
        {
            "user": "any",
            "pass": "",
            "ips": [],
            "permissions": [
                {"action": action, "path": ""} for action in ("publish", "read", "playback")
            ],
        },
        {
            "user": "any",
            "pass": "",
            "ips": ["127.0.0.1", "::1"],
            "permissions": [
                {"action": action, "path": ""} for action in ("api", "metrics", "pprof")
            ],
        },
    ],
    "authHTTPAddress": "",
    "authHTTPFingerprint": "",
    "authHTTPExclude": [{"action": action, "path": ""} for action in ("api", "metrics", "pprof")],
    "authJWTJWKS": "",
    "authJWTJWKSFingerprint": "",
    "authJWTClaimKey": "mediamtx_permissions",
    "authJWTExclude": [],
    "authJWTInHTTPQuery": True,
    "authJWTIssuer": "",
    "authJWTAudience": "",
    **_http("api", ":9997", on=False),
    **_http("metrics", ":9998", on=False),
    **_http("pprof", ":9999", on=False),
    **_http("playback", ":9996", on=False),
    "rtsp": True,
    "rtspTransports": ["udp", "multicast", "tcp"],
    "rtspEncryption": "no",
    "rtspAddress": ":8554",
    "rtspsAddress": ":8322",
    "rtpAddress": ":8000",
    "rtcpAddress": ":8001",
    "multicastIPRange": "224.1.0.0/16",
    "multicastRTPPort": 8002,
    "multicastRTCPPort": 8003,
    "srtpAddress": ":8004",
    "srtcpAddress": ":8005",
    "multicastSRTPPort": 8006,
    "multicastSRTCPPort": 8007,
    "rtspServerKey": "server.key",
    "rtspServerCert": "server.crt",
    "rtspAuthMethods": ["basic"],
    "rtspTrustedProxies": [],
    "rtspUDPReadBufferSize": 0,
    "rtmp": True,
    "rtmpAddress": ":1935",
    "rtmpEncryption": "no",
    "rtmpsAddress": ":1936",
    "rtmpServerKey": "server.key",
    "rtmpServerCert": "server.crt",
    "rtmpTrustedProxies": [],
    **_http("hls", ":8888", on=True),
    "hlsAlwaysRemux": False,
    "hlsVariant": "lowLatency",
    "hlsSegmentCount": 7,
    "hlsSegmentDuration": "1s",
    "hlsPartDuration": "200ms",
    "hlsSegmentMaxSize": "50M",
    "hlsDirectory": "",
    "hlsMuxerCloseAfter": "1m0s",
    **_http("webrtc", ":8889", on=True),
    "webrtcLocalUDPAddress": ":8189",
    "webrtcLocalTCPAddress": "",
    "webrtcIPsFromInterfaces": True,
    "webrtcIPsFromInterfacesList": [],
    "webrtcAdditionalHosts": [],
    "webrtcICEServers2": [],
    "webrtcSTUNGatherTimeout": "5s",
    "webrtcHandshakeTimeout": "10s",
    "webrtcTrackGatherTimeout": "2s",
    "srt": True,
    "srtAddress": ":8890",
}

_MOQ: dict[str, Json] = {
    "moq": True,
    "moqHTTP2Address": ":8892",
    "moqHTTP3Address": ":8892",
    "moqServerKey": "auto.key",
    "moqServerCert": "auto.crt",
    "moqAllowOrigins": ["*"],
    "moqTrustedProxies": [],
}

_RENAMED = {
    "authMethods": "rtspAuthMethods",
    "encryption": "rtspEncryption",
    "protocols": "rtspTransports",
    "readBufferCount": "writeQueueSize",
    "serverCert": "rtspServerCert",
    "serverKey": "rtspServerKey",
    **{
        f"{name}AllowOrigin": f"{name}AllowOrigins"
        for name in ("api", "metrics", "pprof", "playback", "hls", "webrtc")
    },
}
"""Former names, which every version still knows."""

_LOG_LEVELS = ("error", "warn", "info", "debug")

_PATH_NAME = re.compile(r"[0-9a-zA-Z_\-/.]+")


class SettingsError(Exception):
    """Settings that the real server does not start with; the text is its own."""


def parse_version(text: str) -> Version:
    """The version as numbers: ``v1.20.1`` is ``(1, 20, 1)``.

    Raises:
        SettingsError: It is not of that form.
    """
    if not re.fullmatch(r"v[0-9]+(\.[0-9]+){2}", text):
        raise SettingsError(f"'{text}' is not a version; one is v1.20.1")
    return tuple(int(part) for part in text[1:].split("."))


class Settings:
    """All settings of a server at one time. Never changed: `patched` and its like give new ones."""

    def __init__(self, values: dict[str, Json], paths: dict[str, dict[str, Json]]) -> None:
        self.values = values
        self.paths = paths
        """The settings of each path's own, by its name; what it leaves out is ``pathDefaults``."""

    def flag(self, key: str) -> bool:
        """The value of a switch."""
        return self.values[key] is True

    def text(self, key: str) -> str:
        """The value of a setting that is text, such as an address."""
        return str(self.values[key])

    def number(self, key: str) -> int:
        """The value of a setting that is a number, such as a port."""
        value = self.values[key]
        return value if isinstance(value, int) else 0

    def items(self, key: str) -> list[Json]:
        """The value of a setting that is a list."""
        value = self.values[key]
        return value if isinstance(value, list) else []

    def public(self) -> dict[str, Json]:
        """What the control API's ``config/global/get`` shows."""
        return {key: value for key, value in self.values.items() if key != "pathDefaults"}

    def path_defaults(self) -> dict[str, Json]:
        """What a path has that does not say otherwise."""
        defaults = self.values["pathDefaults"]
        return defaults if isinstance(defaults, dict) else {}

    def public_path(self, name: str) -> dict[str, Json]:
        """What the control API's ``config/paths/get`` shows."""
        return {"name": name, **self.path_defaults(), **self.paths[name]}

    def path_for(self, name: str) -> str | None:
        """The configured path that a stream of this name belongs to; None if there is none."""
        if name in self.paths and not _is_pattern(name):
            return name
        patterns = (known for known in sorted(self.paths) if known[:1] == "~")
        for known in patterns:
            if re.search(known[1:], name):
                return known
        return next((known for known in ("all_others", "all") if known in self.paths), None)

    def fixed_paths(self) -> list[str]:
        """The configured paths that are one stream each, not a pattern for many."""
        return sorted(name for name in self.paths if not _is_pattern(name))

    def patched(self, changes: Json) -> Settings:
        """These settings with some global ones changed.

        Raises:
            SettingsError: An unknown key, or a value of another type.
        """
        values = copy.deepcopy(self.values)
        _merge(values, changes, "Global")
        _check(values)
        return Settings(values, self.paths)

    def with_path(self, name: str, own: Json, *, keep: bool = False) -> Settings:
        """These settings with one path added, replaced or (``keep``) patched.

        Raises:
            SettingsError: An impossible name, an unknown key, or a value of another type.
        """
        _check_path_name(name)
        merged = {**_PATH, **(self.paths.get(name, {}) if keep else {})}
        changed = _merge(merged, own, "Path")
        kept = self.paths.get(name, {}) if keep else {}
        return Settings(
            self.values,
            {**self.paths, name: {**kept, **{key: merged[key] for key in changed}}},
        )

    def without_path(self, name: str) -> Settings:
        """These settings without one path."""
        return Settings(
            self.values, {known: own for known, own in self.paths.items() if known != name}
        )


def find_file(argument: str | None) -> str | None:
    """The file that a server started with this argument reads; None if there is none."""
    if argument:
        return argument
    return next((path for path in SEARCHED if Path(path).exists()), None)


def load(path: str | None, environment: Mapping[str, str], version: Version) -> Settings:
    """Read all settings.

    Args:
        path: The settings file; None to go by the defaults.
        environment: Where ``MTX_*`` are looked up.
        version: Whose keys are known.

    Raises:
        SettingsError: The real server would not start; the text is its own.
    """
    values = _defaults(version)
    paths: dict[str, dict[str, Json]] = {}
    if path is not None:
        _merge_file(values, paths, path)
    for key in values:
        values[key] = _from_environment(environment, f"MTX_{key.upper()}", key, values[key])
    _merge_paths_from_environment(paths, environment)
    _check(values)
    for name in paths:
        _check_path_name(name)
    return Settings(values, paths)


def _defaults(version: Version) -> dict[str, Json]:
    values = copy.deepcopy(_GLOBAL)
    if version >= (1, 19):
        values.update(copy.deepcopy(_MOQ))
    if version >= (1, 20):
        values["moqQUICAddress"] = ":8893"
    values["pathDefaults"] = dict(_PATH)
    return values


def _merge_file(values: dict[str, Json], paths: dict[str, dict[str, Json]], path: str) -> None:
    try:
        document = plain_yaml.load(Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        raise SettingsError(f"open {path}: {os.strerror(exc.errno or 0).lower()}") from exc
    except ValueError as exc:
        raise SettingsError(str(exc)) from exc
    if document is None:
        return
    if not isinstance(document, dict):
        raise SettingsError("json: cannot unmarshal string into Go value of type conf.Conf")
    listed = document.pop("paths", None)
    _merge(values, document, "Conf")
    if listed is None:
        return
    if not isinstance(listed, dict):
        raise _wrong_type(listed, "Conf.paths", {})
    for name, own in listed.items():
        merged = dict(_PATH)
        changed = _merge(merged, own, "Path")
        paths[name] = {key: merged[key] for key in changed}


def _merge(values: dict[str, Json], changes: Json, where: str) -> list[str]:
    """Change values in place; give the keys that were named."""
    if changes is None:
        return []
    if not isinstance(changes, dict):
        raise _wrong_type(changes, where, {})
    named = []
    for given, value in changes.items():
        key = _RENAMED.get(given, given)
        if given.endswith("AllowOrigin") and isinstance(value, str):
            value = [value]  # lists by now
        if key.startswith("moqHTTPS") and "moqHTTP2Address" in values:
            key = key.replace("HTTPS", "HTTP")  # v1.19's names, deprecated since v1.20
        if where == "Path" and key.startswith("rpiCamera"):
            values[key] = value
        elif key not in values:
            raise SettingsError(f'json: unknown field "{given}"')
        elif value is not None:
            known = values[key]
            if key == "pathDefaults" and isinstance(known, dict):
                _merge(known, value, "Path")
            else:
                values[key] = _checked(value, known, f"{where}.{key}", _ITEMS.get(key))
        named.append(key)
    return named


def _checked(value: Json, known: Json, where: str, item: dict[str, Json] | None) -> Json:
    """The value, if it is of the type of the one that is known."""
    if isinstance(known, list) and isinstance(value, list) and item is not None:
        whole = []
        for given in value:
            filled = copy.deepcopy(item)
            filled.update({key: [] for key in filled if isinstance(filled[key], list)})
            if not isinstance(given, dict):
                raise _wrong_type(given, where, {})
            for key, inner in given.items():
                if key not in item:
                    raise SettingsError(f'json: unknown field "{key}"')
                if inner is not None:
                    filled[key] = _checked(inner, item[key], f"{where}.{key}", _ITEMS.get(key))
            whole.append(filled)
        return list(whole)
    if isinstance(known, str) and where.endswith("Encryption") and isinstance(value, bool):
        return "yes" if value else "no"  # YAML reads a bare no as a boolean
    if type(value) is not type(known):
        raise _wrong_type(value, where, known)
    return value


def _wrong_type(value: Json, where: str, known: Json) -> SettingsError:
    """Go's words for a JSON value that does not fit (encoding/json, UnmarshalTypeError)."""
    json_names = {bool: "bool", int: "number", float: "number", str: "string", list: "array"}
    go_names = {bool: "bool", int: "int", float: "float64", str: "string", list: "[]string"}
    return SettingsError(
        f"json: cannot unmarshal {json_names.get(type(value), 'object')} into Go struct field "
        f"{where} of type {go_names.get(type(known), 'object')}"
    )


def _from_environment(environment: Mapping[str, str], variable: str, key: str, known: Json) -> Json:
    """The setting as the environment has it, else as it is known."""
    if isinstance(known, dict):
        return {
            inner: _from_environment(environment, f"{variable}_{inner.upper()}", inner, value)
            for inner, value in known.items()
        }
    item = _ITEMS.get(key)
    if isinstance(known, list) and item is not None and environment.get(variable) != "":
        return _items_from_environment(environment, variable, known, item)
    text = environment.get(variable)
    if text is None:
        return known
    if isinstance(known, bool):
        if text.lower() not in ("yes", "true", "no", "false"):
            raise SettingsError(f"{variable}: invalid value '{text}'")
        return text.lower() in ("yes", "true")
    if isinstance(known, int):
        try:
            return int(text)
        except ValueError as exc:
            raise SettingsError(
                f'{variable}: strconv.ParseInt: parsing "{text}": invalid syntax'
            ) from exc
    if isinstance(known, list):
        return list(text.split(",")) if text else []
    return text


def _items_from_environment(
    environment: Mapping[str, str], variable: str, known: list[Json], item: dict[str, Json]
) -> list[Json]:
    """Lists of structures go by index: ``MTX_AUTHINTERNALUSERS_0_USER``."""
    found = list(known)
    index = 0
    while True:
        prefix = f"{variable}_{index}"
        given = any(name.startswith(prefix) for name in environment)
        if index == len(found):
            if not given:
                return found
            found.append({key: [] if isinstance(v, list) else v for key, v in item.items()})
        if given:
            found[index] = _from_environment(environment, prefix, "", found[index])
        index += 1


def _merge_paths_from_environment(
    paths: dict[str, dict[str, Json]], environment: Mapping[str, str]
) -> None:
    """``MTX_PATHS_CAM0_SOURCE``: the name ends at the first underscore and is in lower case."""
    prefix = "MTX_PATHS_"
    for variable in environment:
        upper, _, _ = variable.removeprefix(prefix).partition("_")
        if not variable.startswith(prefix) or not upper or upper != upper.upper():
            continue
        own = paths.setdefault(upper.lower(), {})
        for key, default in _PATH.items():
            name = f"{prefix}{upper}_{key.upper()}"
            if name in environment:
                own[key] = _from_environment(environment, name, key, default)


def _check(values: dict[str, Json]) -> None:
    if values["logLevel"] not in _LOG_LEVELS:
        raise SettingsError(f"invalid log level: '{values['logLevel']}'")
    for name, called in (
        ("api", "API is"),
        ("metrics", "metrics are"),
        ("playback", "playback is"),
    ):
        if values[name] is True and not values[f"{name}Address"]:
            raise SettingsError(f"'{name}Address' must be set when {called} enabled")


def _is_pattern(name: str) -> bool:
    return name[:1] == "~" or name in ("all_others", "all")


def _check_path_name(name: str) -> None:
    if name[:1] == "~":
        try:
            re.compile(name[1:])
        except re.error as exc:
            raise SettingsError(f"invalid regular expression: {name[1:]}") from exc
        return
    if name.startswith("/"):
        reason = "can't begin with a slash"
    elif name.endswith("/"):
        reason = "can't end with a slash"
    elif not _PATH_NAME.fullmatch(name):
        reason = "can contain only alphanumeric characters, underscore, dot, minus or slash"
    else:
        return
    raise SettingsError(f"invalid path name '{name}': {reason}")
