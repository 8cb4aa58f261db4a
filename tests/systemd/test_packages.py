"""The Debian package on a machine: installed by apt, used, upgraded and purged while runs live.

Without a network, as root, where the machine is to be thrown away. What is installed is used by its
absolute path: the tests' own environment is another one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.packaging.recipes import commands
from tests.systemd import suites
from tests.systemd.support import (
    ROOT,
    eventually,
    get,
    left_since,
    require,
    require_throwaway,
    show,
    systemctl,
    traces,
)

pytestmark = pytest.mark.skipif(not ROOT, reason="only root installs packages, in its session")

COMMAND = "/usr/bin/understudy"
SERVER = "/usr/bin/python3 -m http.server --bind 127.0.0.1 {port.http}"
PLACES = ("/etc", "/opt", "/usr", "/var")

SUITE = """
import sys

def test_of_the_systems_python(understudy):
    assert sys.modules["understudy"].__file__.startswith("/usr/lib/python3/dist-packages/")
    argv = ["/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1", "{port.http}"]
    one, other = (understudy.spawn(exec=argv, ports=["http"]) for _ in range(2))
    assert one.ports["http"] != other.ports["http"]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with the package in ci/, as docs/ci has it; apt has installed it."""
    built = os.environ.get("UNDERSTUDY_PACKAGES")
    require(bool(built), "no package was built: UNDERSTUDY_PACKAGES names the folder it is in")
    require_throwaway()
    folder = Path("/var/tmp/tests-of-packages")
    folder.mkdir(mode=0o755)
    shutil.copytree(str(built), folder / "ci")
    (folder / "tests").mkdir()
    (folder / "tests/test_it.py").write_text(SUITE)
    # An index of all pages for each package takes longer than all else here.
    Path("/var/lib/man-db/auto-update").unlink(missing_ok=True)
    offline = Path("/etc/apt/apt.conf.d/99offline")
    offline.write_text('Acquire::Retries "0";\n')
    before = _files()
    for line in commands("runner")[:2]:
        assert line.startswith("sudo apt-get ")
        _sh(line.removeprefix("sudo "), cwd=folder)
    yield folder
    subprocess.run(["dpkg", "--purge", "understudy"], capture_output=True, check=False)
    assert _files() - before == set()
    offline.unlink()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tester(project: Path, _users: Mapping[str, suites.User]) -> Iterator[suites.User]:
    """Somebody else than root, with a manager that stays whatever `withdraw` undoes."""
    user = _users["user"]
    _sh(f"loginctl enable-linger {user.name}")
    yield user
    _sh(f"loginctl disable-linger {user.name}")


def test_a_runner_with_systemd_tests_as_the_recipe_says(project: Path, tester: suites.User) -> None:
    for line in commands("runner")[2:]:
        if line.startswith("sudo "):
            words = line.removeprefix("sudo ").replace("$(id -un)", tester.name)
            _sh(words, cwd=project)
        else:
            code, said = tester.run("/bin/sh", "-c", f"PATH=/usr/bin:/bin; {line}", cwd=project)
            assert code == 0, said
    assert "1 passed" in said
    assert "2 instances started" in said
    assert "0 left over" in said
    _sh(f"{COMMAND} withdraw --tester {tester.name}")


def test_units_name_a_page_that_is_there(project: Path) -> None:
    _sh("dpkg --verify understudy")
    one = json.loads(_sh(f"{COMMAND} spawn --json --exec '{SERVER}' --port http"))[0]
    for unit in (one["unit"], f"understudy-guard@{one['run']}.service"):
        assert show(unit, "Documentation")["Documentation"].strip('"') == "man:understudy(1)"
    assert Path("/usr/share/man/man1/understudy.1.gz").exists()
    # Where both want a processor, production comes first.
    assert show("understudy.slice", "CPUWeight") == {"CPUWeight": "20"}
    _sh(f"{COMMAND} stop {one['run']}")
    assert "--understudy-network" in _sh("/usr/bin/python3 -m pytest --help")


def test_bash_completes_what_is_installed(project: Path) -> None:
    script = """
        source /usr/share/bash-completion/completions/understudy
        COMP_WORDS=(understudy serv) COMP_CWORD=1
        _understudy_completion understudy
        echo "${COMPREPLY[@]}"
    """
    assert _sh(f"PATH=/usr/bin:/bin bash -c '{script}'") == "services\n"


def test_runs_live_through_upgrade_and_purge(project: Path, tester: suites.User) -> None:
    before = traces()
    # Root's two end when they are told to, the user's one with its command.
    plain = json.loads(_sh(f"{COMMAND} spawn --json --exec '{SERVER}' --port http"))[0]
    private = json.loads(
        _sh(f"{COMMAND} spawn --json --network private --exec '{SERVER}' --port http:8003")
    )[0]
    end = project / "end"
    os.mkfifo(end)
    end.chmod(0o666)
    owner = tester.start(
        *(COMMAND, "spawn", "--network", "private", "--exec", SERVER, "--port", "http:8003"),
        *("--", "/bin/sh", "-c", f"echo $UNDERSTUDY_PYTHON3_HTTP_URL; read line <{end}"),
        cwd=project,
    )
    assert owner.stdout is not None
    url = _first_url(owner.stdout)
    instances = [plain, private]
    lives = [_life(one["unit"]) for one in instances]

    _sh(f"dpkg --install {_newer(project)}")
    assert Path("/usr/lib/python3/dist-packages/understudy/newer.py").exists()
    listed = json.loads(_sh(f"{COMMAND} list --json"))
    assert {one["unit"] for one in instances} <= {one["unit"] for one in listed}
    assert [_life(one["unit"]) for one in instances] == lives

    _sh("dpkg --purge understudy")
    assert not Path("/usr/lib/python3/dist-packages/understudy").exists()
    assert [_life(one["unit"]) for one in instances] == lives
    for address in (url, *(f"http://127.0.0.1:{one['ports']['http']}" for one in instances)):
        assert "<title>Directory listing" in get(address)

    end.write_text("\n")
    rest, _ = owner.communicate(timeout=30)
    assert (owner.returncode, rest) == (0, "")
    for one in instances:
        systemctl("stop", f"understudy-guard@{one['run']}.service")
    assert left_since(before) == set()
    assert eventually(lambda: not tester.traces())


def _sh(line: str, *, cwd: Path = Path("/")) -> str:
    """What a command line of root's prints."""
    done = subprocess.run(
        ["/bin/sh", "-euc", line],
        cwd=cwd,
        env={
            "PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def _first_url(stream: Any) -> str:
    """The first line that is a URL."""
    said = []
    for line in stream:
        if line.startswith("http://"):
            return str(line.strip())
        said.append(line)
    raise AssertionError(f"it ended without a URL: {''.join(said)}")


def _life(unit: str) -> tuple[str, ...]:
    return tuple(show(unit, "ActiveState", "InvocationID", "MainPID").values())


def _files() -> set[str]:
    """All files and folders of ours on the disk, but for the tests' own."""
    found = _sh(f"find {' '.join(PLACES)} -xdev -name '*understudy*' -not -path '/var/cache/*'")
    return set(found.splitlines())


def _newer(project: Path) -> Path:
    """A newer version of the package, with one file more."""
    tree, made = project / "newer", project / "newer.deb"
    _sh(
        f"dpkg-deb --raw-extract ci/understudy_*.deb {tree}"
        f" && sed -i 's/^Version: .*/&+newer/' {tree}/DEBIAN/control"
        f" && touch {tree}/usr/lib/python3/dist-packages/understudy/newer.py"
        f" && dpkg-deb -Znone --root-owner-group --build {tree} {made}",
        cwd=project,
    )
    shutil.rmtree(tree)
    return made
