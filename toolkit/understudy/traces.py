"""Files that came, changed or went between two looks at some folders.

A look is bounded: of a folder with more than `FILES_MAX` files the rest is not seen.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

FILES_MAX: Final = 20_000
"""How many files of a folder are looked at."""

SHARED: Final = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/run/lock"))
"""Where everybody may write: of these only the first level is looked at, and only one's own."""


class Stamp(NamedTuple):
    """What changes when a file does (inode(7)); of a folder only its being there counts."""

    inode: int
    size: int
    changed_ns: int
    owner: int


Look = Mapping[str, Stamp]
"""The files that were there, by path."""


def look(folders: Iterable[Path], *, without: Collection[str] = ()) -> Look:
    """Look at all files in these folders.

    Folders themselves and what the caller may not read are left out, and symbolic links are not
    followed.

    Args:
        folders: With everything below them; one that is not there is empty.
        without: Paths that are left out, with everything below them.
    """
    found: dict[str, Stamp] = {}
    for folder in folders:
        room = FILES_MAX
        waiting = [str(folder)]
        while waiting and room:
            for entry in _entries(waiting.pop()):
                if entry.path in without or not room:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                room -= 1
                _add(found, entry)
    return found


def look_shared(folders: Iterable[Path] = SHARED) -> Look:
    """Look at what lies directly in the folders where everybody may write."""
    found: dict[str, Stamp] = {}
    for folder in folders:
        for entry in _entries(str(folder)):
            _add(found, entry)
    return found


def changes(before: Look, after: Look) -> list[str]:
    """What differs, for people: ``/srv/x (new)``, ``/srv/y (changed)``, ``/srv/z (gone)``."""
    new = dict.fromkeys(after.keys() - before.keys(), "new")
    gone = dict.fromkeys(before.keys() - after.keys(), "gone")
    changed = {path: "changed" for path in before.keys() & after if before[path] != after[path]}
    return [f"{path} ({word})" for path, word in sorted((new | gone | changed).items())]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _add(found: dict[str, Stamp], entry: os.DirEntry[str]) -> None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:  # gone meanwhile
        return
    folder = stat.S_ISDIR(status.st_mode)
    found[entry.path] = Stamp(
        inode=status.st_ino,
        size=0 if folder else status.st_size,
        changed_ns=0 if folder else status.st_mtime_ns,
        owner=status.st_uid,
    )
