"""Put a definition where it belongs, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from understudy import derive, services
from understudy.define.facts import Definition
from understudy.errors import UsageError
from understudy.model import ManagerKind, Part

_RUN = "r00000"


def place(definition: Definition, parent: Path, *, force: bool = False) -> Path:
    """Write a definition's folder; it is read and derived from before anybody can see it.

    Args:
        definition: The definition.
        parent: The folder of definitions in which it becomes one; made if it is not there.
        force: Whether it may replace a definition of that name.

    Returns:
        The new folder.

    Raises:
        UsageError: There is a folder of that name, or something that is no definition.
        DefinitionError: What was written is no definition.
        RenderError: No instance can be derived from it.
        OSError: The folder cannot be written.
    """
    folder = parent / definition.name
    _check_free(folder, force=force)
    parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=parent, prefix=".understudy-define-") as name,
        _opened(name) as working,
    ):
        made = Path(working, definition.name)
        _write(definition, made)
        check(made)
        if folder.is_dir():
            folder.rename(Path(working, "before"))
            try:
                made.rename(folder)
            except OSError:
                Path(working, "before").rename(folder)
                raise
        else:
            made.rename(folder)
    return folder


@contextlib.contextmanager
def _opened(name: str) -> Iterator[Path]:
    """A folder by its descriptor: whoever owns what it lies in cannot put another in its place."""
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise UsageError(f"Cannot write '{name}': somebody else has put it there")
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def try_out(definition: Definition) -> None:
    """Read it and derive from it without leaving anything.

    Args:
        definition: The definition.

    Raises:
        DefinitionError: It is none.
        RenderError: No instance can be derived from it.
    """
    with tempfile.TemporaryDirectory(prefix="understudy-define-") as working:
        made = Path(working, definition.name)
        _write(definition, made)
        check(made)


def check(folder: Path) -> None:
    """Read a definition, and derive production and an instance for each manager from it.

    Args:
        folder: The definition's folder.

    Raises:
        DefinitionError: It is none.
        RenderError: No instance can be derived from it.
    """
    service = services.opened(services.load(folder, str(folder.parent)))
    derive.render_production(service, {})
    numbers = {name: 20000 + at for at, name in enumerate(service.ports)}
    for kind in ManagerKind:
        runtime_dir = "/run" if kind is ManagerKind.SYSTEM else "/run/user/0"
        part = Part(run=_RUN, number=1, kind=kind, runtime_dir=runtime_dir, ports=numbers)
        derive.derive(service, part)


def _check_free(folder: Path, *, force: bool) -> None:
    if not (folder.exists() or folder.is_symlink()):
        return
    if not force:
        raise UsageError(
            f"Cannot write '{folder}': it is there already", hint="another --name, or --force"
        )
    if folder.is_symlink() or not (folder / "service.toml").is_file():
        raise UsageError(
            f"Cannot replace '{folder}': it is no definition", hint="another --name or --output"
        )


def _write(definition: Definition, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    for name, text in definition.files.items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        if name not in definition.private:
            path.chmod(0o644)
