"""All of pytest in a bed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.bed import Bed
from understudy.errors import BedError
from understudy.pytest_plugin import INSIDE_BED, given, stands_in


def run_in_bed(config: pytest.Config) -> int:
    """Run the same command line in a bed of its own, which ends with it.

    Args:
        config: The session's.

    Returns:
        Its exit code.

    Raises:
        UsageError: This process is not root's, or the bed cannot be booted.
    """
    if os.geteuid() != 0:
        raise pytest.UsageError(
            "--understudy-bed: only root can boot a bed: sudo "
            f"{sys.executable} -m pytest …; without a bed your own user manager is used"
        )
    command = [sys.executable, "-m", "pytest", *map(str, config.invocation_params.args)]
    try:
        with Bed.up(binds=list(dict.fromkeys(_bound(config))), owner_pid=os.getpid()) as bed:
            return bed.run(command, env={INSIDE_BED: bed.name})
    except BedError as exc:
        raise pytest.UsageError(f"--understudy-bed: {exc}") from exc


def _bound(config: pytest.Config) -> Iterator[Path]:
    """What pytest writes to outside of the working directory."""
    yield config.rootpath
    for name in ("xmlpath", "basetemp"):
        if value := config.getoption(name, None):
            yield (config.invocation_params.dir / value).absolute().parent
    if logs := given(config, "logs"):
        folder = stands_in(config, "logs") / str(logs)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
