"""A reader of shell scripts, as far as to tell commands, assignments and what runs beside.

Quotes, escapes, comments, line continuations, here-documents, substitutions and the operators
are told apart (POSIX, Shell Command Language, 2.2 to 2.10). What a substitution gives is not
known, apart from that of a variable which is set to a plain text just once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from understudy.audit import commands
from understudy.audit import known as suggest
from understudy.audit.known import Known
from understudy.audit.rules import Finding
from understudy.audit.words import UNKNOWN, is_local, keyed, urls

_OPERATORS: Final = ("&&", "||", ";;", "|&", ";&", ";", "&", "|", "(", ")", "\n")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\+?=(.*)", re.DOTALL)
_HEREDOC = re.compile(r"<<(-?)\s*(['\"\\]?)([A-Za-z_][\w.-]*)(['\"]?)")
_DEV_TCP = re.compile(r"/dev/(tcp|udp)/([^/\s]+)/([0-9]{1,5})$")
_PLAIN = re.compile(r"[^ \t\n\"'\\$`;&|()<>#]+")
_DECLARERS: Final = frozenset(("export", "readonly", "local", "declare", "typeset"))
_ASKERS: Final = frozenset(("curl", "wget", "nc", "ncat", "netcat", "redis-cli", "pg_isready"))
_WINDOW: Final = 2
_DEPTH_MAX: Final = 20


@dataclass(slots=True)
class Command:
    """A simple command.

    Attributes:
        line: Its first line.
        words: Its words, unquoted; what is not known is `UNKNOWN`.
        end: The operator behind it.
        last: Its last line.
    """

    line: int
    words: list[str] = field(default_factory=list)
    end: str = "\n"
    last: int = 0


class ShellError(ValueError):
    """The text cannot be read as a shell script; the message says why, the line is there."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


class _Reader:
    """One pass over a script; substitutions are read as scripts of their own."""

    def __init__(self, text: str, line: int, depth: int, variables: Mapping[str, str]) -> None:
        self.text = text
        self.at = 0
        self.line = line
        self.depth = depth
        self.variables = variables
        self.found: list[Command] = []
        self.pending: list[tuple[bool, str]] = []
        self.round = 0

    def read(self) -> list[Command]:
        command = Command(self.line)
        text = self.text
        while self.at < len(text):
            character = text[self.at]
            if character == "#":
                end = text.find("\n", self.at)
                self.at = len(text) if end < 0 else end
            elif character in " \t":
                self.at += 1
            elif text.startswith("\\\n", self.at):
                self._advance(2)
            elif heredoc := _HEREDOC.match(text, self.at):
                self.pending.append((heredoc[1] == "-", heredoc[3]))
                self.at = heredoc.end()
            elif character in "<>":
                self._redirection(command)
            elif operator := next((op for op in _OPERATORS if text.startswith(op, self.at)), ""):
                self._end(command, operator)
                self._round(operator)
                self._advance(len(operator))
                if operator == "\n" and self.pending:
                    self._heredocs()
                command = Command(self.line)
            else:
                if not command.words:
                    command.line = self.line
                command.words.append(self._word())
        self._end(command, "\n")
        return self.found

    def _advance(self, count: int) -> None:
        self.line += self.text.count("\n", self.at, self.at + count)
        self.at += count

    def _end(self, command: Command, operator: str) -> None:
        if command.words:
            command.end = operator
            command.last = self.line
            self.found.append(command)

    def _round(self, operator: str) -> None:
        if operator == "(":
            self.round += 1
        elif operator == ")" and self.round:
            self.round -= 1
        elif operator == ")":
            # What a `case` is about, or one of its patterns: PATTERN | PATTERN )
            if self.found and self.found[-1].end == ")":
                self.found.pop()
            while self.found and self.found[-1].end == "|" and self.found[-1].last == self.line:
                self.found.pop()

    def _redirection(self, command: Command) -> None:
        while self.at < len(self.text) and self.text[self.at] in "<>&|":
            # >( and <( are substitutions.
            self.at += 1
        if self.text.startswith("(", self.at):
            self.at += 1
            self._substitution(")")
            return
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1
        if self.at < len(self.text) and self.text[self.at] not in "\n;&|()<>":
            line = self.line
            target = self._word()
            if _DEV_TCP.match(target):
                if not command.words:
                    command.line = line
                    command.words.append(":")
                command.words.append(target)

    def _heredocs(self) -> None:
        for indented, word in self.pending:
            while self.at < len(self.text):
                end = self.text.find("\n", self.at)
                end = len(self.text) if end < 0 else end
                content = self.text[self.at : end]
                self._advance(end + 1 - self.at)
                if (content.lstrip("\t") if indented else content) == word:
                    break
        self.pending.clear()

    def _word(self) -> str:
        parts: list[str] = []
        text = self.text
        while self.at < len(text):
            if plain := _PLAIN.match(text, self.at):
                parts.append(plain[0])
                self.at = plain.end()
                continue
            character = text[self.at]
            if character == "#" and parts:
                parts.append("#")
                self.at += 1
            elif character == "'":
                parts.append(self._single())
            elif character == '"':
                parts.append(self._double())
            elif character == "\\":
                if not text.startswith("\\\n", self.at):
                    parts.append(text[self.at + 1 : self.at + 2])
                self._advance(2)
            elif character == "$":
                parts.append(self._dollar())
            elif character == "`":
                self.at += 1
                self._substitution("`")
                parts.append(UNKNOWN)
            elif character == "(" and parts:
                # A function's definition, an array, a glob: none of its words is a command's.
                self.at += 1
                self._skip_round()
                parts.append(UNKNOWN)
            else:
                break
        return "".join(parts)

    def _single(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise ShellError(self.line, "a ' is not closed")
        content = self.text[self.at + 1 : end]
        self._advance(end + 1 - self.at)
        return content

    def _double(self) -> str:
        begin = self.line
        self.at += 1
        parts: list[str] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            if character == '"':
                self.at += 1
                return "".join(parts)
            if character == "\\":
                parts.append(self.text[self.at + 1 : self.at + 2])
                self._advance(2)
            elif character == "$":
                parts.append(self._dollar())
            elif character == "`":
                self.at += 1
                self._substitution("`")
                parts.append(UNKNOWN)
            else:
                parts.append(character)
                self._advance(1)
        raise ShellError(begin, 'a " is not closed')

    def _dollar(self) -> str:
        text = self.text
        if text.startswith("$((", self.at):
            self.at += 3
            self._skip_round()
            if text.startswith(")", self.at):
                self.at += 1
            return UNKNOWN
        if text.startswith("$(", self.at):
            self.at += 2
            self._substitution(")")
            return UNKNOWN
        if text.startswith("${", self.at):
            return self._braced()
        self.at += 1
        if name := _NAME.match(text, self.at):
            self.at = name.end()
            return self.variables.get(name[0], UNKNOWN)
        if text.startswith("'", self.at):
            return self._single()
        if self.at < len(text) and text[self.at] in "@*#?$!-0123456789":
            self.at += 1
            return UNKNOWN
        return "$"

    def _braced(self) -> str:
        depth, begin = 0, self.at + 2
        start = self.line
        while self.at < len(self.text):
            if self.text.startswith("${", self.at):
                depth += 1
                self.at += 2
                continue
            if self.text[self.at] == "\\":
                self._advance(2)
                continue
            if self.text[self.at] == "}":
                depth -= 1
                if depth == 0:
                    name = self.text[begin : self.at]
                    self.at += 1
                    return self.variables.get(name, UNKNOWN)
            self._advance(1)
        raise ShellError(start, "a ${ is not closed")

    def _skip_round(self) -> None:
        depth = 1
        while self.at < len(self.text) and depth:
            character = self.text[self.at]
            depth += {"(": 1, ")": -1}.get(character, 0)
            if character in "'\"":
                self._single() if character == "'" else self._double()
            else:
                self._advance(1)

    def _substitution(self, close: str) -> None:
        """Read what is inside; its commands count as the script's."""
        line, begin = self.line, self.at
        if close == "`":
            end = self.text.find("`", self.at)
            if end < 0:
                raise ShellError(line, "a ` is not closed")
            self._advance(end + 1 - self.at)
            inner = self.text[begin:end]
        else:
            self._skip_round()
            inner = self.text[begin : self.at - 1]
        if self.depth < _DEPTH_MAX:
            self.found += _Reader(inner, line, self.depth + 1, self.variables).read()


def read(text: str, *, line: int = 1) -> list[Command]:
    """The simple commands of a script, in order.

    Args:
        text: The script.
        line: The number of its first line.

    Raises:
        ShellError: A quote or a substitution is not closed.
    """
    first = _Reader(text, line, 0, {}).read()
    variables = _constants(first)
    return _Reader(text, line, 0, variables).read() if variables else first


def _constants(script: list[Command]) -> dict[str, str]:
    """Variables that are set just once, to a plain text."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    for _, name, value in _assignments(script):
        if name in found or UNKNOWN in value:
            twice.add(name)
        found[name] = value
    for command in script:
        if command.words and command.words[0] in ("read", "for", "getopts", "unset", "select"):
            twice.update(command.words[1:])
    return {name: value for name, value in found.items() if name not in twice and len(value) < 500}


def _assignments(script: list[Command]) -> Iterator[tuple[Command, str, str]]:
    for command in script:
        words = command.words
        begin = 1 if words[0] in _DECLARERS else 0
        for word in words[begin:]:
            match = _ASSIGNMENT.fullmatch(word)
            if match:
                yield command, match[1], match[2]
            elif not (begin and word.startswith("-")):
                break


def audit(
    text: str, known: Known, file: str, *, line: int = 1, depth: int = 0
) -> Iterator[Finding]:
    """What is wrong with a script.

    Args:
        text: The script.
        known: What the definitions know.
        file: The file that it stands in.
        line: Its first line there.
        depth: How many scripts it is inside of.

    Raises:
        ShellError: It cannot be read.
    """
    script = read(text, line=line)
    for command, name, value in _assignments(script):
        for rule, said, instead in _assigned(name, value, known):
            yield _finding(file, command, rule, said, instead)
    for at, command in enumerate(script):
        for hit in commands.audit(command.words, known, shell=True):
            yield _finding(file, command, *hit)
        for word in command.words:
            match = _DEV_TCP.match(word)
            owner = known.owner(int(match[3]), name=match[1]) if match else None
            if match and owner and (is_local(match[2]) or UNKNOWN in match[2]):
                said = f"connects to {match[3]} ({owner})"
                yield _finding(file, command, "connected-port", said, suggest.shell_instead(owner))
        inner = commands.inner_script(command.words)
        if inner and depth < _DEPTH_MAX:
            first = (
                command.last - inner.count("\n") if command.line != command.last else command.line
            )
            yield from audit(inner, known, file, line=first, depth=depth + 1)
        if _is_sleep(command) and (why := _waits(script, at, known)):
            yield _finding(
                file,
                command,
                "sleep-for-ready",
                f"sleep {command.words[1]} {why}",
                "understudy spawn returns when the server is ready, or says why it is not",
            )


def _finding(file: str, command: Command, rule: str, text: str, instead: str) -> Finding:
    return Finding(
        file=file, line=command.line, last=command.last, rule=rule, text=text, instead=instead
    )


def _assigned(name: str, value: str, known: Known) -> Iterator[tuple[str, str, str]]:
    found = keyed(name, value, known)
    if found:
        told = suggest.variable_instead(found[1], name)
        yield "config-port", f"{name}={value} ({found[1]})", told
        return
    for place in urls(value):
        if owner := place.owner(known):
            said = f"{name} has {place.port} ({owner})"
            yield "connected-port", said, suggest.variable_instead(owner, name)


def _is_sleep(command: Command) -> bool:
    words = commands.unwrapped(command.words)
    return len(words) > 1 and words[0] == "sleep" and words == command.words[-len(words) :]


def _waits(script: list[Command], at: int, known: Known) -> str:
    """Why a sleep is one that waits for a server; "" if it is none."""
    for before in script[max(0, at - _WINDOW) : at]:
        if commands.starts_server(before.words, known):
            return "after a server was started"
    for begin in range(at - 1, max(-1, at - 8), -1):
        words = script[begin].words
        if words[0] in ("done", "fi", "}") and begin < at - 3:
            break
        if words[0] in ("until", "while"):
            asking = {word.rpartition("/")[2] for one in script[begin:at] for word in one.words}
            tcp = any(_DEV_TCP.match(word) for word in asking) or any(
                "/dev/tcp/" in word for one in script[begin:at] for word in one.words
            )
            return "in a loop that asks whether it is ready" if asking & _ASKERS or tcp else ""
        if words[0] == "done":
            break
    return ""
