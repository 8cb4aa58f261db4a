"""Copies of configuration files, as instances have them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from understudy.define import known, words
from understudy.define.plan import Plan
from understudy.define.words import Edit, literal, template


@dataclass(kw_only=True)
class Copy:
    """A copy of a configuration file.

    Attributes:
        name: Its name in an instance's folder.
        path: What it is a copy of.
        text: The template.
        over: The path over which it is bound; "" where its reader is told of it.
    """

    name: str
    path: str
    text: str = ""
    over: str = ""


class Copies:
    """The copies that a definition has.

    Args:
        plan: What is settled already: its ports and places.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.files: dict[str, Copy] = {}
        """By the path that each is a copy of."""
        self.private: set[str] = set()
        """Templates that are not for everybody to read."""

    def file(self, path: str, *, main: bool = True) -> Copy | None:
        """The instance's copy of a configuration file; None where production's will do.

        Args:
            path: The file.
            main: Whether the service is told of it itself, and no other file includes it.
        """
        path = str(PurePosixPath(path))
        if path in self.files:
            return self.files[path]
        source = self.plan.facts.files.get(path)
        if source is None:
            return None
        if source.text is None:
            self.plan.note(
                f"'{path}' {source.problem}: what it says is not known",
                f"sudo understudy define {self.plan.facts.unit}"
                if source.private
                else "write a template for it, and name it in [instance.files]",
            )
            return None
        if words.is_certificate(path):
            self.plan.note(
                f"'{path}' is a key or a certificate, and not copied",
                "instances are told of production's: give them one of their own",
            )
            return None
        one = Copy(name=self._file_name(path), path=path)
        self.files[path] = one  # before its includes: they may name it again
        if words.is_secret_file(path, source.text):
            self.plan.secrets.update(source.text.split())
            name = re.sub(r"\W", "_", PurePosixPath(path).stem.lower()).strip("_")
            one.text = (
                f"{{# {path}, a secret, is not taken. #}}\n{{{{ {self.plan.value(name)} }}}}\n"
            )
            return one
        text = words.without_comments(source.text)
        edits = [
            *known.adjusted(self.plan.unit.stem, text, main=main),
            *self._include_edits(path, text),
            *self.plan.secret_edits(text, private=source.private),
            *self.plan.path_edits(text),
        ]
        for edit, port in self.plan.port_edits(text):
            edits.append(edit)
            port.file = port.file or one.name
            port.where.append(path)
        if not edits and (not main or not path.startswith("/etc/")):
            del self.files[path]
            return None
        if source.private:
            self.private.add(f"{one.name}.j2")
            self.plan.note(
                f"'{path}' is not for every user to read: {one.name}.j2 is for you alone (0600)",
                "look through it for what is secret, then chmod 644",
            )
        for folder in words.included_folders(text):
            self.plan.note(
                f"'{path}' includes all files of '{folder}', which are production's",
                f"if they name ports or places, copy them into {one.name}.j2",
            )
        head = f"{{# {path}, without its comments, as an instance has it. #}}\n"
        one.text = head + template(text, edits, comments=True)
        return one

    def _file_name(self, path: str) -> str:
        taken = {one.name for one in self.files.values()}
        place = PurePosixPath(path)
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", place.name).lstrip(".-") or "file"
        if name in taken or f"{name}.j2" == f"{self.plan.facts.unit}.j2":
            name = f"{re.sub(r'[^A-Za-z0-9_-]', '_', place.parent.name).lstrip('-')}-{name}"
        while name in taken:
            name = f"x{name}"
        return name

    def _include_edits(self, path: str, text: str) -> Iterator[Edit]:
        for one in words.includes(text):
            pattern = words.beside(path, one.pattern)
            found = self.plan.facts.matches.get(pattern, ())
            copies = {each: self.file(each, main=False) for each in found}
            line = text[one.start : one.end]
            inner = slice(one.path_start - one.start, one.path_end - one.start)
            if not any(copies.values()):
                if pattern != one.pattern:
                    yield Edit(one.path_start, one.path_end, literal(pattern), "")
                continue
            lines = [
                literal(line[: inner.start])
                + (f"{{{{ files }}}}/{copy.name}" if copy is not None else literal(each))
                + literal(line[inner.stop :])
                for each, copy in copies.items()
            ]
            yield Edit(one.start, one.end, "\n".join(lines), f"copies of {one.pattern}")

    def usual_files(self) -> None:
        """Bind a copy over a file that nobody names, if it has a port not told otherwise."""
        for path in self.plan.unit.usual():
            untold = [port for port in self.plan.ports if not port.told]
            source = self.plan.facts.files.get(path)
            if not untold or path in self.files or source is None:
                continue
            if source.text is not None:
                text = words.without_comments(source.text)
                if not any(port in untold for _, port in self.plan.port_edits(text)):
                    continue
            one = self.file(path)
            if one is not None:
                one.over = path

    def file_edits(self, text: str) -> Iterator[Edit]:
        """Where a text names a configuration file of which an instance gets a copy."""
        for start, end, path in words.paths(self.plan.unit.expand(text)):
            if self.plan.unit.expand(text) == text and (one := self.file(path)) is not None:
                yield Edit(start, end, f"{{{{ files }}}}/{one.name}", f"a copy of {path}")
