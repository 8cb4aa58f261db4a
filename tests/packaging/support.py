"""How the tests of packages run commands, and what a container is to them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

from tests.systemd.support import require

CHECKOUT = Path(__file__).parents[2]

Done: TypeAlias = subprocess.CompletedProcess[str]

# What a container of Docker's has that is not privileged.
PLAIN = (
    "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw "
    "sys_chroot mknod audit_write setfcap"
)

# Its tree is this machine's, all that is written goes to a tmpfs; there is no manager, no network.
ENTER = """
set -eu
place=$1 capabilities=$2
shift 2
mount -t tmpfs -o mode=755 tmpfs "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$place/root"
cd "$place/root"
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs run
for bound; do
    mkdir -p "./$bound"
    mount --rbind "$bound" "./$bound"
done
echo 'Acquire::Retries "0";' >etc/apt/apt.conf.d/99offline
rm -f var/lib/man-db/auto-update # an index of all pages, for each package
mkdir .outside
pivot_root . .outside
umount --lazy .outside
rmdir .outside
exec setpriv --bounding-set "$capabilities" /bin/bash -eu -c "$SCRIPT"
"""


class Container(Protocol):
    """Runs a script of bash's in a container, to its end."""

    def __call__(self, script: str, *, capabilities: str = PLAIN, code: int = 0) -> Done:
        """The container is gone afterwards; `capabilities` is "all" for a privileged one."""


def run(
    *command: str | Path,
    code: int = 0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> Done:
    """A command that ends with this exit code."""
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        env=env,
        cwd=cwd,
        input=stdin,
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def tool(name: str) -> str:
    """A program that these tests look with."""
    require(shutil.which(name) is not None, f"{name} is not installed")
    return name
