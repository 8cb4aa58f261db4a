"""Which files are audited, and their text."""

from __future__ import annotations

import fnmatch
import io
import os
import re
import stat
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from understudy.audit.rules import Unread

BYTES_MAX: Final = 4 * 1024 * 1024
"""What is larger is data, and would take minutes and gigabytes to parse."""

_SKIPPED: Final = frozenset(
    ("__pycache__", "node_modules", "site-packages", "venv", "build", "dist", "htmlcov")
)
_HIDDEN_READ: Final = frozenset((".github", ".gitlab", ".circleci", ".ci"))
_SHEBANG = re.compile(rb"#!\s*\S*?(?:/env\s+(?:-\S+\s+)*)?([\w.]+)[^/]*$")


class Kind(StrEnum):
    """How a file is read."""

    PYTHON = "python"
    SHELL = "shell"
    YAML = "yaml"
    TOML = "toml"
    JSON = "json"


_SUFFIXES: Final = {
    ".py": Kind.PYTHON,
    ".pyi": Kind.PYTHON,
    ".sh": Kind.SHELL,
    ".bash": Kind.SHELL,
    ".bats": Kind.SHELL,
    ".env": Kind.SHELL,
    ".yml": Kind.YAML,
    ".yaml": Kind.YAML,
    ".toml": Kind.TOML,
    ".json": Kind.JSON,
}


class Source(NamedTuple):
    """A file to audit: its place, how it is read, and what it says."""

    name: str
    kind: Kind
    raw: bytes
    text: str


def sources(paths: Iterable[Path], *, exclude: Sequence[str] = ()) -> Iterator[Source | Unread]:
    """Every file below these paths that can be audited, in order; each of them once.

    Hidden folders, virtual environments and what tools leave behind are passed by, and so are
    definitions of services (``service.toml``), which are where production's numbers belong.

    Args:
        paths: Files, which are read whatever they are called, and folders.
        exclude: Patterns of paths to pass by (fnmatch): ``*/legacy/*``, ``data.json``.
    """
    seen: set[tuple[int, int]] = set()
    for path in paths:
        for file in _files(path, exclude):
            if isinstance(file, Unread):
                yield file
                continue
            one = _read(file, named=file == path, seen=seen)
            if one is not None:
                yield one


def _files(path: Path, exclude: Sequence[str]) -> Iterator[Path | Unread]:
    if not path.is_dir():
        if not _excluded(path, exclude):
            yield path
        return
    troubles: list[OSError] = []
    for top, folders, names in os.walk(path, onerror=troubles.append):
        here = Path(top)
        if "service.toml" in names:
            # A definition, and perhaps its program: this is where production's numbers belong.
            folders.clear()
            continue
        folders[:] = sorted(
            name for name in folders if _walked(here / name) and not _excluded(here / name, exclude)
        )
        for name in sorted(names):
            if not _excluded(here / name, exclude):
                yield here / name
        while troubles:
            trouble = troubles.pop()
            yield Unread(file=str(trouble.filename), reason=str(trouble.strerror))
    for trouble in troubles:
        yield Unread(file=str(trouble.filename), reason=str(trouble.strerror))


def _walked(folder: Path) -> bool:
    name = folder.name
    if name.startswith("."):
        return name in _HIDDEN_READ
    return name not in _SKIPPED and not (folder / "pyvenv.cfg").is_file()


def _excluded(path: Path, patterns: Sequence[str]) -> bool:
    text = path.as_posix()
    return any(
        fnmatch.fnmatch(text, pattern)
        or fnmatch.fnmatch(text, f"*/{pattern}")
        or fnmatch.fnmatch(path.name, pattern)
        for pattern in (pattern.rstrip("/") for pattern in patterns)
    )


def _read(path: Path, *, named: bool, seen: set[tuple[int, int]]) -> Source | Unread | None:
    """One file; None if it is none of those that are audited, or has been read already."""
    kind = Kind.SHELL if path.name == ".env" else _SUFFIXES.get(path.suffix.lower())
    if path.name == "service.toml" or (kind is None and path.suffix and not named):
        return None
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # A FIFO would make us wait for its writer.
            return Unread(file=str(path), reason="not a regular file") if kind or named else None
        if (status.st_dev, status.st_ino) in seen:
            return None
        seen.add((status.st_dev, status.st_ino))
        if kind is None:
            with path.open("rb") as stream:
                kind = _by_shebang(stream.readline(256))
        if kind is None:
            return Unread(file=str(path), reason="not of a known kind") if named else None
        if status.st_size > BYTES_MAX:
            large = f"larger than {BYTES_MAX >> 20} MiB; --exclude '{path.name}' passes it by"
            return Unread(file=str(path), reason=large)
        raw = path.read_bytes()
    except OSError as exc:
        # A file whose name says nothing and which may not be read is none of the suite.
        unreadable = Unread(file=str(path), reason=exc.strerror or str(exc))
        return unreadable if kind or named else None
    text = _decoded(raw, kind)
    if isinstance(text, str):
        return Source(str(path), kind, raw, text)
    return Unread(file=str(path), reason=text[0])


def _by_shebang(line: bytes) -> Kind | None:
    match = _SHEBANG.match(line.strip())
    if not match:
        return None
    program = match[1].decode("ascii", "replace")
    if program.startswith("python"):
        return Kind.PYTHON
    return Kind.SHELL if program in ("sh", "bash", "dash", "ash", "ksh", "zsh", "bats") else None


def _decoded(raw: bytes, kind: Kind) -> str | tuple[str]:
    """The text, or why there is none."""
    if b"\0" in raw:
        return ("binary",)
    encoding = "utf-8-sig"
    if kind is Kind.PYTHON:
        try:
            encoding = tokenize.detect_encoding(io.BytesIO(raw).readline)[0]
        except (SyntaxError, LookupError) as exc:
            return (str(exc.args[0]) if exc.args else "its encoding is unknown",)
    try:
        # Only what the languages themselves call a line ends one.
        return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except (UnicodeDecodeError, LookupError) as exc:
        return (f"not {encoding.removesuffix('-sig')}: {exc}",)
