"""Production's fingerprint: as before, or what has become of it and when."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.systemd.support import (
    ROOT,
    UNIT_DIR,
    eventually,
    show,
    systemctl,
    understudy,
)

import understudy as toolkit
from understudy.api import Api
from understudy.errors import NoManagerError, ProductionError
from understudy.fingerprint import GROWTH_BYTES, RELOADED, Aspect, Comparison, Fingerprint, compare
from understudy.lead import Production, compare_all, fingerprints
from understudy.lead import production as find
from understudy.manager import connect
from understudy.model import ManagerKind

UNIT = "tests-lead-of-fingerprints.service"
NUMBER = 8764


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "lead.conf"
    path.write_text("one: 1\n")
    return path


@pytest.fixture
def lead(tmp_path: Path, config: Path) -> Iterator[Production]:
    """A production of the test's own, which may be restarted and changed."""
    home = tmp_path / "units/lead"
    home.mkdir(parents=True)
    (home / "service.toml").write_text(
        f'description = "lead of the tests"\nproduction = "{UNIT}"\n'
        f'[ports]\nhttp = {{ tcp = {NUMBER}, env = "PORT", url = "http://{{host}}:{{port}}" }}\n'
        '[ready]\nhttp = { port = "http", path = "/" }\n'
    )
    (home / "lead.service.j2").write_text("[Service]\nExecStart=/bin/sleep 1000\n")
    code = (
        "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8764, bind='127.0.0.1')"
    )
    UNIT_DIR.mkdir(parents=True, exist_ok=True)
    unit = UNIT_DIR / UNIT
    unit.write_text(
        f'[Service]\nExecStart={sys.executable} -c "{code}" {config}\n'
        "Restart=always\nRestartSec=0\n" + "StateDirectory=tests-of-fingerprints\n" * ROOT
    )
    systemctl("daemon-reload")
    systemctl("start", UNIT)
    try:
        yield find("lead", unit=UNIT, units=tmp_path / "units", timeout_s=30)
    finally:
        systemctl("stop", UNIT)
        if ROOT:
            systemctl("clean", "--what=state", UNIT)
        unit.unlink()
        folder = UNIT_DIR / f"{UNIT}.d"
        if folder.exists():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        systemctl("daemon-reload")
        systemctl("reset-failed", UNIT, check=False)


def said(found: Comparison) -> list[str]:
    return [one.text for one in found.differences]


def test_untouched_is_one_line(lead: Production) -> None:
    before = lead.fingerprint()
    found = lead.compare(before)
    assert found.untouched
    assert re.fullmatch(
        rf"{UNIT} as before: same start \(\d+-\d+-\d+ \S+ UTC\), 2 files, 1 socket", str(found)
    )
    assert "\n" not in str(found)


def test_it_survives_being_written_down(lead: Production) -> None:
    before = lead.fingerprint()
    text = json.dumps(before.to_json())
    again = Fingerprint.from_json(json.loads(text))
    assert again == before
    with pytest.raises(ProductionError, match="it is none"):
        Fingerprint.from_json({"unit": "x"})


def test_a_restart_is_named_with_its_time(lead: Production) -> None:
    before = lead.fingerprint()
    systemctl("restart", UNIT)
    assert eventually(lead.ready)
    found = lead.compare(before)
    (text,) = said(found)
    now = show(UNIT, "MainPID", "ActiveEnterTimestamp")
    day = now["ActiveEnterTimestamp"].partition(" ")[2]  # without the name of the weekday
    assert text == f"it was started anew on {day} (PID {lead.pid}, now {now['MainPID']})"
    assert str(found).startswith(f"{UNIT} is not as it was: it was started anew on ")
    assert not found.untouched


def test_a_death_that_its_manager_mended_is_named(lead: Production) -> None:
    before = lead.fingerprint()
    systemctl("kill", "--signal=KILL", UNIT)
    assert eventually(lambda: show(UNIT, "NRestarts")["NRestarts"] == "1")
    assert eventually(lead.ready)
    texts = said(lead.compare(before))
    assert texts[0].startswith("it was started anew on ")
    assert "its manager had restarted it 0 times and now 1" in texts


def test_a_stop_is_named(lead: Production) -> None:
    before = lead.fingerprint()
    systemctl("stop", UNIT)
    texts = said(lead.compare(before))
    assert texts[0] == "it was active and is inactive"
    assert any(
        re.fullmatch(
            rf"socket tcp 127\.0\.0\.1:{NUMBER} is gone, changed between \S+ and \S+", text
        )
        for text in texts
    )


def test_a_changed_configuration_is_named_and_may_be_expected(
    lead: Production, config: Path
) -> None:
    before = lead.fingerprint()
    config.write_text("one: 2\n")
    found = lead.compare(before)
    (text,) = said(found)
    assert re.fullmatch(rf"{config} has been changed, at \d\d:\d\d:\d\d", text)
    found = lead.compare(before, expected=RELOADED)
    assert found.untouched
    assert f"; as expected: {config} has been changed" in str(found)
    config.write_text("one: 1\n")
    assert said(lead.compare(before)) == []
    config.unlink()
    assert re.fullmatch(
        rf"{config} has been removed between \S+ and \S+", said(lead.compare(before))[0]
    )


def test_a_drop_in_is_named_loaded_or_not(lead: Production) -> None:
    before = lead.fingerprint()
    folder = UNIT_DIR / f"{UNIT}.d"
    folder.mkdir()
    (folder / "x.conf").write_text("[Service]\nNice=1\n")
    for _ in range(2):
        text, *more = said(lead.compare(before))
        assert re.fullmatch(rf"{folder}/x\.conf is new, at \d\d:\d\d:\d\d", text)
        # Before it is loaded systemd 257 says so itself, 252 does not.
        assert set(more) <= {"its unit files were changed without a daemon-reload"}
        systemctl("daemon-reload")


def test_a_changed_unit_file_is_named(lead: Production) -> None:
    before = lead.fingerprint()
    file = UNIT_DIR / UNIT
    file.write_text(f"{file.read_text()}Nice=1\n")
    first, second = said(lead.compare(before))
    assert re.fullmatch(rf"{file} has been changed, at \d\d:\d\d:\d\d", first)
    assert second == "its unit files were changed without a daemon-reload"
    systemctl("daemon-reload")
    assert said(lead.compare(before)) == [first]


def test_growth_of_its_state_is_named_if_it_is_much(lead: Production) -> None:
    if not ROOT:
        pytest.skip("a user manager's state directory is elsewhere")
    before = lead.fingerprint()
    state = Path("/var/lib/tests-of-fingerprints")
    (state / "little").write_bytes(b"x" * 4096)
    assert said(lead.compare(before)) == []
    with (state / "much").open("wb") as file:  # sparse
        file.truncate(GROWTH_BYTES + 2 * 1024 * 1024)
    (text,) = said(lead.compare(before))
    assert re.fullmatch(rf"{state} grew by 66 MiB between \S+ and \S+", text)


def test_what_may_not_be_seen_is_said(lead: Production, config: Path) -> None:
    if ROOT:
        pytest.skip("root may see everything")
    config.chmod(0)
    found = lead.compare(lead.fingerprint())
    assert found.untouched
    assert f"(not seen: what is in {config}, only its size and time)" in str(found)
    config.parent.chmod(0)
    try:
        unseen = lead.fingerprint().unseen
    finally:
        config.parent.chmod(0o700)
    assert str(config) in unseen
    # What could be seen only once is no difference.
    assert said(lead.compare(found.after)) == []


def test_a_user_sees_the_systems(production: dict[str, str]) -> None:
    """Whoever has no right over production can show that it is as it was."""
    try:
        lead = toolkit.production(
            toolkit.Service(name="lead", description="a lead", production="dbus.service"),
            manager=connect(ManagerKind.SYSTEM),
        )
    except NoManagerError as exc:
        pytest.skip(str(exc))
    before = lead.fingerprint()
    assert re.fullmatch(r"[0-9a-f]{32}", before.values[Aspect.INVOCATION][""])
    assert lead.compare(before).untouched


def test_paths_of_the_api_are_compared_and_ours_are_not(production: dict[str, str]) -> None:
    lead = find("mediamtx", unit=production["mediamtx"])
    before = lead.fingerprint()
    assert "all_others" in before.values[Aspect.PATHS]
    with lead.path("cam0"):
        assert lead.compare(before).untouched
    api = Api(lead.urls["api"])
    api.add("stray")
    try:
        (text,) = said(lead.compare(before))
        assert re.fullmatch(r"API path stray is new, changed between \S+ and \S+", text)
        assert lead.compare(before, expected=RELOADED).untouched
    finally:
        api.delete("stray")
    assert lead.compare(before).untouched
    line = str(lead.compare(before))
    assert re.search(r", \d+ sockets, 1 API path", line)


def test_its_configuration_file_is_found(production: dict[str, str]) -> None:
    lead = find("mediamtx", unit=production["mediamtx"])
    files = lead.fingerprint().values[Aspect.CONFIGURATION]
    assert [Path(name).name for name in files] == ["tests-of-understudy.yml"]


def test_two_units_cannot_be_compared(lead: Production) -> None:
    one = lead.fingerprint()
    other = Fingerprint(unit="x.service", taken_s=0, values={})
    with pytest.raises(ProductionError, match="two units"):
        compare(one, other)


def test_every_production_is_looked_at(lead: Production, tmp_path: Path) -> None:
    before = fingerprints(units=tmp_path / "units")
    name = f"{lead.manager} {UNIT}"
    assert name in before
    (found,) = [
        one
        for one in compare_all(before, fingerprints(units=tmp_path / "units"))
        if one.after.unit == UNIT
    ]
    assert found.untouched
    gone = {key: one for key, one in before.items() if key != name}
    assert [one.differences[0].text for one in compare_all(before, gone) if not one.untouched] == [
        "it was active and is not installed any more"
    ]


def test_looking_leaves_no_connection(lead: Production) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(5):
        lead.compare(lead.fingerprint())
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_the_command_shows_it(production: dict[str, str]) -> None:
    unit = production["mediamtx"]
    done = understudy("production", "mediamtx", "--unit", unit)
    lines = done.stdout.splitlines()
    assert re.match(rf"{unit}  active on the (system|user) manager, PID \d+$", lines[0])
    assert any(re.match(r"api\s+9997  http://127\.0\.0\.1:9997$", line) for line in lines)
    assert any(re.match(r"invocation\s+[0-9a-f]{32}$", line) for line in lines)
    assert any(re.match(r"sockets\s+tcp \S+:9997$", line) for line in lines)
