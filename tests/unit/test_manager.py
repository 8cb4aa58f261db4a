"""What of the managers needs none: words, command lines, what is printed and what is refused."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy import manager
from understudy.errors import AccessDeniedError, ManagerError, NoManagerError
from understudy.manager import commands, words
from understudy.model import ManagerKind


@pytest.mark.parametrize("unit", ["understudy-x.service", "understudy-r7k2mq.slice"])
def test_ours_lets_own_units_pass(unit: str) -> None:
    assert manager.ours(unit) == unit


@pytest.mark.parametrize(
    "unit", ["mediamtx.service", "understudy.slice", "understudy", "my-understudy-x.service", ""]
)
def test_ours_refuses_all_others(unit: str) -> None:
    with pytest.raises(AccessDeniedError, match=f"Cannot change '{unit}': ") as error:
        manager.ours(unit)
    assert error.value.hint is not None
    assert "systemctl" in error.value.hint


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a machine that was booted with systemd; nobody has a manager yet."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def runtime_dir(root: Path) -> Iterator[Path]:
    """The usual runtime directory of the calling user, with a manager's socket in it."""
    path = root / f"run/user/{os.geteuid()}"
    yield from listening(path)


def listening(path: Path) -> Iterator[Path]:
    (path / "systemd").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(path / "systemd")  # The whole path may be too long for a socket's.
        try:
            listener.bind("private")
        finally:
            os.chdir(here)
        yield path


def find(root: Path, kind: ManagerKind = ManagerKind.USER) -> Path:
    return manager.find_runtime_dir(kind, root=root)


def test_the_system_managers_directory(root: Path) -> None:
    assert find(root, ManagerKind.SYSTEM) == root / "run"


def test_a_machine_without_systemd_gets_a_bed_as_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    for kind in ManagerKind:
        with pytest.raises(NoManagerError, match="Cannot reach the ") as error:
            find(tmp_path, kind)
        assert error.value.hint is not None
        assert "understudy bed" in error.value.hint


def test_the_usual_directory_is_found_without_the_variable(root: Path, runtime_dir: Path) -> None:
    assert find(root) == runtime_dir


def test_the_variable_may_name_another_directory(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in listening(tmp_path / "elsewhere"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
        assert find(root) == path


@pytest.mark.parametrize("named", ["/", "/nonexistent", "relative"])
def test_a_variable_that_leads_nowhere_is_passed_over(
    root: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", named)
    assert find(root) == runtime_dir


def test_another_users_directory_is_passed_over(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in listening(tmp_path / "elsewhere"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda uid=other: uid)
        with pytest.raises(NoManagerError, match="Cannot reach the user manager of "):
            find(root)


def test_no_user_manager_is_a_hint_on_lingering(root: Path) -> None:
    with pytest.raises(NoManagerError, match="Cannot reach the user manager of ") as error:
        find(root)
    assert error.value.hint is not None
    assert "loginctl enable-linger" in error.value.hint


def test_a_user_manager_that_does_not_run_is_a_hint_on_starting_it(root: Path) -> None:
    (root / f"run/user/{os.geteuid()}").mkdir(parents=True)
    with pytest.raises(NoManagerError, match="Cannot reach the user manager of ") as error:
        find(root)
    assert error.value.hint == f"sudo systemctl start user@{os.geteuid()}.service"


@pytest.mark.parametrize(
    ("text", "usec"),
    [
        ("90", 90_000_000),
        ("3600.500", 3_600_500_000),
        ("5s", 5_000_000),
        ("1min 30s", 90_000_000),
        ("1h30m", 5_400_000_000),
        (" 20 ms ", 20_000),
        ("0", 0),
        ("infinity", words.INFINITY),
    ],
)
def test_time_spans(text: str, usec: int) -> None:
    assert words.microseconds(text) == usec


@pytest.mark.parametrize("text", ["", " ", "soon", "5 parsecs", "-1", "5s x"])
def test_what_is_no_time_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a time span"):
        words.microseconds(text)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("Description", "a 'b'", [("Description", "s", "a 'b'")]),
        ("BindsTo", "a.service b.slice", [("BindsTo", "as", ["a.service", "b.slice"])]),
        ("Environment", "'A=b c' D=", [("Environment", "as", ["A=b c", "D="])]),
        ("RemainAfterExit", "yes", [("RemainAfterExit", "b", True)]),
        ("DefaultDependencies", "off", [("DefaultDependencies", "b", False)]),
        ("RuntimeMaxSec", "2min", [("RuntimeMaxUSec", "t", 120_000_000)]),
        ("TimeoutStopSec", "5", [("TimeoutStopUSec", "t", 5_000_000)]),
        ("OOMScoreAdjust", "-100", [("OOMScoreAdjust", "i", -100)]),
        ("KillSignal", "SIGINT", [("KillSignal", "i", 2)]),
        ("KillSignal", "TERM", [("KillSignal", "i", 15)]),
        ("UMask", "077", [("UMask", "u", 63)]),
        ("LogExtraFields", "A=b", [("LogExtraFields", "aay", [[65, 61, 98]])]),
        (
            "LimitNOFILE",
            "64:infinity",
            [("LimitNOFILE", "t", words.INFINITY), ("LimitNOFILESoft", "t", 64)],
        ),
        ("CapabilityBoundingSet", "", [("CapabilityBoundingSet", "t", 0)]),
        ("CapabilityBoundingSet", "CAP_CHOWN CAP_KILL", [("CapabilityBoundingSet", "t", 33)]),
        ("IOSchedulingClass", "best-effort", [("IOSchedulingClass", "i", 2)]),
        ("SystemCallErrorNumber", "EPERM", [("SystemCallErrorNumber", "i", 1)]),
        ("StartLimitIntervalSec", "0", [("StartLimitIntervalUSec", "t", 0)]),
        ("RestrictNamespaces", "yes", [("RestrictNamespaces", "t", 0)]),
        ("SystemCallFilter", "~@a b", [("SystemCallFilter", "(bas)", (False, ["@a", "b"]))]),
        ("RestrictAddressFamilies", "none", [("RestrictAddressFamilies", "(bas)", (True, []))]),
        (
            "BindReadOnlyPaths",
            '-/a "/b c":"/d e"',
            [
                (
                    "BindReadOnlyPaths",
                    "a(ssbt)",
                    [("/a", "/a", True, 0x4000), ("/b c", "/d e", False, 0x4000)],
                )
            ],
        ),
        (
            "TemporaryFileSystem",
            "/r:ro,mode=755",
            [("TemporaryFileSystem", "a(ss)", [("/r", "ro,mode=755")])],
        ),
        (
            "AssertPathExists",
            "/a",
            [("Asserts", "a(sbbs)", [("AssertPathExists", False, False, "/a")])],
        ),
        (
            "IPAddressAllow",
            "localhost 192.0.2.7",
            [
                (
                    "IPAddressAllow",
                    "a(iayu)",
                    [
                        (2, [127, 0, 0, 0], 8),
                        (10, [*[0] * 15, 1], 128),
                        (2, [192, 0, 2, 7], 32),
                    ],
                )
            ],
        ),
        ("SocketBindDeny", "any", [("SocketBindDeny", "a(iiqq)", [(0, 0, 0, 0)])]),
        ("SocketBindAllow", "ipv4:udp", [("SocketBindAllow", "a(iiqq)", [(2, 17, 0, 0)])]),
        ("SocketBindAllow", "tcp:80-82", [("SocketBindAllow", "a(iiqq)", [(0, 6, 3, 80)])]),
        (
            "ExecStop",
            "-/bin/sh -c 'a b'",
            [("ExecStop", "a(sasb)", [("/bin/sh", ["/bin/sh", "-c", "a b"], True)])],
        ),
    ],
)
def test_directives_as_dbus_properties(
    name: str, value: str, expected: list[tuple[str, str, object]]
) -> None:
    assert words.typed(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("Colour", "blue", "Cannot set 'Colour': no known property"),
        ("RemainAfterExit", "maybe", "Cannot set 'RemainAfterExit': not a boolean: 'maybe'"),
        ("RuntimeMaxSec", "soon", "Cannot set 'RuntimeMaxSec': not a time span: 'soon'"),
        ("KillSignal", "SIGNAL", "Cannot set 'KillSignal': not a signal: 'SIGNAL'"),
        ("OOMScoreAdjust", "much", "Cannot set 'OOMScoreAdjust': invalid literal"),
        ("ExecStop", "-", "Cannot set 'ExecStop': no program is named"),
        ("ExecStop", "+/bin/true", "Cannot set 'ExecStop': of the prefixes"),
        ("CapabilityBoundingSet", "~", "Cannot set .*: only a set of capabilities is known"),
        ("IOSchedulingClass", "best", "Cannot set .*: none of none, realtime, best-effort, idle"),
        ("SystemCallErrorNumber", "ESOON", "Cannot set .*: not an error number: 'ESOON'"),
        ("ReadWritePaths", "/a\\x20b", "Cannot set 'ReadWritePaths': a backslash is not known"),
        ("BindPaths", "/a:/b:odd", "Cannot set 'BindPaths': not a bind: '/a:/b:odd'"),
        ("AssertPathExists", "!/a", "Cannot set 'AssertPathExists': not an absolute path"),
        ("IPAddressDeny", "everybody", "Cannot set 'IPAddressDeny': .*does not appear to be"),
        ("SocketBindDeny", "sctp:80", "Cannot set 'SocketBindDeny': not a port to bind"),
        ("Environment", "'A=b", "Cannot set 'Environment': .*a quote is not closed"),
    ],
)
def test_directives_that_make_no_sense_are_refused(name: str, value: str, message: str) -> None:
    with pytest.raises(ManagerError, match=message):
        words.typed(name, value)


def test_complete_types() -> None:
    assert words.complete_types("ssa(sv)a(sa(sv))aas") == ["s", "s", "a(sv)", "a(sa(sv))", "aas"]
    assert words.complete_types("") == []


def test_busctl_words_have_lengths_and_types() -> None:
    values = ["x", [("N", ("as", ["a", "b"])), ("B", ("b", True))], []]
    assert commands.busctl_words("sa(sv)as", values) == shlex.split("x 2 N as 2 a b B b true 0")


def test_systemd_run_takes_its_command_literally() -> None:
    line = commands.systemd_run(
        ManagerKind.USER,
        "understudy-x@r-1.service",
        [("Environment", "A=b c"), ("Slice", "understudy-r.slice")],
        ["/bin/a$b", "$HOME", "50%", "$$"],
        options=["--collect"],
    )
    assert line == [
        "systemd-run",
        "--user",
        "--unit=understudy-x@r-1.service",
        "--collect",
        "--property=Environment=A=b c",
        "--property=Slice=understudy-r.slice",
        "--",
        "/bin/a$b",
        "$$HOME",
        "50%",
        "$$$$",
    ]


def test_show_is_read_unit_by_unit() -> None:
    text = "Result=success\nId=a.service\nDescription=one=two\n\nId=b.slice\nDescription=\n"
    assert commands.parse_show(text, ["Id", "Result", "Description"]) == [
        {"Result": "success", "Id": "a.service", "Description": "one=two"},
        {"Id": "b.slice", "Description": ""},
    ]


def test_show_keeps_values_of_several_lines() -> None:
    text = "Id=a.service\nStatusText=one\n\nnot=asked\nthree\nResult=success\n"
    assert commands.parse_show(text, ["Id", "StatusText", "Result"], several=False) == [
        {"Id": "a.service", "StatusText": "one\n\nnot=asked\nthree", "Result": "success"}
    ]


def state(active: str, *, job: str = "", left: int = 0, up: int = 0, **more: str) -> dict[str, str]:
    return {
        "LoadState": "loaded",
        "ActiveState": active,
        "Job": job,
        "Result": "success",
        "InactiveExitTimestampMonotonic": str(left),
        "ActiveEnterTimestampMonotonic": str(up),
        **more,
    }


BEGUN = 100


@pytest.mark.parametrize(
    ("shown", "result"),
    [
        (state("activating", job="7", left=110), None),
        (state("active", left=50, up=60), "done"),
        (state("active", left=110, up=120), "done"),
        (state("failed", left=110, up=120, Result="exit-code"), "done"),
        (state("inactive", left=110, up=120), "done"),
        (state("inactive", left=110, up=0), "done"),
        (state("failed", left=110, up=60, Result="exit-code"), "failed"),
        (state("inactive", left=0, up=0), "dependency"),
        (state("failed", left=50, up=60, Result="exit-code"), "dependency"),
        (state("inactive", left=0, up=0, LoadState="not-found"), "failed"),
    ],
)
def test_a_jobs_result_is_told_from_what_it_left(shown: dict[str, str], result: str | None) -> None:
    assert commands.job_result(shown, BEGUN) == result
