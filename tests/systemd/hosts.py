"""Users of a host that is thrown away afterwards, as an administrator has them."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.systemd.support import eventually, show, systemctl


@dataclass(frozen=True)
class User:
    """A user of this host."""

    name: str
    uid: int
    gid: int

    @property
    def manager(self) -> str:
        return f"user@{self.uid}.service"

    @property
    def slice(self) -> str:
        return f"user-{self.uid}.slice"

    def run(self, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command by this user, as from a login."""
        return subprocess.run(
            words,
            user=self.uid,
            group=self.gid,
            extra_groups=os.getgrouplist(self.name, self.gid),
            env={
                "PATH": os.environ["PATH"],
                "HOME": pwd.getpwuid(self.uid).pw_dir,
                "XDG_RUNTIME_DIR": f"/run/user/{self.uid}",
                "PYTHONDONTWRITEBYTECODE": "1",
                **variables,
            },
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def understudy(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; from understudy.cli import main; main(sys.argv[1:])"
        return self.run(sys.executable, "-c", code, *words, **variables)

    def end(self) -> None:
        """The end of all that is the user's, as systemd-logind knows it."""
        words = ["loginctl", "terminate-user", self.name]
        if subprocess.run(words, check=False, capture_output=True).returncode:
            systemctl("stop", self.manager)  # started by hand, or gone: unknown to it
        # Else the next user with this number would not be known by name.
        assert eventually(lambda: not Path(f"/run/systemd/users/{self.uid}").exists())
        wanted = {"ActiveState": "inactive"}
        for unit in (self.manager, self.slice, f"user-runtime-dir@{self.uid}.service"):
            assert eventually(lambda unit=unit: show(unit, "ActiveState") == wanted)  # type: ignore[misc]

    def guards(self) -> str:
        words = ("list-units", "--plain", "--no-legend", "understudy-guard@*.service")
        return self.run("systemctl", "--user", *words).stdout


@contextmanager
def made(*names: str) -> Iterator[Sequence[User]]:
    """Users that are there for as long as the block lasts."""
    with ExitStack() as undo:
        for name in names:
            subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", name], check=True)
            words = ["userdel", "--remove", name]
            undo.callback(subprocess.run, words, check=True, capture_output=True)
        entries = [pwd.getpwnam(name) for name in names]
        yield [User(entry.pw_name, entry.pw_uid, entry.pw_gid) for entry in entries]
