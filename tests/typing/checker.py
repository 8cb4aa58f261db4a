"""mypy --strict as a consumer runs it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import understudy

PACKAGES = Path(understudy.__file__).parent.parent


def mypy(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Check a file as a consumer does, who has the package installed and none of our settings."""
    checker = [os.environ.get("UNDERSTUDY_MYPY", "")]
    if not checker[0]:
        checker = [sys.executable, "-m", "mypy"]
        if importlib.util.find_spec("mypy") is None:
            assert os.environ.get("UNDERSTUDY_REQUIRE_ALL") != "1", "UNDERSTUDY_MYPY names no mypy"
            pytest.skip("mypy is not installed")
    (folder / "test_cameras.py").write_text(text)
    # What is installed mypy finds by itself, and will not be told of.
    installed = PACKAGES.name in ("site-packages", "dist-packages")
    return subprocess.run(
        [*checker, f"--python-executable={sys.executable}", "--strict", "--no-error-summary",
         "--config-file=", "--cache-dir=cache", "test_cameras.py"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"} | ({} if installed else {"MYPYPATH": str(PACKAGES)}),
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
