"""Completions for bash, zsh and fish: their shells read them, and they complete."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from tests.packaging.support import CHECKOUT, run, tool

from understudy.cli import COMMANDS


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the completions are, below ``share``; beside it there is the command in ``bin``."""
    prefix = tmp_path_factory.mktemp("prefix")
    run(
        CHECKOUT / "packaging/completions/build",
        prefix,
        env=os.environ | {"PYTHON": sys.executable},
    )
    command = prefix / "bin/understudy"
    command.parent.mkdir()
    call = "import sys; from understudy.cli import main; main(sys.argv[1:])"
    command.write_text(f"#!{sys.executable}\n{call}\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return prefix / "share"


def test_bash_completes(share: Path) -> None:
    file = share / "bash-completion/completions/understudy"
    run("bash", "-n", file)
    script = """
        source "$1"
        complete -p understudy
        COMP_WORDS=(understudy "${@:2}")
        COMP_CWORD=$(($# - 1))
        _understudy_completion understudy
        printf '%s\\n' "${COMPREPLY[@]}"
    """

    def completed(*words: str) -> list[str]:
        call = ["bash", "-c", script, "bash", str(file), *words]
        lines = run(*call, cwd=CHECKOUT, env=_environment(share)).stdout.splitlines()
        assert "_understudy_completion understudy" in lines[0]
        return lines[1:]

    assert completed("") == list(COMMANDS)
    assert completed("sp") == ["spawn"]
    assert completed("spawn", "--li") == ["--lifetime"]
    assert {"mediamtx", "camera-service"} <= set(completed("spawn", ""))
    assert completed("bed", "u") == ["up"]


def test_zsh_loads_it_by_itself(share: Path) -> None:
    file = share / "zsh/vendor-completions/_understudy"
    run(tool("zsh"), "-n", file)
    assert file.read_text().startswith("#compdef understudy\n")
    # The line that the first use of a file that is loaded goes through: else it completes nothing.
    assert "loadautofunc" in file.read_text()
    script = 'fpath=("$1" $fpath); autoload -U compinit; compinit -u -D; print $_comps[understudy]'
    assert run("zsh", "-f", "-c", script, "zsh", file.parent).stdout == "_understudy\n"


def test_fish_completes(share: Path) -> None:
    file = share / "fish/vendor_completions.d/understudy.fish"
    run(tool("fish"), "--no-execute", file)
    script = "source $argv[1]; complete --do-complete 'understudy sp'"
    lines = run("fish", "--no-config", "-c", script, file, env=_environment(share)).stdout
    assert lines.split()[0] == "spawn"


def test_completing_imports_nothing_heavy(share: Path) -> None:
    words = {"COMP_WORDS": "understudy sp", "COMP_CWORD": "1"}
    asked = {"_UNDERSTUDY_COMPLETE": "bash_complete", **words}
    done = run(
        sys.executable, "-X", "importtime", "-m", "understudy", env=_environment(share) | asked
    )
    assert done.stdout == "plain,spawn\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert (
        imported & {"asyncio", "jinja2", "pystemd", "importlib.metadata", "understudy.run"} == set()
    )


def _environment(share: Path) -> dict[str, str]:
    return {
        "PATH": f"{share.parent / 'bin'}:/usr/bin:/bin",
        "HOME": str(share.parent),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
