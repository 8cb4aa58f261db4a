"""What is given away, built once, and throwaway copies of this machine's tree to try it in."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from tests.packaging.support import CHECKOUT, ENTER, PLAIN, Container, Done, run, tool
from tests.systemd.support import require


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the Debian package, the wheel and the source distribution."""
    made = tmp_path_factory.mktemp("packages")
    made.chmod(0o755)
    ready = os.environ.get("UNDERSTUDY_PACKAGES")  # packaging/test has built the package already
    if ready:
        shutil.copy(next(Path(ready).glob("*.deb")), made)
    else:
        tool("dh")
        run(CHECKOUT / "packaging/build", "--deb", made)
    run(CHECKOUT / "packaging/build", "--wheel", made, env=os.environ | {"PYTHON": sys.executable})
    return made


@pytest.fixture(scope="session")
def deb(packages: Path) -> Path:
    """The Debian package."""
    return next(packages.glob("*.deb"))


@pytest.fixture(scope="session")
def root(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package, unpacked."""
    unpacked = tmp_path_factory.mktemp("root")
    run("dpkg-deb", "--extract", deb, unpacked)
    return unpacked


@pytest.fixture
def container(tmp_path: Path, packages: Path) -> Container:
    """Run a script of bash's in a container without a manager, which is gone afterwards.

    With its `capabilities` added to those of Docker's default; "all" for a privileged one. In its
    working directory there is ``ci/`` with the packages.
    """
    require(os.geteuid() == 0, "only root can make containers")
    place = tmp_path / "place"
    place.mkdir()
    work = tmp_path / "work"
    shutil.copytree(packages, work / "ci")

    def enter(script: str, *, capabilities: str = PLAIN, code: int = 0) -> Done:
        bounding = "+all" if capabilities == "all" else ",".join(
            ["-all", *(f"+{name}" for name in capabilities.split())]
        )  # fmt: skip
        return run(
            *("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--"),
            *("/bin/sh", "-c", ENTER, "sh", place, bounding, CHECKOUT, tmp_path),
            code=code,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG": "C.UTF-8",
                "TIMEFORMAT": "%R s",
                "DEBIAN_FRONTEND": "noninteractive",
                "SCRIPT": f"cd {work}\n{script}",
            },
        )

    return enter
