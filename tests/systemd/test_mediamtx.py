"""MediaMTX as an instance: the real one where UNDERSTUDY_MEDIAMTX names it, else the stand-in."""

from __future__ import annotations

import json
import subprocess

import pytest
from tests.systemd.support import ANY_MEDIAMTX, TWELVE, bound_by, eventually, get, holders

from understudy.errors import StartError
from understudy.instance import Instance
from understudy.run import Run

pytestmark = pytest.mark.mediamtx

MOQ = {"moq", "moq-udp", "moq-quic"}
"""Listeners that versions before v1.19 and v1.20 do not have."""


@pytest.fixture
def instance(run: Run) -> Instance:
    return run.spawn("mediamtx", values=ANY_MEDIAMTX)


def settings(instance: Instance, path: str = "config/global/get") -> dict[str, object]:
    found = json.loads(get(f"{instance.urls['api']}/v3/{path}"))
    assert isinstance(found, dict)
    return found


def test_it_binds_what_is_declared_and_nothing_else(instance: Instance) -> None:
    declared = {(transport, instance.ports[name]) for name, transport in TWELVE.items()}
    newer = {(TWELVE[name], instance.ports[name]) for name in MOQ}
    assert declared - newer <= bound_by(instance.unit) <= declared
    assert instance.undeclared == ()


def test_it_listens_on_loopback_only(instance: Instance) -> None:
    addresses = {
        name: value
        for name, value in settings(instance).items()
        if name.endswith("Address") and isinstance(value, str) and value.endswith(
            tuple(f":{number}" for number in instance.ports.values())
        )
    }  # fmt: skip
    assert len(addresses) >= 7
    assert all(value.startswith("127.0.0.1:") for value in addresses.values()), addresses


def test_it_deletes_no_recording_and_joins_no_multicast(instance: Instance) -> None:
    assert settings(instance, "config/pathdefaults/get")["recordDeleteAfter"] == "0s"
    assert settings(instance)["rtspTransports"] == ["udp", "tcp"]


def test_a_closed_listener_opens_on_request(run: Run) -> None:
    closed, opened = (
        run.spawn("mediamtx", values=ANY_MEDIAMTX, ports=ports) for ports in ((), ("metrics",))
    )
    assert "metrics" not in closed.ports
    assert holders("tcp", opened.ports["metrics"]) == {opened.unit}
    assert get(opened.urls["metrics"])


def test_a_stream_goes_in_and_out_of_one_instance_alone(run: Run) -> None:
    mine, other = run.spawn_many([run.request("mediamtx", values=ANY_MEDIAMTX) for _ in range(2)])
    url = f"{mine.urls['rtsp']}/cam0"
    publisher = subprocess.Popen(
        ["ffmpeg", "-nostdin", "-loglevel", "error", "-re", "-t", "60",
         "-f", "lavfi", "-i", "testsrc=size=64x64:rate=5", "-c:v", "mpeg4",
         "-rtsp_transport", "tcp", "-f", "rtsp", url],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert eventually(lambda: [path["name"] for path in paths(mine)]) == ["cam0"]
        seen = subprocess.run(
            ["ffprobe", "-loglevel", "error", "-rtsp_transport", "tcp",
             "-show_entries", "stream=codec_name,width", "-of", "csv=p=0", url],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert seen.stdout.strip() == "mpeg4,64"
        assert paths(other) == []
    finally:
        publisher.kill()
        publisher.wait()


def test_a_setting_it_does_not_take_is_an_error_with_its_own_words(run: Run) -> None:
    with pytest.raises(StartError, match="it exited with status 1 before it was ready") as caught:
        run.spawn("mediamtx", values=ANY_MEDIAMTX, env={"MTX_RTPADDRESS": "127.0.0.1:20001"})
    assert caught.value.exit_status == 1
    assert "even" in caught.value.journal


def paths(instance: Instance) -> list[dict[str, object]]:
    items = settings(instance, "paths/list")["items"]
    assert isinstance(items, list)
    return [item for item in items if item["ready"]]
