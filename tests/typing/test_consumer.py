"""A consumer's own mypy --strict is content with the public names, and finds mistakes by them."""

from __future__ import annotations

import inspect
from pathlib import Path

from tests.typing.checker import PACKAGES, mypy

import understudy
from understudy.run import Run, SpawnArguments

HERE = Path(__file__).parent


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGES / "understudy/py.typed").exists()


def test_strict_mypy_is_content_with_a_consumers_file(tmp_path: Path) -> None:
    text = (HERE / "consumer.py").read_text()
    done = mypy(tmp_path, text)
    assert done.stdout + done.stderr == ""
    wrong = text.replace('keep_s=600, env={"MTX', 'keep=600, env={"MTX').replace(
        'values={"config": "/dev/null"}', "value=1"
    )
    found = mypy(tmp_path, wrong).stdout
    assert 'Unexpected keyword argument "keep" for "shared"' in found
    assert 'Unexpected keyword argument "value" for "aspawn"' in found


def test_what_is_handed_on_is_what_a_request_takes() -> None:
    taken = inspect.signature(Run.request).parameters
    assert SpawnArguments.__annotations__.keys() == taken.keys() - {"self", "service"}
    spawned = inspect.signature(Run.spawn).parameters
    assert taken.keys() == spawned.keys() - {"timeout_s"}


def test_the_function_hides_no_module() -> None:
    from understudy import lead  # noqa: F401 - whatever was imported before

    assert inspect.isfunction(understudy.production)
