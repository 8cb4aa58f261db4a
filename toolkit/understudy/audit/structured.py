"""Readers of YAML, TOML and JSON that know the line of each value, and the rules for them.

The value that a key is set to is all that is looked at, with the path of keys that leads to it. The
reader of YAML is one of structure: indentation, lists, flow collections, quoted, plain and block
scalars of several documents; anchors and tags are passed over, and aliases stay unknown.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

from understudy.audit import commands, shell
from understudy.audit import known as suggest
from understudy.audit.known import Known
from understudy.audit.rules import Finding
from understudy.audit.words import address, keyed, number_in, urls

Path: TypeAlias = "tuple[str | int, ...]"
Scalar: TypeAlias = "str | int | float | bool | None"


class Entry(NamedTuple):
    """A scalar, where it stands and which keys lead to it; a list's items have numbers."""

    line: int
    path: Path
    value: Scalar
    block: bool = False


class StructureError(ValueError):
    """A file is not what its name says; the message says why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


# JSON

_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|\n|[^\s{}\[\],:"]+')


def json_entries(text: str) -> Iterator[Entry]:
    """The scalars of a JSON document (RFC 8259).

    Raises:
        StructureError: It is none.
    """
    try:
        json.loads(text)
    except json.JSONDecodeError as exc:
        raise StructureError(exc.lineno, f"not JSON: {exc.msg}") from exc
    except RecursionError as exc:
        raise StructureError(0, "nested too deeply") from exc
    except ValueError as exc:  # a number of more digits than Python takes
        raise StructureError(0, f"not JSON: {exc}") from exc
    line = 1
    path: list[str | int] = []
    in_list: list[bool] = []
    key_next = False
    for match in _JSON_TOKEN.finditer(text):
        token = match[0]
        if token == "\n":
            line += 1
        elif token in "{[":
            in_list.append(token == "[")
            path.append(0 if token == "[" else "")
            key_next = token == "{"
        elif token in "}]":
            in_list.pop()
            path.pop()
            key_next = False
        elif token == ",":
            if in_list[-1]:
                path[-1] = int(path[-1]) + 1
            key_next = not in_list[-1]
        elif token == ":":
            key_next = False
        elif key_next:
            path[-1] = str(json.loads(token))
        else:
            yield Entry(line, tuple(path), json.loads(token))


# TOML

_TOML_HEADER = re.compile(r"\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")
_TOML_KEY = re.compile(
    r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+))*)\s*="""
)
_TOML_PART = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*\.?""")


def toml_entries(text: str) -> Iterator[Entry]:
    """The scalars of a TOML document; tomllib reads it, and its lines are looked up afterwards.

    Raises:
        StructureError: It is none.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        found = re.search(r"line (\d+)", str(exc))
        raise StructureError(int(found[1]) if found else 0, f"not TOML: {exc}") from exc
    except RecursionError as exc:
        raise StructureError(0, "nested too deeply") from exc
    except ValueError as exc:
        raise StructureError(0, f"not TOML: {exc}") from exc
    lines = text.split("\n")
    starts = _toml_starts(lines)
    for path, value in _scalars(content):
        yield Entry(_toml_line(lines, starts, path, value), path, value)


def _scalars(content: object) -> Iterator[tuple[Path, Scalar]]:
    stack: list[tuple[Path, object]] = [((), content)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            stack += [((*path, at), inner) for at, inner in enumerate(value)]
        elif isinstance(value, str | int | float | bool):
            yield path, value


def _toml_starts(lines: list[str]) -> dict[Path, tuple[int, int]]:
    """The first line of each key, and the one before the next key's, by path; from 0."""
    starts: dict[Path, tuple[int, int]] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    last: Path | None = None
    for at, line in enumerate(lines):
        path: Path | None = None
        if header := _TOML_HEADER.match(line):
            table = _toml_path(header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
            numbered: Path = ()
            plain: Path = ()
            for part in table:
                plain, numbered = (*plain, part), (*numbered, part)
                if plain in counts:
                    numbered = (*numbered, counts[plain])
            table = path = numbered
        elif key := _TOML_KEY.match(line):
            path = (*table, *_toml_path(key[1]))
        if path is None:
            continue
        if last is not None:
            starts[last] = (starts[last][0], at)
        if path not in starts:
            starts[path] = (at, len(lines))
        last = path
    return starts


def _toml_path(text: str) -> Path:
    return tuple(one or two or three for one, two, three in _TOML_PART.findall(text))


def _toml_line(
    lines: list[str], starts: Mapping[Path, tuple[int, int]], path: Path, value: Scalar
) -> int:
    for length in range(len(path), 0, -1):
        if path[:length] not in starts:
            continue
        begin, end = starts[path[:length]]
        sought = value.split("\n")[0] if isinstance(value, str) else str(value)
        names = [part for part in path[length:] if isinstance(part, str)]
        for at in range(begin, end):
            if sought in lines[at] and (not names or names[-1] in lines[at]):
                return at + 1
        return begin + 1
    return 1


# YAML

_YAML_KEY = re.compile(
    r"""(?:(?:[!&][^\s\[\]{},]*\s+)*)("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s"'\[\]{},#&*!|>%@`?-][^\n]*?"""
    r"""|[?-][^\s\n][^\n]*?|<<):(?:[ \t]|$)"""
)
_YAML_BLOCK = re.compile(r"[|>](?:[-+]?[1-9]?|[1-9][-+])(?:\s+#.*|\s*)$")
_YAML_PROPERTY = re.compile(r"[!&][^\s\[\]{},]*(?:\s+|$)")
_YAML_COMMENT = re.compile(r"(?:^|[ \t])#.*$")
_YAML_DASHES = re.compile(r"-(?:[ \t]+|$)")
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")


def yaml_entries(text: str) -> Iterator[Entry]:
    """The scalars of the YAML documents in a text.

    Raises:
        StructureError: A tab indents, or a quote or a bracket is not closed.
    """
    return _Yaml(text.split("\n")).entries()


class _Level(NamedTuple):
    indent: int
    part: str | int


class _Yaml:
    """One pass over the lines, with the keys that lead to where it stands."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.at = 0
        self.levels: list[_Level] = []

    def entries(self) -> Iterator[Entry]:
        while self.at < len(self.lines):
            line = self.lines[self.at]
            content = line.strip()
            if not content or content.startswith("#"):
                self.at += 1
            elif line.startswith(("---", "...", "%")):
                self.levels.clear()
                self.lines[self.at] = line[3:] if line.startswith("--- ") else ""
                self.at += line[:4] != "--- "
            elif line.lstrip(" ").startswith("\t"):
                raise StructureError(self.at + 1, "not YAML: a tab cannot indent")
            else:
                yield from self._line(line)

    def _line(self, line: str) -> Iterator[Entry]:
        indent = len(line) - len(line.lstrip(" "))
        rest = line[indent:]
        while dash := _YAML_DASHES.match(rest):
            self._item(indent)
            indent += dash.end()
            rest = rest[dash.end() :]
        if not rest or rest.startswith("#"):
            self.at += 1
            return
        key = _YAML_KEY.match(rest)
        if key:
            self._pop(indent)
            self.levels.append(_Level(indent, _unquoted(key[1].strip())))
            rest = rest[key.end() :]
        yield from self._value(rest, indent)

    def _pop(self, indent: int) -> None:
        """Leave what is not above a key at this indentation."""
        while self.levels and (
            self.levels[-1].indent > indent
            or (self.levels[-1].indent == indent and isinstance(self.levels[-1].part, str))
        ):
            self.levels.pop()
        # A list may stand as far in as the key that it belongs to; a key there ends it.
        while (
            self.levels
            and self.levels[-1].indent == indent
            and isinstance(self.levels[-1].part, int)
        ):
            self.levels.pop()
            if self.levels and self.levels[-1].indent == indent:
                self.levels.pop()

    def _item(self, indent: int) -> None:
        while self.levels and self.levels[-1].indent > indent:
            self.levels.pop()
        last = self.levels[-1] if self.levels else None
        if last and last.indent == indent and isinstance(last.part, int):
            self.levels[-1] = _Level(indent, last.part + 1)
        else:
            self.levels.append(_Level(indent, 0))

    def _path(self) -> Path:
        return tuple(level.part for level in self.levels)

    def _value(self, rest: str, indent: int) -> Iterator[Entry]:
        rest = rest.strip()
        while match := _YAML_PROPERTY.match(rest):
            rest = rest[match.end() :]
        begin = self.at
        if not rest or rest.startswith("#"):
            self.at += 1
        elif _YAML_BLOCK.match(rest):
            parent = self.levels[-1].indent if self.levels else -1
            yield self._block(parent, folded=rest[0] == ">")
        elif rest[0] in "[{":
            text, end = self._gathered(rest)
            self.at = end + 1
            yield from _flow(text, begin + 1, self._path())
        elif rest[0] in "\"'":
            text, end = self._gathered(rest)
            self.at = end + 1
            yield Entry(begin + 1, self._path(), _unquoted(text.strip()))
        elif rest[0] == "*":
            self.at += 1
        else:
            self.at += 1
            value = _YAML_COMMENT.sub("", rest).strip()
            # A plain scalar goes on in lines further in that are no key.
            while self.at < len(self.lines):
                more = self.lines[self.at]
                inner = len(more) - len(more.lstrip(" "))
                if inner <= indent or not more.strip() or _starts(more.strip()):
                    break
                value += " " + _YAML_COMMENT.sub("", more).strip()
                self.at += 1
            yield Entry(begin + 1, self._path(), _typed(value))

    def _block(self, indent: int, *, folded: bool) -> Entry:
        """A block scalar: every line that is further in than what holds it."""
        begin = self.at + 1
        end = begin
        while end < len(self.lines):
            line = self.lines[end]
            if line.strip() and len(line) - len(line.lstrip(" ")) <= indent:
                break
            end += 1
        content = self.lines[begin:end]
        widths = [len(line) - len(line.lstrip(" ")) for line in content if line.strip()]
        least = min(widths, default=0)
        # Folded lines are kept apart too, as a shell would want them: by a line continuation.
        text = (" \\\n" if folded else "\n").join(line[least:] for line in content)
        self.at = end
        return Entry(begin + 1, self._path(), text.rstrip(" \\\n"), True)

    def _gathered(self, rest: str) -> tuple[str, int]:
        """The text of a quoted scalar or a flow collection, and its last line, from 0."""
        parts = [rest]
        depth = 0
        quote = ""
        at = self.at
        text = rest
        while True:
            depth, quote, end = _scanned(text, depth, quote)
            if end >= 0:
                parts[-1] = text[:end]
                return "\n".join(parts), at
            at += 1
            if at >= len(self.lines):
                what = "a quote" if quote else "a bracket"
                raise StructureError(self.at + 1, f"not YAML: {what} is not closed")
            text = self.lines[at]
            parts.append(text)


def _starts(content: str) -> bool:
    return bool(content.startswith("#") or _YAML_DASHES.match(content) or _YAML_KEY.match(content))


def _scanned(text: str, depth: int, quote: str) -> tuple[int, str, int]:
    """Brackets and quotes after this text, and where the value ends in it; -1 if it goes on."""
    at = 0
    while at < len(text):
        character = text[at]
        if quote:
            if character == "\\" and quote == '"':
                at += 1
            elif character == quote:
                if quote == "'" and text.startswith("''", at):
                    at += 1
                else:
                    quote = ""
                    if depth == 0:
                        return depth, quote, at + 1
        elif character in "\"'" and (at == 0 or text[at - 1] in " \t[{,:"):
            quote = character
        elif character == "#" and (at == 0 or text[at - 1] in " \t"):
            return depth, quote, -1
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
            if depth == 0:
                return depth, quote, at + 1
        at += 1
    return depth, quote, -1


_FLOW_TOKEN = re.compile(
    r"""\n|[ \t]+|(?<![^\s,\[{])\#[^\n]*|"(?:[^"\\]|\\[\s\S])*"|'(?:[^']|'')*'"""
    r"""|[\[\]{},]|:(?=[\s,\[\]{}"'])"""
    r"""|(?:[^\s,\[\]{}:]|:(?![\s,\[\]{}]))+(?:[ \t]+(?:[^\s,\[\]{}:\#]|:(?![\s,\[\]{}]))+)*|."""
)


def _flow(text: str, line: int, above: Path) -> Iterator[Entry]:
    """The scalars of ``[a, b]`` or ``{a: b}``, over as many lines as it has."""
    path: list[str | int] = []
    in_list: list[bool] = []
    held: tuple[int, str] | None = None

    for match in _FLOW_TOKEN.finditer(text):
        token = match[0]
        if token in "[{":
            in_list.append(token == "[")
            path.append(0 if token == "[" else "")
        elif token in "]},":
            if held:
                yield Entry(held[0], (*above, *path), _typed(held[1]))
                held = None
            if token != ",":
                if in_list:
                    in_list.pop()
                    path.pop()
            elif in_list and in_list[-1]:
                path[-1] = int(path[-1]) + 1
        elif token == ":" and held and in_list and not in_list[-1]:
            path[-1] = str(_unquoted(held[1]))
            held = None
        elif token.strip() and token[0] != "#":
            held = (line, f"{held[1]} {token}" if held else token)
        line += token.count("\n")


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        return re.sub(r'\\(["\\/])', r"\1", text[1:-1])
    return text


def _typed(text: str) -> Scalar:
    if _INTEGER.fullmatch(text) and len(text) < 20:
        return int(text.replace("_", ""))
    return _unquoted(text)


# The rules

_SCRIPTS: Final = frozenset(
    ("run", "script", "before_script", "after_script", "commands", "cmd", "shell", "setup", "test")
)
_SCRIPT_PARENTS: Final = _SCRIPTS | {"scripts", "tasks", "command"}


def audit(entries: Iterator[Entry], known: Known, file: str) -> Iterator[Finding]:
    """What is wrong with a configuration.

    Args:
        entries: What it says.
        known: What the definitions know.
        file: Its name.

    Raises:
        StructureError: It cannot be read on.
    """
    for entry in entries:
        if entry.value is None or isinstance(entry.value, bool | float) or not entry.path:
            continue
        yield from _entry(entry, known, file)


def _entry(entry: Entry, known: Known, file: str) -> Iterator[Finding]:
    names = [part for part in entry.path if isinstance(part, str)]
    name = names[-1] if names else ""
    value = entry.value

    def finding(rule: str, text: str, instead: str) -> Finding:
        return Finding(
            file=file, line=entry.line, last=entry.line, rule=rule, text=text, instead=instead
        )

    if _publishes(entry.path, names):
        number = number_in(value) if name == "published" else commands.published_port(str(value))
        if number:
            owner = known.owner(number)
            instead = suggest.config_instead(owner) if owner else suggest.bound_instead(None)
            said = f"publishes port {commands.named(number, owner)}"
            yield finding("bound-port", said, instead)
        return
    found = keyed(name, value, known)
    if found is None and len(names) > 1 and names[-2] in ("ports", "port"):
        # ports = { api = 9997 }
        found = keyed("port", value, known) if number_in(value) else None
    if found:
        number, owner = found
        variable = name in known.variables or name.isupper()
        instead = (suggest.variable_instead if variable else _rendered)(owner, name)
        yield finding("config-port", f"{name} is {number} ({owner})", instead)
        return
    if not isinstance(value, str):
        return
    if name == "image" and (service := commands.image_service(value, known)):
        said = f"starts {value}: a second {service} on this host"
        yield finding("own-server", said, suggest.spawn_instead(service))
    elif _is_script(entry.path, names):
        yield from _script(entry, known, file)
    elif not re.search(r"\s", value):
        # `environment: ["MTX_APIADDRESS=:9997"]`, as compose has it
        variable_name, equals, assigned = value.partition("=")
        if equals and (found := keyed(variable_name, assigned, known)):
            number, owner = found
            said = f"{variable_name} is {number} ({owner})"
            yield finding("config-port", said, suggest.variable_instead(owner, variable_name))
            return
        place = next(iter(urls(value)), None) or address(value)
        if place and (place.scheme or place.host):
            owner = place.owner(known, name)
            if owner:
                said = f"{name or 'a list'} has port {place.port} ({owner})"
                yield finding("connected-port", said, suggest.config_instead(owner))


def _rendered(owner: suggest.Owner, _name: str) -> str:
    return suggest.config_instead(owner)


def _publishes(path: Path, names: list[str]) -> bool:
    """Whether it is what a container publishes: compose's and workflows' ``services``."""
    if "services" not in names and "containers" not in names:
        return False
    if names[-1] in ("published", "hostPort"):
        return True
    return names[-1] == "ports" and isinstance(path[-1], int)


def _is_script(path: Path, names: list[str]) -> bool:
    if not names:
        return False
    if names[-1] in _SCRIPTS:
        return True
    return len(names) > 1 and names[-2] in _SCRIPT_PARENTS and isinstance(path[-1], str)


def _script(entry: Entry, known: Known, file: str) -> Iterator[Finding]:
    try:
        yield from shell.audit(str(entry.value), known, file, line=entry.line)
    except shell.ShellError:
        # A value that only looks like a script.
        return
