"""Unit files as text: read as systemd reads them, quoted, and merged into rows.

Facts are from systemd.syntax(7), systemd.service(5) "Command lines" and systemd.unit(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from understudy.errors import RenderError

_ACCUMULATING = """
    After AmbientCapabilities AssertPathExists Before BindPaths BindReadOnlyPaths BindsTo
    CacheDirectory CapabilityBoundingSet ConditionPathExists ConfigurationDirectory Conflicts
    DeviceAllow DisableControllers Documentation Environment EnvironmentFile ExecCondition
    ExecPaths ExecReload ExecStart ExecStartPost ExecStartPre ExecStop ExecStopPost
    ExtensionDirectories ExtensionImages IPAddressAllow IPAddressDeny IPEgressFilterPath
    IPIngressFilterPath ImportCredential InaccessiblePaths JoinsNamespaceOf ListenDatagram
    ListenStream LoadCredential LoadCredentialEncrypted LogExtraFields LogFilterPatterns
    LogsDirectory MountImages NG NoExecPaths OpenFile PartOf PassEnvironment ReadOnlyPaths
    ReadWritePaths Requires RequiresMountsFor RestartForceExitStatus RestartPreventExitStatus
    RestrictAddressFamilies RestrictFileSystems RestrictNamespaces RuntimeDirectory
    SetCredential SetCredentialEncrypted SocketBindAllow SocketBindDeny Sockets StateDirectory
    SuccessExitStatus SupplementaryGroups SystemCallArchitectures SystemCallFilter SystemCallLog
    TemporaryFileSystem UnsetEnvironment Wants
"""
ACCUMULATING = frozenset(_ACCUMULATING.split())
"""Directives whose assignments add up until an empty one; of all others the last counts."""

# Systemd ends a line at LF, CR and NUL, and ignores lines with a code point that it calls
# invalid (utf8.c: surrogates and noncharacters).
REFUSED = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)
_ESCAPES = {
    **{"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"},
    **{"s": " ", "\\": "\\", '"': '"', "'": "'"},
}
_NUMERIC_ESCAPE = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})")


class Line(NamedTuple):
    """One logical line of a unit file.

    Attributes:
        section: The section it stands in, without brackets; "" before the first.
        name: The directive; "" for a comment, an empty line or a section's header.
        value: What is assigned, with continued lines joined.
        text: The line as it was written, without its last newline.
    """

    section: str
    name: str
    value: str
    text: str


def parse(text: str) -> Iterator[Line]:
    """Read a unit file, its comments included (systemd.syntax(7)).

    Args:
        text: The file's content, or ``systemctl cat``'s output: a file and its drop-ins.
    """
    section = ""
    for logical, written in _logical_lines(text):
        if logical.startswith("[") and logical.endswith("]"):
            section = logical[1:-1]
        name, equals, value = logical.partition("=")
        if equals and not logical.startswith(("#", ";", "[")):
            yield Line(section, name.rstrip(), value.lstrip(), written)
        else:
            yield Line(section, "", "", written)


def _logical_lines(text: str) -> Iterator[tuple[str, str]]:
    """Comments and lines, continued ones joined: stripped, and as they were written."""
    joined = ""
    written: list[str] = []
    # Not splitlines(), which knows more line ends than systemd does.
    for line in re.split(r"[\n\r\0]", text):
        if line.lstrip().startswith(("#", ";")):
            if written:  # a comment does not end a continued line
                written.append(line)
            else:
                yield line.strip(), line
            continue
        written.append(line)
        if _ends_open(line):
            joined += line[:-1] + " "
            continue
        yield (joined + line).strip(), "\n".join(written)
        joined, written = "", []
    if written:
        yield joined.strip(), "\n".join(written)


def _ends_open(line: str) -> bool:
    """Whether a backslash that is not itself escaped ends the line."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def check_text(what: str, text: str) -> None:
    """Demand that a text fits into one line of a unit file.

    Args:
        what: What it is, for the message: ``value 'root'``.
        text: The text.

    Raises:
        RenderError: It holds a newline or another character that no line can hold.
    """
    match = REFUSED.search(text)
    if match is not None:
        word = {"\n": "a newline", "\r": "a carriage return", "\0": "a NUL"}.get(
            match[0], f"the character U+{ord(match[0]):04X}"
        )
        raise RenderError(
            f"Cannot render {what}: it holds {word}",
            hint="whatever goes into a unit file is one line of text",
        )


def quote(text: str) -> str:
    """A text as one word of a directive's value, whatever is in it.

    Specifiers and variables are another matter: ``%`` and ``$`` stay as they are.
    """
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def split(text: str, *, relaxed: bool = False) -> list[str]:
    r"""Split a directive's value into its words, as systemd does.

    Quotes are taken off and C escapes (``\n``, ``\x20``, ``\s`` for a space) undone.

    Args:
        text: Words between white space.
        relaxed: Whether a backslash before anything else just takes that as it is, as in what
            systemctl(1) prints (``\$``).

    Raises:
        RenderError: A quote is not closed, or an escape is unknown.
    """
    words: list[str] = []
    word: str | None = None
    quoted = ""
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == "\\":
            piece, position = _escape(text, position, relaxed=relaxed)
            word = (word or "") + piece
        elif quoted:
            if char == quoted:
                quoted = ""
            else:
                word = (word or "") + char
        elif char in "\"'":
            quoted = char
            word = word or ""
        elif char.isspace():
            if word is not None:
                words.append(word)
            word = None
        else:
            word = (word or "") + char
    if quoted:
        raise RenderError(f"Cannot split '{text}': a quote is not closed")
    if word is not None:
        words.append(word)
    return words


def _escape(text: str, position: int, *, relaxed: bool) -> tuple[str, int]:
    char = text[position : position + 1]
    if char in _ESCAPES:
        return _ESCAPES[char], position + 1
    match = _NUMERIC_ESCAPE.match(text, position)
    if match is None and relaxed and char:
        return char, position + 1
    if match is None:
        raise RenderError(f"Cannot split '{text}': unknown escape '\\{char}'")
    base = 8 if match[4] else 16
    return chr(int(match[match.lastindex or 0], base)), match.end()


def effective(lines: Iterable[Line]) -> list[tuple[str, str]]:
    """What is in force after all assignments, as rows of directive and value, in order.

    An empty assignment undoes what came before it; of a directive that does not accumulate only
    the last assignment counts. The bounding set alone has no empty default: empty means no
    capability, and ``~`` all of them (systemd.exec(5)).
    """
    rows: list[tuple[str, str]] = []
    for line in lines:
        if not line.name:
            continue
        if not line.value or line.name not in ACCUMULATING:
            rows = [row for row in rows if row[0] != line.name]
        if line.name == "CapabilityBoundingSet" and line.value in ("", "~"):
            rows = [row for row in rows if row[0] != line.name]
            if not line.value:
                rows.append((line.name, ""))
        elif line.value:
            rows.append((line.name, line.value))
    return rows
