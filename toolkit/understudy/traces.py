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

SHARED: Final = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")
"""Where everybody may write: of these only the first level is looked at."""


class Stamp(NamedTuple):
    """What changes when a file does (inode(7)); of a folder only its being there counts."""

    inode: int
    size: int
    changed_ns: int
    owner: int


Look = Mapping[str, Stamp]
"""The files that were there, by path."""


def look(folders: Iterable[Path], *, without: Collection[str] = ()) -> Look:
    """Look at all files in these folders, and at what lies directly in `SHARED`.

    Symbolic links are not followed, and what the caller may not read is left out.

    Args:
        folders: With everything below them; one that is not there is empty.
        without: Paths that are left out, with everything below them.
    """
    found: dict[str, Stamp] = {}
    for folder in SHARED:
        for entry in _entries(folder):
            _add(found, entry)
    for folder in map(str, folders):
        waiting = [] if folder in SHARED else [folder]
        room = FILES_MAX
        while waiting and room:
            for entry in _entries(waiting.pop()):
                if entry.path in without or not room:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    room -= 1
                    _add(found, entry)
    return found


def changes(before: Look, after: Look, *, owners: Collection[int]) -> list[str]:
    """What differs, for people: ``/srv/x (new)``, ``/srv/y (changed)``, ``/srv/z (gone)``.

    Args:
        before: The first look.
        after: The second.
        owners: The user IDs whose files count in `SHARED`, where everybody's come and go.
    """
    words = {
        **dict.fromkeys(after.keys() - before.keys(), "new"),
        **dict.fromkeys(before.keys() - after.keys(), "gone"),
        **{path: "changed" for path in before.keys() & after if before[path] != after[path]},
    }
    stamps = {**before, **after}
    return [
        f"{path} ({word})"
        for path, word in sorted(words.items())
        if str(Path(path).parent) not in SHARED or stamps[path].owner in owners
    ]


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
