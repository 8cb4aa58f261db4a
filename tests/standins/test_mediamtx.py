from __future__ import annotations

import json
import re
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.standins.conftest import Network, Program

OLD = "v1.13.1"
MIDDLE = "v1.15.5"
NEW = "v1.20.1"

ONLY_API = {
    "MTX_API": "yes",
    "MTX_RTSP": "no",
    "MTX_RTMP": "no",
    "MTX_HLS": "no",
    "MTX_WEBRTC": "no",
    "MTX_SRT": "no",
    "MTX_MOQ": "no",
}
RTSP = {**ONLY_API, "MTX_RTSP": "yes"}
WITH_PATHS = "paths:\n  all_others:\n"

SDP = (
    b"v=0\r\ns=camera\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:trackID=0\r\n"
)


def start(
    network: Network,
    *arguments: str,
    version: str = NEW,
    environment: Mapping[str, str] | None = None,
) -> Program:
    return network.start(
        sys.executable,
        "-m",
        "understudy.standins.mediamtx",
        *arguments,
        environment={"UNDERSTUDY_STANDIN_MEDIAMTX_VERSION": version, **(environment or {})},
    )


def ready(
    network: Network,
    *arguments: str,
    version: str = NEW,
    environment: Mapping[str, str] | None = None,
) -> Program:
    """Start it, and wait until its API is open."""
    program = start(
        network, *arguments, version=version, environment={**ONLY_API, **(environment or {})}
    )
    program.wait_for("[API] ")
    return program


def said(lines: Sequence[str]) -> list[str]:
    """The lines without their time stamps, which must be there."""
    stamp = re.compile(r"[0-9]{4}/[0-9]{2}/[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} ")
    assert all(stamp.match(line) for line in lines), lines
    return [stamp.sub("", line, count=1) for line in lines]


def settings_file(folder: Path, text: str) -> str:
    file = folder / "mediamtx-test.yml"
    file.write_text(text)
    return str(file)


class Rtsp:
    """An RTSP client that knows no more than requests, answers and media."""

    def __init__(self, network: Network) -> None:
        self.connection = network.connect(8554)
        self.file = self.connection.makefile("rb")
        self.number = 0

    def ask(
        self, method: str, path: str, *headers: str, body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        self.number += 1
        lines = [f"{method} rtsp://127.0.0.1:8554/{path} RTSP/1.0", f"CSeq: {self.number}"]
        lines += headers
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        status = int(self.file.readline().split()[1])
        answered = {}
        while line := self.file.readline().decode().strip():
            name, _, value = line.partition(": ")
            answered[name] = value
        assert answered["CSeq"] == str(self.number)
        return status, answered, self.file.read(int(answered.get("Content-Length", 0)))

    def publish(self, path: str) -> int:
        """Announce and record a stream of one H264 track; the status of the first refusal."""
        steps = [
            ("ANNOUNCE", path, ("Content-Type: application/sdp",), SDP),
            (
                "SETUP",
                f"{path}/trackID=0",
                ("Transport: RTP/AVP/TCP;unicast;interleaved=0-1",),
                b"",
            ),
            ("RECORD", path, (), b""),
        ]
        for method, where, headers, body in steps:
            status, _, _ = self.ask(method, where, *headers, body=body)
            if status != 200:
                return status
        return 200

    def close(self) -> None:
        self.file.close()
        self.connection.close()


def test_opens_everything_in_the_real_order_and_says_so(network: Network) -> None:
    switches = {"MTX_API": "yes", "MTX_METRICS": "yes", "MTX_PPROF": "yes", "MTX_PLAYBACK": "yes"}
    switches["MTX_WEBRTCLOCALTCPADDRESS"] = ":8189"
    lines = said(start(network, environment=switches).wait_for("[API] "))
    assert re.fullmatch(rf"INF MediaMTX {re.escape(NEW)}, linux, (amd64|arm64)", lines[0])
    assert lines[1].startswith("WAR configuration file not found (looked in ")
    assert lines[2:] == [
        "INF [metrics] started with listener on :9998 (TCP/HTTP)",
        "INF [pprof] started with listener on :9999 (TCP/HTTP)",
        "INF [playback] started with listener on :9996 (TCP/HTTP)",
        "INF [RTSP] started with listeners on :8554 (TCP/RTSP), :8000 (UDP/RTP), :8001 (UDP/RTCP)",
        "INF [RTMP] started with listener on :1935 (TCP/RTMP)",
        "INF [HLS] started with listener on :8888 (TCP/HTTP)",
        "INF [WebRTC] started with listeners on :8889 (TCP/HTTP), :8189 (UDP/ICE), :8189 (TCP/ICE)",
        "INF [SRT] started with listener on :8890 (UDP/SRT)",
        "WAR [MoQ] certificate auto.key not found, generating it from scratch",
        "INF [MoQ] started with listeners on "
        ":8892 (TCP/HTTP2), :8892 (UDP/HTTP3), :8893 (UDP/QUIC)",
        "INF [API] started with listener on :9997 (TCP/HTTP)",
    ]
    for port in (9998, 9999, 9996, 8554, 1935, 8888, 8889, 8189, 8892, 9997):
        network.connect(port).close()
    for port in (8000, 8001, 8189, 8890, 8892, 8893):
        with pytest.raises(OSError, match="Address already in use"):
            network.bind(port, socket.SOCK_DGRAM)


def test_an_old_version_says_it_in_its_own_words(network: Network) -> None:
    lines = said(start(network, version=OLD, environment={"MTX_API": "yes"}).wait_for("[API] "))
    assert lines[2:] == [
        "INF [RTSP] listener opened on :8554 (TCP), :8000 (UDP/RTP), :8001 (UDP/RTCP)",
        "INF [RTMP] listener opened on :1935",
        "INF [HLS] listener opened on :8888",
        "INF [WebRTC] listener opened on :8889 (HTTP), :8189 (ICE/UDP)",
        "INF [SRT] listener opened on :8890 (UDP)",
        "INF [API] listener opened on :9997",
    ]


def test_listens_where_it_is_told_and_nowhere_else(network: Network) -> None:
    ready(network, environment={"MTX_APIADDRESS": "127.0.0.1:9997"})
    with network.bind(9997, host="127.0.0.2"):
        pass
    with pytest.raises(OSError, match="Address already in use"):
        network.bind(9997, host="127.0.0.1")


def test_without_a_host_it_listens_on_every_address(network: Network) -> None:
    ready(network)
    with pytest.raises(OSError, match="Address already in use"):
        network.bind(9997, host="127.0.0.2")


@pytest.mark.parametrize(
    ("port", "kind", "message"),
    [
        (9997, socket.SOCK_STREAM, "listen tcp :9997: bind: address already in use"),
        (8000, socket.SOCK_DGRAM, "listen udp :8000: bind: address already in use"),
        (8001, socket.SOCK_DGRAM, "listen udp :8001: bind: address already in use"),
        (8554, socket.SOCK_STREAM, "listen tcp :8554: bind: address already in use"),
        (8189, socket.SOCK_DGRAM, "listen udp :8189: bind: address already in use"),
        (8890, socket.SOCK_DGRAM, "listen: listen udp :8890: bind: address already in use"),
    ],
)
def test_a_taken_port_ends_it_with_1_and_names_the_port(
    network: Network, port: int, kind: socket.SocketKind, message: str
) -> None:
    with network.bind(port, kind):
        code, lines = start(network, environment={"MTX_API": "yes"}).end()
    assert code == 1
    assert f"ERR {message}" in said(lines)
    assert not any("[API] started" in line for line in lines)


def test_the_order_within_rtsp_is_udp_first(network: Network) -> None:
    with network.bind(8554), network.bind(8000, socket.SOCK_DGRAM):
        _, lines = start(network).end()
    assert "ERR listen udp :8000: bind: address already in use" in said(lines)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MTX_RTPADDRESS": ":8001", "MTX_RTCPADDRESS": ":8002"}, "RTP port must be even"),
        ({"MTX_RTCPADDRESS": ":8003"}, "RTP and RTCP ports must be consecutive"),
        ({"MTX_MULTICASTRTPPORT": "8005"}, "multicast RTP port must be even"),
        ({"MTX_APIADDRESS": "9997"}, "listen tcp: address 9997: missing port in address"),
        ({"MTX_RTSPENCRYPTION": "strict"}, "open server.key: no such file or directory"),
    ],
)
def test_impossible_addresses_end_it_with_1(
    network: Network, environment: dict[str, str], message: str
) -> None:
    code, lines = start(network, environment={**RTSP, **environment}).end()
    assert code == 1
    assert f"ERR {message}" in said(lines)


def test_a_second_server_shares_the_srt_port_without_an_error(network: Network) -> None:
    ready(network, environment={"MTX_SRT": "yes"})
    other = {"MTX_SRT": "yes", "MTX_APIADDRESS": ":9995"}
    ready(network, environment=other)
    assert network.request("GET", "/v3/paths/list", port=9995)[0] == 200


@pytest.mark.parametrize(
    ("text", "version", "message"),
    [
        ("bogus: 1\n", NEW, 'json: unknown field "bogus"'),
        ("paths:\n  cam0:\n    bogus: 1\n", NEW, 'json: unknown field "bogus"'),
        ("moq: no\n", OLD, 'json: unknown field "moq"'),
        ("moqQUICAddress: ':1'\n", "v1.19.2", 'json: unknown field "moqQUICAddress"'),
        ("logLevel: loud\n", NEW, "invalid log level: 'loud'"),
        ("api: yes\napiAddress: ''\n", NEW, "'apiAddress' must be set when API is enabled"),
        (
            "api: maybe\n",
            NEW,
            "json: cannot unmarshal string into Go struct field Conf.api of type bool",
        ),
        ("paths:\n  /cam0:\n", NEW, "invalid path name '/cam0': can't begin with a slash"),
    ],
)
def test_a_bad_file_is_fatal(
    network: Network, tmp_path: Path, text: str, version: str, message: str
) -> None:
    code, lines = start(network, settings_file(tmp_path, text), version=version).end()
    assert (code, lines) == (1, [f"ERR: {message}"])


def test_a_file_that_is_not_there_is_fatal(network: Network) -> None:
    code, lines = start(network, "gone.yml").end()
    assert (code, lines) == (1, ["ERR: open gone.yml: no such file or directory"])


def test_former_names_are_known(network: Network, tmp_path: Path) -> None:
    text = "protocols: [tcp]\napiAllowOrigin: 'https://a'\nencryption: no\n"
    ready(network, settings_file(tmp_path, text))
    known = json.loads(network.request("GET", "/v3/config/global/get")[1])
    assert (known["rtspTransports"], known["apiAllowOrigins"]) == (["tcp"], ["https://a"])
    assert known["rtspEncryption"] == "no"


def test_one_path_by_variables(network: Network) -> None:
    ready(network, environment={"MTX_PATHS_CAM0_RECORD": "yes", "MTX_PATHDEFAULTS_FALLBACK": "/x"})
    known = json.loads(network.request("GET", "/v3/config/paths/get/cam0")[1])
    assert (known["record"], known["fallback"]) == (True, "/x")


def test_unknown_variables_are_ignored(network: Network) -> None:
    ready(network, version=OLD, environment={"MTX_MOQ": "no", "MTX_BOGUS": "1"})


def test_a_switch_takes_only_yes_and_no(network: Network) -> None:
    code, lines = start(network, environment={"MTX_API": "1"}).end()
    assert (code, lines) == (1, ["ERR: MTX_API: invalid value '1'"])


def test_it_picks_up_a_file_of_the_working_directory(network: Network, tmp_path: Path) -> None:
    (tmp_path / "mediamtx.yml").write_text("readTimeout: 7s\n")
    lines = ready(network).wait_for("[API] ")
    assert f"INF configuration loaded from {tmp_path}/mediamtx.yml" in said(lines)
    assert '"readTimeout":"7s"' in network.request("GET", "/v3/config/global/get")[1]


def test_the_environment_wins_over_the_file_also_after_a_reload(
    network: Network, tmp_path: Path
) -> None:
    file = settings_file(tmp_path, "readTimeout: 7s\nwriteTimeout: 7s\n")
    program = ready(network, file, environment={"MTX_READTIMEOUT": "9s"})
    settings_file(tmp_path, "readTimeout: 8s\nwriteTimeout: 8s\npaths:\n  cam0:\n")
    program.wait_for("reloading configuration (file changed)")
    network.request_until(200, "/v3/paths/get/cam0")
    known = json.loads(network.request("GET", "/v3/config/global/get")[1])
    assert (known["readTimeout"], known["writeTimeout"]) == ("9s", "8s")


def test_what_was_added_is_lost_at_a_reload(network: Network, tmp_path: Path) -> None:
    program = ready(network, settings_file(tmp_path, "paths:\n  cam0:\n"))
    network.request("POST", "/v3/config/paths/add/cam1", {})
    network.request_until(200, "/v3/paths/get/cam1")
    settings_file(tmp_path, "paths:\n  cam0:\n  cam2:\n")
    program.wait_for("reloading configuration (file changed)")
    network.request_until(200, "/v3/paths/get/cam2")
    assert network.request("GET", "/v3/paths/get/cam1")[0] == 404


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bogus: 1\n", 'json: unknown field "bogus"'),
        ("apiAddress: ':9994'\n", "listen tcp :9994: bind: address already in use"),
    ],
)
def test_a_failed_reload_ends_it_with_0(
    network: Network, tmp_path: Path, text: str, message: str
) -> None:
    file = settings_file(tmp_path, "api: yes\n")
    program = ready(network, file)
    with network.bind(9994):
        settings_file(tmp_path, text)
        code, lines = program.end()
    assert code == 0
    assert f"ERR {message}" in said(lines)


@pytest.mark.parametrize("version", [OLD, NEW])
def test_sigint_ends_it_cleanly(network: Network, version: str) -> None:
    program = ready(network, version=version)
    program.signal(signal.SIGINT)
    code, lines = program.end()
    assert code == 0
    closing = "closing" if version == NEW else "listener is closing"
    assert said(lines)[-2:] == ["INF shutting down gracefully", f"INF [API] {closing}"]


@pytest.mark.parametrize(("version", "expected"), [(OLD, -signal.SIGTERM), ("v1.14.0", 0)])
def test_sigterm_is_handled_only_from_1_14_on(
    network: Network, version: str, expected: int
) -> None:
    program = ready(network, version=version)
    program.signal(signal.SIGTERM)
    assert program.end()[0] == expected


def test_it_tells_its_version(network: Network) -> None:
    assert start(network, "--version", version=MIDDLE).end() == (0, [MIDDLE])


@pytest.mark.parametrize(
    ("version", "success", "failure", "info"),
    [
        (OLD, "", {"error": "path already exists"}, 404),
        ("v1.15.2", "", {"error": "path already exists"}, 200),
        (MIDDLE, '{"status":"ok"}', {"status": "error", "error": "path already exists"}, 200),
        (NEW, '{"status":"ok"}', {"status": "error", "error": "path already exists"}, 200),
    ],
)
def test_answers_follow_the_version(
    network: Network, version: str, success: str, failure: dict[str, str], info: int
) -> None:
    ready(network, version=version)
    assert network.request("POST", "/v3/config/paths/add/cam0", {}) == (200, success)
    status, body = network.request("POST", "/v3/config/paths/add/cam0", {})
    assert (status, json.loads(body)) == (400, failure)
    status, body = network.request("GET", "/v3/info")
    assert status == info
    if status == 200:
        assert json.loads(body)["version"] == version
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*[+-]\d\d:\d\d", json.loads(body)["started"])


def test_a_path_lives_from_its_addition_to_its_removal(network: Network) -> None:
    ready(network)
    name = "run-r7k2mq/cam0"
    assert network.request("GET", f"/v3/config/paths/get/{name}")[0] == 404
    assert network.request("POST", f"/v3/config/paths/add/{name}", {"record": True})[0] == 200
    known = json.loads(network.request("GET", f"/v3/config/paths/get/{name}")[1])
    assert (known["name"], known["record"], known["source"]) == (name, True, "publisher")
    item = json.loads(network.request_until(200, f"/v3/paths/get/{name}"))
    assert (item["confName"], item["ready"], item["source"]) == (name, False, None)

    change = {"source": "rtsp://elsewhere/cam"}
    assert network.request("PATCH", f"/v3/config/paths/patch/{name}", change)[0] == 200
    known = json.loads(network.request("GET", f"/v3/config/paths/get/{name}")[1])
    assert (known["record"], known["source"]) == (True, "rtsp://elsewhere/cam")
    assert network.request("POST", f"/v3/config/paths/replace/{name}", change)[0] == 200
    known = json.loads(network.request("GET", f"/v3/config/paths/get/{name}")[1])
    assert known["record"] is False

    assert network.request("POST", f"/v3/config/paths/delete/{name}") == (404, "404 page not found")
    assert network.request("DELETE", f"/v3/config/paths/delete/{name}")[0] == 200
    assert network.request("DELETE", f"/v3/config/paths/delete/{name}")[0] == 404
    network.request_until(404, f"/v3/paths/get/{name}")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("POST", "add/cam0", {"bogus": 1}, 400, 'json: unknown field "bogus"'),
        ("POST", "add//cam0", {}, 400, "invalid path name '/cam0': can't begin with a slash"),
        ("POST", "add/", {}, 400, "invalid name"),
        ("POST", "add/cam0", None, 400, "unexpected end of JSON input"),
        ("PATCH", "patch/cam0", {}, 404, "path not found"),
        ("GET", "get/cam0", None, 404, "path configuration not found"),
    ],
)
def test_impossible_paths_are_refused(
    network: Network, method: str, path: str, body: object, status: int, error: str
) -> None:
    ready(network)
    answered, text = network.request(method, f"/v3/config/paths/{path}", body)
    assert (answered, json.loads(text)) == (status, {"status": "error", "error": error})


def test_lists_come_in_pages(network: Network) -> None:
    ready(network)
    for number in range(5):
        network.request("POST", f"/v3/config/paths/add/cam{number}", {})
    pages = []
    for page in range(4):
        status, body = network.request("GET", f"/v3/config/paths/list?itemsPerPage=2&page={page}")
        assert status == 200
        listed = json.loads(body)
        assert (listed["itemCount"], listed["pageCount"]) == (5, 3)
        pages.append([item["name"] for item in listed["items"]])
    assert pages == [["cam0", "cam1"], ["cam2", "cam3"], ["cam4"], []]
    assert network.request("GET", "/v3/config/paths/list?itemsPerPage=0")[0] == 400


def test_a_patched_address_moves_the_listener(network: Network) -> None:
    program = ready(network, environment=RTSP)
    change = {"rtspAddress": "127.0.0.1:8555"}
    assert network.request("PATCH", "/v3/config/global/patch", change)[0] == 200
    program.wait_for("[RTSP] started with listeners on 127.0.0.1:8555")
    network.connect(8555).close()
    with pytest.raises(ConnectionRefusedError):
        network.connect(8554)


def test_a_patch_to_a_taken_port_ends_it_with_0(network: Network) -> None:
    program = ready(network, environment=RTSP)
    with network.bind(8555):
        network.request("PATCH", "/v3/config/global/patch", {"rtspAddress": ":8555"})
        code, lines = program.end()
    assert code == 0
    assert "ERR listen tcp :8555: bind: address already in use" in said(lines)


def test_calls_of_a_server_that_is_off_are_unknown(network: Network) -> None:
    ready(network, environment={"MTX_HLS": "yes"})
    assert network.request("GET", "/v3/rtspsessions/list") == (404, "404 page not found")
    assert network.request("GET", "/v3/srtconns/list") == (404, "404 page not found")
    assert network.request("GET", "/v3/hlsmuxers/list")[0] == 200


@pytest.mark.parametrize(
    ("version", "body"),
    [(OLD, ""), (NEW, '{"status":"error","error":"authentication error"}')],
)
def test_a_password_is_asked_for(network: Network, version: str, body: str) -> None:
    user = {
        "MTX_AUTHINTERNALUSERS_0_USER": "admin",
        "MTX_AUTHINTERNALUSERS_0_PASS": "secret",
        "MTX_AUTHINTERNALUSERS_0_PERMISSIONS_0_ACTION": "api",
        "MTX_AUTHINTERNALUSERS_1_PERMISSIONS_0_ACTION": "read",
    }
    ready(network, version=version, environment=user)
    assert network.request("GET", "/v3/paths/list") == (401, body)
    for credentials, status in (("YWRtaW46c2VjcmV0", 200), ("YWRtaW46d3Jvbmc=", 401)):
        headers = {"Authorization": f"Basic {credentials}"}
        assert network.request("GET", "/v3/paths/list", headers=headers)[0] == status


def test_the_api_is_for_the_machine_itself_unless_told_otherwise(network: Network) -> None:
    elsewhere = {"MTX_AUTHINTERNALUSERS_1_IPS": "10.0.0.0/8"}
    ready(network, environment=elsewhere)
    assert network.request("GET", "/v3/paths/list")[0] == 401


def test_http_listeners_take_unix_sockets(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "api"
    ready(network, environment={"MTX_APIADDRESS": f"unix://{path}"})
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /v3/paths/list HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_published_stream_can_be_read_and_ends_with_its_publisher(
    network: Network, tmp_path: Path
) -> None:
    ready(network, settings_file(tmp_path, WITH_PATHS), environment=RTSP)
    publisher, reader = Rtsp(network), Rtsp(network)
    assert publisher.ask("OPTIONS", "cam0")[1]["Public"].startswith("DESCRIBE, ANNOUNCE, SETUP")
    assert reader.ask("DESCRIBE", "cam0")[0] == 404
    assert publisher.publish("cam0") == 200

    item = json.loads(network.request("GET", "/v3/paths/get/cam0")[1])
    assert (item["confName"], item["ready"], item["tracks"]) == ("all_others", True, ["H264"])
    assert item["source"]["type"] == "rtspSession"

    reader.close()
    reader = Rtsp(network)
    status, _, sdp = reader.ask("DESCRIBE", "cam0")
    assert (status, sdp) == (200, SDP)
    transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1"
    assert reader.ask("SETUP", "cam0/trackID=0", transport)[0] == 200
    assert reader.ask("PLAY", "cam0")[0] == 200
    frame = b"$\x00\x00\x04data"
    publisher.connection.sendall(frame)
    assert reader.file.read(len(frame)) == frame

    sessions = json.loads(network.request("GET", "/v3/rtspsessions/list")[1])["items"]
    assert sorted(session["state"] for session in sessions) == ["publish", "read"]
    publisher.close()
    assert reader.file.read() == b""
    reader.close()
    network.request_until(404, "/v3/paths/get/cam0")


def test_a_kicked_publisher_loses_its_connection(network: Network, tmp_path: Path) -> None:
    ready(network, settings_file(tmp_path, WITH_PATHS), environment=RTSP)
    publisher = Rtsp(network)
    assert publisher.publish("cam0") == 200
    [session] = json.loads(network.request("GET", "/v3/rtspsessions/list")[1])["items"]
    assert network.request("POST", f"/v3/rtspsessions/kick/{session['id']}")[0] == 200
    assert publisher.file.read() == b""
    publisher.close()
    assert network.request("POST", "/v3/rtspsessions/kick/unknown")[0] == 404


def test_without_any_path_nothing_can_be_published(network: Network) -> None:
    program = ready(network, environment=RTSP)
    publisher = Rtsp(network)
    assert publisher.publish("cam0") == 400
    program.wait_for("closed: path 'cam0' is not configured")
    publisher.close()


def test_udp_is_refused_and_tcp_taken_on_the_same_connection(
    network: Network, tmp_path: Path
) -> None:
    ready(network, settings_file(tmp_path, WITH_PATHS), environment=RTSP)
    publisher = Rtsp(network)
    assert publisher.ask("ANNOUNCE", "cam0", body=SDP)[0] == 200
    udp, tcp = "RTP/AVP;unicast;client_port=9000-9001", "RTP/AVP/TCP;unicast;interleaved=0-1"
    assert publisher.ask("SETUP", "cam0/trackID=0", f"Transport: {udp}")[0] == 461
    assert publisher.ask("SETUP", "cam0/trackID=0", f"Transport: {tcp}")[0] == 200
    publisher.close()
