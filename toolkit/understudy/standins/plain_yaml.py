"""A reader of the part of YAML that settings files are written in.

Block and flow mappings and lists, quoted and plain scalars, comments. Booleans are those of
YAML 1.1 (``yes``, ``off``), which both servers' settings use. Everything else of YAML (anchors,
tags, block scalars, several documents) is an error, not a guess.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_TRUE = frozenset(("true", "yes", "on"))
_FALSE = frozenset(("false", "no", "off"))
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_KEY = re.compile(r"""("[^"]*"|'[^']*'|[^\s"'\[\]{},#&*!|>%@`-][^#]*?|-[^\s#][^#]*?)\s*:(?:\s|$)""")
_COMMENT = re.compile(r"(?:^|\s)#.*")


class YamlError(ValueError):
    """The text is not what this reader understands; the message names the line."""


def load(text: str) -> Json:
    """Read one document.

    Args:
        text: The whole file.

    Returns:
        What it says, in Python's plain types; None for an empty document.

    Raises:
        YamlError: A line makes no sense, or uses a part of YAML that is not read here.
    """
    lines = _lines(text)
    if not lines:
        return None
    reader = _Blocks(lines)
    value = reader.block(lines[0][0])
    if reader.at < len(lines):
        raise YamlError(f"[line {lines[reader.at][2]}] unexpected indentation")
    return value


def _lines(text: str) -> list[tuple[int, str, int]]:
    """Indent, content and number of every line that says something."""
    lines: list[tuple[int, str, int]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        content = _uncommented(raw).rstrip()
        stripped = content.lstrip(" ")
        if stripped == "---" and not lines:
            continue
        if stripped.startswith("\t"):
            raise YamlError(f"[line {number}] a tab cannot indent")
        if stripped:
            lines.append((len(content) - len(stripped), stripped, number))
    return lines


def _uncommented(line: str) -> str:
    """The line without its comment; a # inside quotes or inside a word is none."""
    if "#" not in line:
        return line
    if "'" not in line and '"' not in line:
        return _COMMENT.sub("", line)
    quote = ""
    for at, character in enumerate(line):
        if quote:
            if character == quote:
                quote = ""
        elif character in "\"'":
            # An apostrophe inside a word opens nothing.
            if at == 0 or line[at - 1] in " [{,:":
                quote = character
        elif character == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at]
    return line


class _Blocks:
    """The block structure: which lines belong to which mapping or list."""

    def __init__(self, lines: list[tuple[int, str, int]]) -> None:
        self.lines = lines
        self.at = 0

    def block(self, indent: int) -> Json:
        _, content, number = self.lines[self.at]
        if content == "-" or content.startswith("- "):
            return self._sequence(indent)
        if _KEY.match(content):
            return self._mapping(indent)
        self.at += 1
        return _Flow(content, number).document()

    def _sequence(self, indent: int) -> list[Json]:
        items: list[Json] = []
        while self.at < len(self.lines):
            found, content, number = self.lines[self.at]
            if found != indent or not (content == "-" or content.startswith("- ")):
                break
            rest = content[1:].lstrip(" ")
            if rest:
                # What follows the dash is a block of its own, as far in as it stands.
                inner = indent + len(content) - len(rest)
                self.lines[self.at] = (inner, rest, number)
                items.append(self.block(inner))
            else:
                self.at += 1
                items.append(self._nested(indent + 1))
        return items

    def _mapping(self, indent: int) -> dict[str, Json]:
        mapping: dict[str, Json] = {}
        while self.at < len(self.lines):
            found, content, number = self.lines[self.at]
            if found != indent:
                break
            match = _KEY.match(content)
            if not match:
                raise YamlError(f"[line {number}] a key and a colon were expected: {content}")
            key = _unquoted(match[1])
            if key in mapping:
                raise YamlError(f'[line {number}] mapping key "{key}" already defined')
            rest = content[match.end() :].strip()
            self.at += 1
            if rest:
                mapping[key] = _Flow(rest, number).document()
            else:
                # A list may stand as far in as the key it belongs to.
                listed = self.at < len(self.lines) and self.lines[self.at][1].startswith("-")
                mapping[key] = self._nested(indent if listed else indent + 1)
        return mapping

    def _nested(self, least: int) -> Json:
        """The block that starts here, if it is indented at least so far; else nothing."""
        if self.at < len(self.lines) and self.lines[self.at][0] >= least:
            return self.block(self.lines[self.at][0])
        return None


class _Flow:
    """What stands on one line: a scalar, ``[a, b]`` or ``{a: b}``."""

    def __init__(self, text: str, number: int) -> None:
        self.text = text
        self.number = number
        self.at = 0

    def document(self) -> Json:
        value = self._value(",]}" if self.text[0] in "[{" else "")
        if self.text[self.at :].strip():
            raise self._error()
        return value

    def _value(self, ends: str) -> Json:
        self._skip()
        first = self.text[self.at : self.at + 1]
        if first == "[":
            return [value for value, _ in self._items("]")]
        if first == "{":
            mapping: dict[str, Json] = {}
            for value, key in self._items("}"):
                if not isinstance(key, str):
                    raise self._error()
                mapping[key] = value
            return mapping
        if first and first in "\"'":
            end = self.text.find(first, self.at + 1)
            while first == "'" and self.text[end + 1 : end + 2] == "'" and end > 0:
                end = self.text.find(first, end + 2)
            if end < 0:
                raise self._error()
            quoted = self.text[self.at : end + 1]
            self.at = end + 1
            return _unquoted(quoted)
        if first and first in "&*!|>%@`":
            raise self._error()
        begin = self.at
        while self.at < len(self.text) and self.text[self.at] not in ends:
            if ends and self.text.startswith(": ", self.at):
                break
            self.at += 1
        return _scalar(self.text[begin : self.at].strip())

    def _items(self, close: str) -> list[tuple[Json, Json]]:
        """Values and, in a mapping, their keys."""
        items: list[tuple[Json, Json]] = []
        self.at += 1
        while True:
            self._skip()
            if self.text.startswith(close, self.at):
                self.at += 1
                return items
            value, key = self._value(",]}"), None
            if close == "}":
                self._skip()
                if not self.text.startswith(":", self.at):
                    raise self._error()
                self.at += 1
                value, key = self._value(",]}"), value
            items.append((value, key))
            self._skip()
            if self.text.startswith(",", self.at):
                self.at += 1
            elif not self.text.startswith(close, self.at):
                raise self._error()

    def _skip(self) -> None:
        while self.text.startswith(" ", self.at):
            self.at += 1

    def _error(self) -> YamlError:
        return YamlError(f"[line {self.number}] cannot be read: {self.text}")


def _unquoted(text: str) -> str:
    if text[:1] == "'":
        return text[1:-1].replace("''", "'")
    return text[1:-1] if text[:1] == '"' else text


def _scalar(text: str) -> Json:
    if text in ("", "~", "null"):
        return None
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
