"""Files of the host, written so that nobody can lead root astray.

Every path is walked from the root folder by folder. None of them may be a symbolic link or be
writable for anybody but root, so what is looked at is what is written. A file is replaced by
renaming a complete one over it, and what was there stays beside it under a second name until
everything is done: taking it back needs no space on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from understudy.errors import DeployError

SIZE_LIMIT_BYTES: Final = 4 << 20
"""Beyond this a file is nothing that was deployed, and is not read."""


class Kind(StrEnum):
    """What is at a path."""

    FILE = "file"
    LINK = "link"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is at a path of the host.

    Attributes:
        kind: What it is.
        data: A file's content; where a link leads to.
        mode: Its permission bits.
        uid: The user that it belongs to.
        gid: The group that it belongs to.
    """

    kind: Kind
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0

    @property
    def digest(self) -> str:
        """What tells it from everything else that could be there."""
        return digest(self.data) if self.kind is Kind.FILE else f"{self.kind}:{digest(self.data)}"


def digest(data: bytes) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class Files:
    """The files of one host.

    Args:
        root: The root of its file system; whoever may write above it is not looked for.
        owner: The user who alone may write to its folders.
    """

    def __init__(self, root: Path = Path("/"), *, owner: int = 0) -> None:
        self._root = root
        self._owner = owner

    def look(self, path: str) -> Found | None:
        """What is at a path; None if nothing is.

        Raises:
            DeployError: It cannot be reached safely, or cannot be read.
        """
        try:
            with self._folder(path) as (folder, name):
                return _look(folder, name, path)
        except FileNotFoundError:
            return None

    def missing_folders(self, path: str) -> list[str]:
        """The folders that have to be made before a file can be written, the outermost first.

        Raises:
            DeployError: It cannot be reached safely.
        """
        *parts, name = path.strip("/").split("/")
        for count in range(len(parts), -1, -1):
            try:
                with self._folder("/".join(["", *parts[:count], name])):
                    break
            except FileNotFoundError:
                continue
        return ["/" + "/".join(parts[: at + 1]) for at in range(count, len(parts))]

    def make_folder(self, path: str, mode: int = 0o755) -> None:
        """Make a folder, if it is not there."""
        with self._folder(path) as (folder, name), contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=folder)
            inner = os.open(name, _FOLDER, dir_fd=folder)
            try:
                os.fchmod(inner, mode)  # whatever the umask is
            finally:
                os.close(inner)

    def remove_folder(self, path: str) -> bool:
        """Remove a folder if it is empty, and say whether it is gone."""
        try:
            with self._folder(path) as (folder, name):
                os.rmdir(name, dir_fd=folder)
        except FileNotFoundError:
            return True
        except OSError as exc:
            if exc.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOTDIR):
                return False
            raise
        return True

    def set_access(self, path: str, mode: int, uid: int, gid: int) -> None:
        """Set whose a folder is, and who may do what in it."""
        with self._folder(path) as (folder, name):
            inner = os.open(name, _FOLDER, dir_fd=folder)
            try:
                os.fchown(inner, uid, gid)
                os.fchmod(inner, mode)
            finally:
                os.close(inner)

    def remove_tree(self, path: str) -> None:
        """Remove whatever is there, with all that is in it, and follow no link."""
        with contextlib.suppress(FileNotFoundError), self._folder(path) as (folder, name):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                shutil.rmtree(name, dir_fd=folder)
            else:
                _unlink(folder, name)

    def stage(self, path: str, data: bytes, mode: int, uid: int, gid: int) -> None:
        """Write a file beside the place where it is to be."""
        with self._folder(path) as (folder, name):
            staged = _staged(name)
            _unlink(folder, staged)
            descriptor = os.open(
                staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o600, dir_fd=folder
            )
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)

    def stage_link(self, path: str, target: bytes) -> None:
        """Make a symbolic link beside the place where it is to be."""
        with self._folder(path) as (folder, name):
            _unlink(folder, _staged(name))
            os.symlink(target, _staged(name).encode(), dir_fd=folder)

    def keep(self, path: str) -> None:
        """Give what is there a second name, under which it can be taken back."""
        with self._folder(path) as (folder, name):
            _unlink(folder, _kept(name))
            os.link(name, _kept(name), src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)

    def swap(self, path: str) -> None:
        """Put what was staged in its place."""
        with self._folder(path) as (folder, name):
            os.rename(_staged(name), name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)

    def rename(self, path: str, other: str) -> None:
        """Give a file another name in its folder."""
        with self._folder(path) as (folder, name):
            new = other.rpartition("/")[2]
            os.rename(name, new, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)

    def remove(self, path: str) -> None:
        """Remove a file or link, if it is there."""
        with contextlib.suppress(FileNotFoundError), self._folder(path) as (folder, name):
            _unlink(folder, name)
            os.fsync(folder)

    def take_back(self, path: str) -> bool:
        """Put what was kept back in its place; False if nothing was kept."""
        try:
            with self._folder(path) as (folder, name):
                os.rename(_kept(name), name, src_dir_fd=folder, dst_dir_fd=folder)
                # Of two names of one file rename() leaves both (rename(2)).
                _unlink(folder, _kept(name))
                os.fsync(folder)
        except FileNotFoundError:
            return False
        return True

    def tidy(self, path: str) -> None:
        """Remove what was staged or kept and is not needed any more."""
        with contextlib.suppress(FileNotFoundError), self._folder(path) as (folder, name):
            _unlink(folder, _staged(name))
            _unlink(folder, _kept(name))

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """A folder, as a descriptor."""
        with self._folder(f"{path}/x") as (folder, _name):
            yield folder

    @contextlib.contextmanager
    def _folder(self, path: str) -> Iterator[tuple[int, str]]:
        """The folder of a path, as a descriptor, and the path's last part.

        Raises:
            FileNotFoundError: It is not there.
            DeployError: Others could have led there.
        """
        *parts, name = path.strip("/").split("/")
        if name in ("", ".", "..") or ".." in parts:
            raise DeployError(f"Cannot reach '{path}': it is not a plain path")
        descriptor = os.open(self._root, _FOLDER)
        try:
            self._check(descriptor, "/", path)
            seen = ""
            for part in parts:
                seen += f"/{part}"
                try:
                    inner = os.open(part, _FOLDER, dir_fd=descriptor)
                except OSError as exc:
                    if exc.errno in (errno.ELOOP, errno.ENOTDIR):
                        raise DeployError(
                            f"Cannot reach '{path}': '{seen}' is no folder, or a symbolic link",
                            hint=f"see: ls -ld {seen}",
                        ) from exc
                    raise
                os.close(descriptor)
                descriptor = inner
                self._check(descriptor, seen, path)
            yield descriptor, name
        finally:
            os.close(descriptor)

    def _check(self, descriptor: int, folder: str, path: str) -> None:
        found = os.fstat(descriptor)
        if found.st_uid not in (0, self._owner) or stat.S_IMODE(found.st_mode) & 0o022:
            raise DeployError(
                f"Cannot reach '{path}': others than root may write to '{folder}'",
                hint=f"chown root: {folder} && chmod go-w {folder}",
            )


def identity(owner: str, group: str) -> tuple[int, int]:
    """The numbers of a user and a group.

    Raises:
        DeployError: There is no such user, or no such group.
    """
    try:
        uid = pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise DeployError(
            f"Cannot write files of user '{owner}': there is no such user",
            hint="[deploy.user] in the definition makes one",
        ) from None
    try:
        return uid, grp.getgrnam(group).gr_gid
    except KeyError:
        raise DeployError(
            f"Cannot write files of group '{group}': there is no such group",
            hint="[deploy.user] in the definition makes one",
        ) from None


_SAFE: Final = os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | _SAFE


def _staged(name: str) -> str:
    # A dot before and no known suffix behind: nobody who reads that folder takes it for one of his.
    return f".{name}.understudy-new"


def _kept(name: str) -> str:
    return f".{name}.understudy-old"


def _unlink(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _look(folder: int, name: str, path: str) -> Found | None:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            return Found(kind=Kind.LINK, data=os.readlink(os.fsencode(name), dir_fd=folder))
        if not stat.S_ISREG(status.st_mode):
            return Found(kind=Kind.OTHER, mode=mode, uid=status.st_uid, gid=status.st_gid)
        # Should it be a FIFO by now, that waits for nobody.
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _SAFE, dir_fd=folder)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        data = stream.read(SIZE_LIMIT_BYTES + 1)
    if len(data) > SIZE_LIMIT_BYTES:
        raise DeployError(f"Cannot read '{path}': it is no file that was deployed, for its size")
    return Found(kind=Kind.FILE, data=data, mode=mode, uid=status.st_uid, gid=status.st_gid)
