"""The design's layers: imports go down only, and each thing is done in its one place."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import understudy

PACKAGE = Path(understudy.__file__).parent

RUNGS = {
    "errors": 1,
    "model": 1,
    "names": 1,
    "unitfile": 1,
    "envfile": 1,
    "templates": 2,
    "confided": 2,
    "services": 2,
    "derive": 2,
    "ports": 2,
    "manager": 2,
    "procfs": 2,
    "autogroup": 2,
    "bpf": 2,
    "traces": 2,
    "foreground": 2,
    "netns": 2,
    "network": 3,
    "faults": 3,
    "gate": 2,
    "guard_program": 3,
    "proxy_program": 3,
    "enter_program": 3,
    "private": 3,
    "guard": 3,
    "journal": 3,
    "ready": 3,
    "plan": 3,
    "failure": 3,
    "control": 3,
    "claimed": 3,
    "instance": 3,
    "launch": 3,
    "command": 3,
    "listing": 3,
    "bed_keeper": 4,
    "bed": 4,
    "run": 4,
    "shared": 4,
    "awaiting": 4,
    "lease_program": 3,
    "leases": 3,
    "api": 3,
    "paths": 3,
    "fingerprint": 3,
    "lead": 4,
    "guests": 4,
    "script": 4,
    "seen": 3,
    "effects": 4,
    "check": 4,
    "define": 4,
    "strays": 4,
    "deploy": 4,
    "audit": 5,
    "demo": 5,
    "doctor": 5,
    "cli": 5,
    "plugin": 5,
    "pytest_plugin": 5,
    "__main__": 5,
    "__init__": 5,
}
APART = {"activation", "standins"}
"""What authors of services import, and what plays them: neither imports the toolkit."""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imported(path: Path) -> Iterator[str]:
    """The parts of the package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            words = node.module.split(".")
            if words[0] != "understudy":
                continue
            if len(words) > 1:
                yield words[1]
            else:
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("understudy."):
                    yield alias.name.split(".")[1]


@pytest.mark.parametrize(("part", "path"), list(modules()), ids=lambda value: str(value))
def test_imports_go_down_only(part: str, path: Path) -> None:
    for other in imported(path):
        if part == other:
            continue
        if part in APART:
            assert other in APART, f"{path.name} imports understudy.{other}"
        else:
            assert other not in APART or RUNGS[part] == 5
            assert RUNGS.get(other, 0) <= RUNGS[part], f"{path.name} imports understudy.{other}"


def test_every_module_has_its_rung() -> None:
    parts = {part for part, _ in modules()}
    assert parts <= RUNGS.keys() | APART


def test_only_one_module_imports_pystemd() -> None:
    # It is imported by way of importlib, for pystemd's own __init__ brings much along.
    users = [path.name for _, path in modules() if '"pystemd"' in path.read_text()]
    users += [path.name for _, path in modules() if "pystemd" in imports_of(path)]
    assert users == ["dbus.py"]


def test_only_the_commands_print_or_exit() -> None:
    for part, path in modules():
        if part in {
            "cli",
            "standins",
            "guard_program",
            "proxy_program",
            "enter_program",
            "lease_program",
            "bed_keeper",
        }:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"print", "sys.exit", "exit", "click.echo"}, (path, node.lineno)


def test_only_deploy_says_to_systemctl_what_is_not_of_a_run() -> None:
    # Of the rest `understudy.manager.ours` decides; a unit is never enabled there at all.
    for part, path in modules():
        if part in {"deploy", "standins", "audit"}:  # audit reads such words
            continue
        words = {
            node.value for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }  # fmt: skip
        assert not words & {"enable", "reenable", "disable", "mask"}, path


def test_the_public_names_are_sorted_and_there() -> None:
    assert understudy.__all__ == sorted(understudy.__all__)
    for name in understudy.__all__:
        assert getattr(understudy, name).__name__ == name


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    "program",
    ["guard_program.py", "proxy_program.py", "enter_program.py", "lease_program.py"],
)
def test_programs_of_units_import_the_standard_library_only(program: str) -> None:
    assert imports_of(PACKAGE / program) <= sys.stdlib_module_names


@pytest.mark.parametrize("name", ["guard_program", "lease_program", "bed_keeper"])
def test_what_outlives_the_package_imports_at_its_start(name: str) -> None:
    # An upgrade or a purge takes the files away while these run.
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    later = [
        ast.unparse(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert later == []
