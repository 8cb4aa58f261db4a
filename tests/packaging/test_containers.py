"""Packages in containers that have no manager: what works there, what does not, and what is said.

The recipes of docs/ci are run as they are written; the one for a runner with systemd is run in a
bed, by tests/systemd/test_packages.py.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from tests.packaging.recipes import CI, commands, lines
from tests.packaging.support import CHECKOUT, Container, run

NO_MANAGER = (
    "Cannot reach the system manager: this machine was not booted with systemd\n"
    "  hint: boot a throwaway one from this very machine, as root: understudy bed -- COMMAND\n"
)
DEFINITION = "/usr/lib/python3/dist-packages/understudy/_units/mediamtx"
SUITE = """
mkdir tests
cat >tests/test_it.py <<'END'
import pytest

@pytest.mark.parametrize("count", [1, 2])
def test_of_an_instance(understudy, count):
    argv = ["/usr/bin/python3", "-m", "http.server", "{port.http}"]
    instances = [understudy.spawn(exec=argv, ports=["http"]) for _ in range(count)]
    assert len({one.ports["http"] for one in instances}) == count

def test_without(): pass
END
"""
INSTALL = "apt-get install --yes ./ci/understudy_*_all.deb >/dev/null 2>&1\n"
JOBS = ("runner", "privileged", "plain")


def _scripts(document: dict[str, Any], job: str) -> list[str]:
    """What a job runs, from the parsed file."""
    if "jobs" in document:
        blocks = [step["run"] for step in document["jobs"][job]["steps"] if "run" in step]
        return [line for block in blocks for line in block.splitlines()]
    return list(document[job]["script"])


@pytest.mark.parametrize("job", JOBS)
def test_recipes_are_yaml_and_run_what_is_tested(job: str) -> None:
    read = {file: yaml.safe_load((CI / file).read_text()) for file in ("github.yml", "gitlab.yml")}
    assert set(read["github.yml"]["jobs"]) == set(read["gitlab.yml"]) == set(JOBS)
    for file, document in read.items():
        assert lines(file, job) == _scripts(document, job)
    assert commands(job)
    without_format = [line.replace(" --format github", "") for line in commands(job)]
    assert lines("gitlab.yml", job) == without_format


SAID = """
exec 2>&1
say() {
    local code=0
    echo "\\$ $*"
    "$@" || code=$?
    echo "= $code"
}
"""


def test_plain_container_says_what_it_lacks(container: Container) -> None:
    *install, audit = commands("plain")
    refused = ["understudy spawn mediamtx", "understudy list", f"understudy check {DEFINITION}"]
    asked = [
        audit,
        *refused,
        "setpriv --reuid 65534 --clear-groups understudy list",
        "understudy run --network private -- true",
        "understudy bed -- true",
        "understudy doctor --only managers",
        "understudy render mediamtx",
        "understudy services",
    ]
    script = [SUITE, *install, SAID, *(f"say {line}" for line in asked)]
    said = _answers(container("\n".join(script)).stdout)
    # What reads, works.
    assert said[audit] == (0, "Nothing found in 1 file.\n")
    code, unit = said["understudy render mediamtx"]
    assert code == 0
    assert "\n[Service]\n" in unit
    code, listed = said["understudy services"]
    assert code == 0
    assert "mediamtx" in listed
    # What starts something does not, and says what would help.
    for command in refused:
        assert said[command] == (1, f"error: {NO_MANAGER}")
    assert said["setpriv --reuid 65534 --clear-groups understudy list"] == (
        1,
        f"error: {NO_MANAGER}".replace("system manager", "user manager of nobody").replace(
            "this machine was not booted with systemd", "it does not run"
        ),
    )
    assert said["understudy run --network private -- true"] == (125, f"error: {NO_MANAGER}")
    code, bed = said["understudy bed -- true"]
    assert code == 125
    assert re.fullmatch(
        r"error: Cannot boot bed 'bed-\w+': this container may not mount \(no CAP_SYS_ADMIN\)\n"
        r"  hint: Start the container privileged: docker run --privileged\n",
        bed,
    )
    code, managers = said["understudy doctor --only managers"]
    assert code == 1
    assert "Cannot reach the system manager: this machine was not booted with systemd" in managers


def test_pytest_in_a_plain_container_says_once_why(container: Container) -> None:
    plain = "/usr/bin/python3 -m pytest -p no:asyncio -q --tb=no tests"
    script = [SUITE, INSTALL, SAID, f"say {plain}", f"say {plain} -n 2"]
    message, hint = NO_MANAGER.splitlines()
    for code, text in _answers(container("\n".join(script)).stdout).values():
        assert code == 1
        assert "2 failed, 1 passed" in text
        ours = [line for line in text.splitlines() if line.startswith("understudy:")]
        why = f"{message} ({hint.strip()})"
        assert ours == [f"understudy: nothing was started, 2 times: {why}"]


def _answers(text: str) -> dict[str, tuple[int, str]]:
    """By command: its exit code and what it said."""
    found = re.findall(r"^\$ (.*)\n((?:.*\n)*?)= ([0-9]+)$", text, re.MULTILINE)
    return {command: (int(code), said) for command, said, code in found}


def test_privileged_container_has_a_bed(container: Container) -> None:
    done = container(SUITE + "\n".join(commands("privileged")), capabilities="all")
    assert "understudy: 3 instances started" in done.stdout
    assert "0 left over" in done.stdout
    assert "3 passed" in done.stdout


def test_install_is_undone_by_uninstall(container: Container) -> None:
    look = "find /usr /opt /etc -not -name '*.pyc' -not -name __pycache__ | sort"
    install = f"{CHECKOUT}/packaging/install"
    done = container(
        f"""
{install} --uninstall  # whoever tests may have installed it
{look} >before
{install} && {install}
{look} >between
command -v understudy
understudy --version
understudy services
man -w understudy understudy-spawn understudy.service-definition
{install} --uninstall
{look} >after
echo == new
comm -13 before between
echo == left
comm -3 before after
"""
    )
    _, new, left = re.split("^== .*\n", done.stdout, flags=re.MULTILINE)
    assert "/usr/local/bin/understudy\nunderstudy 0." in done.stdout
    assert "/usr/local/share/man/man5/understudy.service-definition.5\n" in done.stdout
    for name in (
        "man/man1/understudy-spawn.1",
        "bash-completion/completions/understudy",
        "zsh/site-functions/_understudy",
        "fish/vendor_completions.d/understudy.fish",
    ):
        assert f"/usr/local/share/{name}\n" in new
    assert "/usr/local/lib/systemd/user/understudy.slice\n" in new
    assert left == ""


def test_install_says_how_it_is_used() -> None:
    script = CHECKOUT / "packaging/install"
    assert "--uninstall  Remove all of that" in run(script, "--help").stdout
    assert "Usage: sudo packaging/install" in run(script, "--purge", code=2).stderr
