"""Suites of tests/examples, run as their users run them: who does it, and how it ended."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.systemd.hosts import made
from tests.systemd.support import HERE, systemctl

CHECKOUT = HERE.parent.parent
GUEST = "understudy-guest"
LIMIT_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who runs a suite."""

    name: str
    prefix: Sequence[str]
    runtime: Path
    systemctl: Sequence[str]

    def start(self, *command: str, cwd: Path = CHECKOUT) -> subprocess.Popen[str]:
        """A command of this user's, in an environment as of a login."""
        variables = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOST_NETWORK": str(Path("/proc/self/ns/net").readlink()),
        }
        if real := os.environ.get("UNDERSTUDY_MEDIAMTX"):
            variables["UNDERSTUDY_MEDIAMTX"] = real
        return subprocess.Popen(
            [*self.prefix, *command],
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, cwd: Path = CHECKOUT) -> tuple[int, str]:
        """Exit code and output of a command."""
        with self.start(*command, cwd=cwd) as process:
            try:
                output, _ = process.communicate(timeout=LIMIT_S)
            finally:
                process.kill()
        return process.returncode, output

    def traces(self) -> set[str]:
        """What there is of this user's runs: units and files; processes are looked for by all."""
        rows = subprocess.run(
            [*self.prefix, *self.systemctl, "list-units", "--all", "--plain", "--no-legend",
             "understudy-*"],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        places = ("systemd/user/understudy-*", "systemd/transient/understudy-*", "understudy/*")
        files = (path for place in places for path in self.runtime.glob(place))
        return {*(row.split()[0] for row in rows), *map(str, files)}


@contextmanager
def users() -> Iterator[Mapping[str, User]]:
    """Root, and somebody who is nobody in particular and has a manager of their own."""
    with made(GUEST) as [guest]:
        entry = pwd.getpwnam(GUEST)
        runtime = Path(f"/run/user/{entry.pw_uid}")
        systemctl("start", guest.manager)
        as_guest = [
            *("runuser", "-u", GUEST, "--", "env", f"HOME={entry.pw_dir}"),
            *(f"XDG_RUNTIME_DIR={runtime}", f"DBUS_SESSION_BUS_ADDRESS=unix:path={runtime}/bus"),
        ]
        yield {
            "root": User(name="root", prefix=["env"], runtime=Path("/run"),
                         systemctl=["systemctl"]),
            "user": User(name=GUEST, prefix=as_guest, runtime=runtime,
                         systemctl=["systemctl", "--user"]),
        }  # fmt: skip
        guest.end()


def pytest_words(*options: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider", *options]


def outcomes(output: str) -> dict[str, str]:
    """How each test ended, from what ``pytest -v`` prints, with workers or without."""
    row = re.compile(
        r"^(?:\[gw\d+\].*? (?P<told>[A-Z]+) )?\S*::(?P<name>\S+?)(?: (?P<tells>[A-Z]+)\b.*)?\s*$",
        re.MULTILINE,
    )
    return {
        found["name"]: (found["told"] or found["tells"]).lower()
        for found in row.finditer(output.partition(" test session starts ")[2])
        if found["told"] or found["tells"]
    }
