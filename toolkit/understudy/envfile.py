"""Files of environment variables, as ``EnvironmentFile=`` reads them (systemd.exec(5)).

What is in such a file is told to a service's processes and to nobody else: a manager shows its
path, where it shows every user what ``Environment=`` says. Its syntax is a shell's and not that of
a unit: no specifier, no ``$``, and a value may have several lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from understudy.errors import RenderError
from understudy.unitfile import REFUSED

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ESCAPED: Final = '\\"`$'
"""What a backslash takes its meaning from between double quotes; before others it stays."""
_BLANK: Final = " \t"
_LINE_END: Final = "\r\n"


def check(name: str, value: str) -> None:
    """Demand that a variable reaches a process as it is.

    What systemd would leave out, it would also write to the journal, value and all.

    Args:
        name: The variable's name.
        value: Its value, which no error shows.

    Raises:
        RenderError: The name is none, or the value holds what no variable of a service can.
    """
    if not _VARIABLE.fullmatch(name):
        raise RenderError(
            f"Cannot set '{name}': it is no environment variable",
            hint="letters, digits and underscores, not a digit first",
        )
    match = REFUSED.search(value.replace("\n", ""))
    if match is not None:
        raise RenderError(
            f"Cannot set environment variable '{name}': its value holds the character "
            f"U+{ord(match[0]):04X}",
            hint="systemd hands on text with tabs and newlines, and no other control characters",
        )


def write(variables: Mapping[str, str]) -> str:
    """A file that sets these variables, whatever is in them.

    Args:
        variables: Values by name, which `check` has nothing against.
    """
    return "".join(f'{name}="{_quoted(value)}"\n' for name, value in variables.items())


def _quoted(value: str) -> str:
    return "".join(f"\\{char}" if char in _ESCAPED else char for char in value)


def read(text: str) -> dict[str, str]:
    """The variables that a file sets, as systemd reads it: unfit lines say nothing.

    Args:
        text: Its content.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        if text[at] in _BLANK + _LINE_END:
            at += 1
        elif text[at] in "#;":
            at = _end_of_comment(text, at)
        else:
            end = next((i for i in range(at, len(text)) if text[i] in "=" + _LINE_END), len(text))
            name = text[at:end].rstrip(_BLANK)
            if text[end : end + 1] != "=":
                at = end
                continue
            value, at = _value(text, end + 1)
            if _VARIABLE.fullmatch(name):
                found[name] = value
    return found


def _end_of_comment(text: str, at: int) -> int:
    while at < len(text) and text[at] not in _LINE_END:
        at += 2 if text[at] == "\\" else 1
    return at


def _value(text: str, at: int) -> tuple[str, int]:
    """A value from its first character on, and where it ends."""
    value = ""
    kept = 0  # How much of it stays, whatever blanks follow.
    quote = ""
    plain = False  # Within a plain word a quote is a character.
    while at < len(text):
        char = text[at]
        at += 1
        if quote and char == quote:
            quote = ""
        elif quote and not (quote == '"' and char == "\\"):
            value += char
        elif quote:
            following = text[at : at + 1]
            at += 1
            if following != "\n":
                value += following if following and following in _ESCAPED else char + following
        elif char in _LINE_END:
            break
        elif char in "\"'" and not plain:
            quote = char
            continue
        elif char == "\\":
            plain = True
            value += text[at : at + 1].strip(_LINE_END)
            at += 1
        elif plain or char not in _BLANK:
            plain = True
            value += char
            if char in _BLANK:
                continue
        else:
            continue
        kept = len(value)
    return value[:kept], at
