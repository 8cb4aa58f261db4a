"""Ports, paths, secrets and includes in texts of no known format, and templates made of them.

A configuration file is taken for lines of names and values, in whatever way these are written: that
is what INI, YAML, TOML, JSON, nginx's and Apache's files and arguments have in common.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from understudy import unitfile
from understudy.confided import secret_name as secret_name

CHANGE_ME: Final = "change-me"
"""What stands in the place of a secret."""

_LOCAL = frozenset({"", "*", "0.0.0.0", "localhost", "[::]", "[::1]"})
_EVERYWHERE = frozenset({"0.0.0.0", "*"})

_NEAR = 160

_NUMBER = re.compile(r"(?<![\w.$/%@])(?<!(?<!:)::)(?<!-)\d{1,5}(?![\w.%])")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]*\]|\*|[\w.-]*)$")
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*://$")
_IDENTIFIER = re.compile(r"[A-Za-z_][\w.-]*")

_PORTISH = re.compile(
    r"(?:^|[._-])(?i:ports?|listen\w*|bind\w*|addr(?:ess)?|endpoint|sock(?:et)?|virtualhost)$"
    r"|[A-Za-z0-9](?:Port|Addr|Address|Listen|Bind|Endpoint)$|^[A-Z]+PORT$"
    r"|^(?i:listen|bind)|^p$"
)
_FOREIGN = re.compile(
    r"(?i)remote|upstream|peer|master|replica|proxy|target|backend|connect|database|(?:^|[._-])db"
    r"|mysql|postgres|smtp|ldap|amqp|kafka|redis_|server_url|forward|client"
)

_KEY_NAME = re.compile(r"(?i)(?:^|[._-])key$|(?-i:[a-z]Key$)")
_KEY_LENGTH_MIN = 12
_MEASURE = re.compile(r"(?i)max|min|len|size|time|ttl|expir|life|interval|limit|rounds|count|age")
_HARMLESS = re.compile(r"(?i)on|off|yes|no|true|false|none|null|~|\$\w+|\$\{\w+\}")

_KEY = re.compile(
    r"(?<![\w.])(?P<quote>[\"']?)(?P<key>[A-Za-z_][\w.-]{0,80})(?P=quote)"
    r"(?P<sep>[ \t]*(?:=>|:=|=|:|>)[ \t]*|[ \t]+)"
)
_BARE = frozenset(
    {"password", "insecure-password", "passwd", "secret", "token", "requirepass", "masterauth"}
)
_TOKENS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|glpat-[\w-]{20,}|sk-[\w-]{20,}|xox[abp]-[\w-]+"
    r"|eyJ[\w-]{10,}\.[\w-]+\.[\w-]*)"
    r"|\$(?:1|2[aby]|5|6|7|y)\$[^\s\"':,;]+",
    re.DOTALL,
)
_OPAQUE = re.compile(
    r"(?<![\w/.+-])(?=[\w+/=-]*\d)(?=[\w+/=-]*[A-Z])(?=[\w+/=-]*[a-z])[\w+=-][\w+/=-]{23,}(?![\w/.])"
)
_USERINFO = re.compile(r"(?<![\w+.-])[A-Za-z][\w+.-]*://[^\s/@:'\"]*:(?P<secret>[^\s@'\"]+)@")
_LOGIN = re.compile(
    r"(?:^|\s)(?:-u|--user|--auth|--basic-auth|--credentials)[ =](?P<name>[^\s:]+):(?P<secret>\S+)"
)
_NAMED_VALUE = re.compile(
    r"\b(?:key|name)[\"']?\s*[=:]\s*[\"']?(?P<name>[\w.-]+)[\"']?[\s,;]+[\"']?"
    r"value[\"']?\s*[=:]\s*[\"']?(?P<secret>[^\"'\n]+)"
)
_SECRET_FILE = re.compile(r"(?i)passw|secret|token|credential|shadow|api[._-]?key|\.acl$")
_PAIR = re.compile(r"(?m)^[ \t]*[\w.\"'<\[{-]+(?:[ \t]*[=:>]|[ \t]+\S|[\]{])")
_CERTIFICATE = re.compile(r"\.(?:pem|crt|cer|key|p12|pfx|jks)$")
_REDIS_USER = re.compile(r"(?m)^user[ \t]\S+[ \t].*$")
_REDIS_PASSWORD = re.compile(r"(?<=[ \t][>#])\S+")

_PLAIN_WORD = re.compile(r"[\w./:=,@%+{}$~\[\]-]+")
_PATH = re.compile(r"(?<![\w./@~])(?:/[\w.@+~$-]+)+/?")
_INCLUDE_FOLDER = re.compile(r"(?m)^[ \t]*(?:include_?dir)[ \t=]+[\"']?(/[^\s\"';]+)")
_INCLUDE = re.compile(
    r"(?m)^[ \t]*(?P<word>include|Include|IncludeOptional)[ \t]+[\"']?(?P<path>[^\s\"';]+)[\"']?"
    r"[ \t]*;?[ \t]*$"
)


class Edit(NamedTuple):
    """A change of a text.

    Attributes:
        start: Where what is replaced begins.
        end: Where it ends.
        put: What stands there instead, as part of a jinja2 template.
        why: For people; "" where it needs no word.
    """

    start: int
    end: int
    put: str
    why: str = ""


class Mention(NamedTuple):
    """A number in a text that may be a port's.

    Attributes:
        start: Where the number begins.
        end: Where it ends.
        number: It.
        keys: The names that it may be the value of, the nearest first.
        host: The host before it (``host:8080``); None where there is none.
        host_start: Where that begins.
    """

    start: int
    end: int
    number: int
    keys: tuple[str, ...]
    host: str | None
    host_start: int

    @property
    def everywhere(self) -> bool:
        """Whether it stands beside the address that means all of the host's."""
        return self.host in _EVERYWHERE

    def names(self, addresses: Collection[str] = ()) -> bool:
        """Whether it names a port that is known to be listened on.

        Args:
            addresses: Those that are listened on.
        """
        if self.host is not None:
            local = self.host in _LOCAL or self.host.startswith("127.")
            return local or self.host.strip("[]") in addresses
        return any(_PORTISH.search(key) for key in self.keys)

    @property
    def declares(self) -> bool:
        """Whether it must be a port that is listened on, by its words alone."""
        short = ("b", "l") if self.host is not None else ()
        keys = [key for key in self.keys if key in short or _PORTISH.search(key)]
        local = self.host is None or self.host in _LOCAL or self.host.startswith("127.")
        return bool(keys) and local and not any(_FOREIGN.search(key) for key in self.keys)


class Secret(NamedTuple):
    """A secret in a text.

    Attributes:
        start: Where it begins.
        end: Where it ends.
        name: What it is called there.
        block: Whether it is more than one line of text, to be replaced by a quoted word.
    """

    start: int
    end: int
    name: str
    block: bool = False


class Include(NamedTuple):
    """A directive that reads other files in its place.

    Attributes:
        start: Where its line begins.
        end: Where that ends.
        pattern: Which files.
        path_start: Where the pattern begins.
        path_end: Where it ends.
    """

    start: int
    end: int
    pattern: str
    path_start: int
    path_end: int


def literal(text: str) -> str:
    """A text as a template that gives it."""
    return re.sub(r"\{(?=[{%#])", "{{ '{' }}", text)


def template(text: str, edits: Iterable[Edit], *, comments: bool = False) -> str:
    """A text with changes as a template.

    Args:
        text: The text.
        edits: What to change; of two that overlap the first counts.
        comments: Whether to say before each changed line why, in a comment of jinja2's.
    """
    chosen: list[Edit] = []
    for edit in edits:
        if all(edit.end <= other.start or edit.start >= other.end for other in chosen):
            chosen.append(edit)
    chosen.sort()
    whys: dict[int, list[str]] = {}
    pieces: list[str] = []
    at = 0
    for edit in chosen:
        before = literal(text[at : edit.start])
        if before.endswith("{"):
            before = before[:-1] + "{{ '{' }}"
        pieces += [before, edit.put]
        at = edit.end
        if edit.why:
            why = whys.setdefault(text.rfind("\n", 0, edit.start) + 1, [])
            if edit.why not in why:
                why.append(edit.why)
    pieces.append(literal(text[at:]))
    if not comments or not whys:
        return "".join(pieces)
    return _commented(text, chosen, whys)


def _commented(text: str, edits: list[Edit], whys: dict[int, list[str]]) -> str:
    """The same, cut into pieces before each line that has a comment."""
    end = len(text)
    bounds = [0, *sorted(whys), end]
    result = []
    for first, last in pairwise(bounds):
        if first == last:
            continue
        # What is put in between two lines belongs to the second.
        own = [one for one in edits if first <= one.start and (one.start < last or last == end)]
        piece = template(
            text[first:last],
            [edit._replace(start=edit.start - first, end=edit.end - first, why="") for edit in own],
        )
        if first in whys:
            indent = re.match(r"[ \t]*", text[first:])
            said = "; ".join(whys[first]).replace("#}", "# }")
            result.append(f"{indent[0] if indent else ''}{{# {said} #}}\n")
        result.append(piece)
    return "".join(result)


@lru_cache(maxsize=64)
def mentions(text: str) -> tuple[Mention, ...]:
    """The numbers in a text that may be ports.

    Args:
        text: Arguments, assignments or a configuration file without its comments.
    """
    found = []
    for match in _NUMBER.finditer(text):
        number = int(match[0])
        if not 1 <= number <= 65535:
            continue
        start = match.start()
        # Of a line without an end only what is near counts.
        before = text[max(0, start - _NEAR) : start].rpartition("\n")[2]
        line = before + text[start : start + _NEAR].partition("\n")[0]
        host: str | None = None
        host_start = start
        if before.endswith(":"):
            beside = _HOST.search(before[-65:-1])
            name = beside[0] if beside else ""
            quoted = before[:-1].endswith(('"', "'"))
            if not quoted and not (_PORTISH.search(name) and not name.startswith("[")):
                host = name
                host_start = start - 1 - len(name)
                before = _SCHEME.sub("", before[: -1 - len(name)])
        keys = _IDENTIFIER.findall(before.replace("unix:", ""))[::-1]
        # Of a line of words the first says what the others are, of a list of pairs it does not.
        near = keys[:1] if "{" in line or "," in line else [*keys[:1], *keys[-1:]]
        found.append(Mention(start, match.end(), number, tuple(near), host, host_start))
    return tuple(found)


def included_folders(text: str) -> list[str]:
    """The folders whose files are all included, as Mosquitto and MySQL have it."""
    return _INCLUDE_FOLDER.findall(text)


def section(text: str, at: int) -> str:
    """The name of the section or table that a place in a text is in; "" if it is in none.

    Args:
        text: A configuration file without its comments.
        at: The place.
    """
    start = text.rfind("\n", 0, at) + 1
    indent = len(text[start:at]) - len(text[start:at].lstrip())
    for line in reversed(text[:start].splitlines()):
        depth = len(line) - len(line.lstrip())
        if match := re.fullmatch(r"\s*\[+\s*\"?([\w.-]+).*", line):
            return match[1]
        if line.strip() and depth < indent:
            found = re.match(r"\s*(?:- )?[\"']?([A-Za-z][\w.-]*)[\"']?\s*[:={<]", line)
            return found[1] if found else ""
    return ""


def paths(text: str) -> Iterator[tuple[int, int, str]]:
    """The absolute paths in a text: begin, end, and the path."""
    for match in _PATH.finditer(text):
        path = match[0].rstrip(".")
        yield match.start(), match.start() + len(path), path


def includes(text: str) -> Iterator[Include]:
    """The directives that include other files, as nginx, Redis and Apache have them."""
    for match in _INCLUDE.finditer(text):
        path = match["path"]
        yield Include(match.start(), match.end(), path, match.start("path"), match.end("path"))


def without_comments(text: str) -> str:
    """A configuration file without its comment lines, and of empty lines one at a time.

    They may hold secrets that are out of use, and braces that a template would take for its own.
    """
    kept: list[str] = []
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith(("#", ";", "//")) and not bare.startswith("#!"):
            continue
        if bare or (kept and kept[-1]):
            kept.append(line.rstrip() if not bare else line)
    return "\n".join(kept).rstrip("\n") + "\n" if kept else ""


def opaque(text: str) -> list[Secret]:
    """Words that nobody can read, as keys and tokens are: in files that are not for everybody."""
    return [Secret(match.start(), match.end(), "secret") for match in _OPAQUE.finditer(text)]


def is_certificate(path: str) -> bool:
    """Whether a file is a key or a certificate, by its name."""
    return _CERTIFICATE.search(path) is not None


def is_secret_file(path: str, text: str) -> bool:
    """Whether a file is a secret as a whole: by its name, or because it has no names in it.

    Args:
        path: The file.
        text: Its content.
    """
    named = _SECRET_FILE.search(path.rpartition("/")[2]) is not None
    return named or (bool(text.strip()) and _PAIR.search(text) is None)


def is_measure(name: str) -> bool:
    """Whether what is called so is counted, and is no port: ``timeout``."""
    return _MEASURE.search(name) is not None and _PORTISH.search(name) is None


def secrets(text: str) -> list[Secret]:
    """The secrets in a text, by their names and by how they look.

    Args:
        text: A configuration file without its comments, one assignment or one argument.
    """
    found: list[Secret] = []
    for match in _KEY.finditer(text):
        if found and match.start() < found[-1].end:
            continue
        sure = secret_name(match["key"])
        if not sure and not _KEY_NAME.search(match["key"]):
            continue
        secret = _value(text, match)
        # What is called a key may also be one of a table.
        if secret is not None and (sure or _is_long(text[secret.start : secret.end])):
            found.append(secret)
    for match in _USERINFO.finditer(text):
        found.append(Secret(match.start("secret"), match.end("secret"), "password"))
    for match in _NAMED_VALUE.finditer(text):
        if secret_name(match["name"]):
            found.append(Secret(match.start("secret"), match.end("secret"), "secret"))
    for match in _LOGIN.finditer(text):
        if not match["secret"].isdigit() and match["secret"] != match["name"]:
            found.append(Secret(match.start("secret"), match.end("secret"), "password"))
    for line in _REDIS_USER.finditer(text):
        for match in _REDIS_PASSWORD.finditer(line[0]):
            start = line.start()
            found.append(Secret(start + match.start(), start + match.end(), "password"))
    for match in _TOKENS.finditer(text):
        block = "\n" in match[0]
        found.append(Secret(match.start(), match.end(), "secret", block))
    return [
        one
        for at, one in enumerate(found)
        if not any(one.start < other.end and other.start < one.end for other in found[:at])
    ]


def _is_long(text: str) -> bool:
    return len(text) >= _KEY_LENGTH_MIN and not re.search(r"\s", text)


def _value(text: str, match: re.Match[str]) -> Secret | None:
    """What a secret's name is followed by."""
    key, sep, start = match["key"], match["sep"], match.end()
    line_start = text.rfind("\n", 0, match.start()) + 1
    line_end = text.find("\n", start)
    line_end = len(text) if line_end < 0 else line_end
    rest = text[start:line_end]
    if not sep.strip():
        first = not text[line_start : match.start()].strip(" \t-")
        if not first and key.lower() not in _BARE:
            return None
    name = re.sub(r"\W", "_", key.lower()).strip("_")
    indent = len(text[line_start:]) - len(text[line_start:].lstrip(" \t"))
    if not rest.strip() or re.fullmatch(r"[|>][+-]?\d*[ \t]*", rest):
        end = _block_end(text, line_end, indent)
        return Secret(start, end, name, True) if end > line_end else None
    if rest.startswith(('"""', "'''")):
        end = text.find(rest[:3], start + 3)
        return Secret(start, len(text) if end < 0 else end + 3, name, True)
    if rest[0] in "\"'":
        end = _quote_end(text, start)
        return Secret(start + 1, end, name) if end > start + 1 else None
    if rest[0] in "[{":
        return Secret(start, _bracket_end(text, start), name, True)
    if ">" in sep and "<" in rest:
        return Secret(start, start + rest.index("<"), name)
    # In braces a comma ends a value; on a line of its own all of it may be the secret.
    value = re.split(r"[,}]", rest)[0] if "{" in text[line_start:start] else rest
    value = value.rstrip().rstrip(";,")
    if not value or _HARMLESS.fullmatch(value) or value.startswith("/"):
        return None
    if value.isdigit() and _MEASURE.search(key):
        return None
    return Secret(start, start + len(value), name)


def _quote_end(text: str, start: int) -> int:
    at = start + 1
    while at < len(text) and text[at] != text[start]:
        at += 2 if text[at] == "\\" else 1
    return min(at, len(text))


def _block_end(text: str, at: int, indent: int) -> int:
    """Where the lines end that are further in than this, or a list of it."""
    end = at
    while at < len(text):
        line_end = text.find("\n", at + 1)
        line_end = len(text) if line_end < 0 else line_end
        line = text[at + 1 : line_end]
        depth = len(line) - len(line.lstrip(" \t"))
        if line.strip() and depth <= indent and not line.lstrip().startswith("- "):
            break
        if line.strip():
            end = line_end
        at = line_end
    return end


def _bracket_end(text: str, start: int) -> int:
    depth = 0
    at = start
    while at < len(text):
        if text[at] in "\"'":
            at = _quote_end(text, at)
        elif text[at] in "[{":
            depth += 1
        elif text[at] in "]}":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return len(text)


def beside(path: str, pattern: str) -> str:
    """A pattern of a file's include directive, absolute.

    Args:
        path: The file.
        pattern: As it stands in it.
    """
    return str(PurePosixPath(path).parent / pattern)


def unit_word(text: str) -> str:
    """A template as one word of a unit file, quoted where systemd would take it apart.

    Args:
        text: The template.
    """
    bare = re.sub(r"\{\{.*?\}\}", "", text)
    if text and (not bare or _PLAIN_WORD.fullmatch(bare)):
        return text
    pieces = re.split(r"(\{\{.*?\}\})", text)  # at odd places the expressions
    quoted = [unitfile.quote(one)[1:-1] if at % 2 == 0 else one for at, one in enumerate(pieces)]
    return f'"{"".join(quoted)}"'
