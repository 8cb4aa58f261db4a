"""What is known of some programs, and cannot be seen in their units: pure.

Everything else is read off a unit. A program is here if its own defaults would make two of it meet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from understudy.define.words import Edit

PORT_NAMES: Final = {
    80: "http",
    443: "https",
    3000: "http",
    5000: "http",
    6379: "redis",
    8000: "http",
    8008: "http",
    8080: "http",
    8443: "https",
    8888: "http",
    9000: "http",
}
"""Better names than those of services(5), of TCP ports."""

HTTP: Final = frozenset({"http", "https", "http-alt", "www", "webcache"})
"""Names of ports at which an HTTP answer may be expected; others that have a name are not asked."""

CONFIG_DEFAULT: Final = {"nginx": "/etc/nginx/nginx.conf"}
"""The file that a program reads unless it is told another one."""


class Arguments(NamedTuple):
    """What a program is told where its configuration file cannot be read.

    Attributes:
        port: The port that it has by default.
        arguments: Templates; ``{port}`` stands for the port's.
    """

    port: int
    arguments: tuple[str, ...]


WITHOUT_CONFIG: Final = {
    "redis-server": Arguments(
        6379,
        ("--bind", "{{ host }}", "--port", "{port}", "--dir", "{{ directory }}", "--save", ""),
    )
}
"""By the program's name; such a program may be started without its file."""

_NGINX_FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
_NGINX_GLOBAL = re.compile(r"\s*(?:daemon|master_process|pid|error_log)\s[^;]*;?")


def command(program: str, arguments: Sequence[str], config: str) -> list[str] | None:
    """The arguments of an instance, before anything in them is replaced.

    Args:
        program: The program's name, without its folder.
        arguments: Production's.
        config: The template of the instance's configuration file; "" if it has none.

    Returns:
        None where production's are right. What is in the result is no template but ``config``.
    """
    if program != "nginx":
        return None
    kept: list[str] = []
    extra = ""
    words = iter(arguments)
    for word in words:
        if word in ("-c", "-e"):
            next(words, None)
        elif word == "-g":
            extra += _NGINX_GLOBAL.sub("", next(words, "")).strip()
        else:
            kept.append(word)
    told = ["-c", config] if config else []
    return ["-e", "stderr", *told, *kept, "-g", f"daemon off; {extra}".strip()]


def why(program: str) -> list[str]:
    """What to say of that command."""
    if program == "nginx":
        return [
            "An instance stays in the foreground, and logs to the journal. It is not told a",
            "PID file here: its configuration has one of its own.",
        ]
    return []


def foreground(program: str) -> bool:
    """Whether `command` keeps a program that forks in the foreground."""
    return program == "nginx"


def adjusted(program: str, text: str, *, main: bool) -> Iterator[Edit]:
    """What else must be different in the program's configuration.

    Args:
        program: The program's name, without its folder.
        text: The file without its comments.
        main: Whether it is the file that the program is told, and not an included one.
    """
    if program == "nginx":
        yield from _nginx(text, main=main)
    elif program == "haproxy":
        for match in re.finditer(r"(?m)^[ \t]*(?:chroot|user|group)[ \t]+\S+[ \t]*\n", text):
            yield Edit(
                match.start(), match.end(), "", "root's right: an instance has a user already"
            )
    elif program == "redis-server":
        for match in re.finditer(r"(?m)^logfile[ \t]+(.*)$", text):
            yield Edit(match.start(1), match.end(1), '""', "to the journal")


def _nginx(text: str, *, main: bool) -> Iterator[Edit]:
    for match in re.finditer(r"(?m)^[ \t]*error_log[ \t]+([^\s;]+)", text):
        yield Edit(match.start(1), match.end(1), "stderr", "to the journal")
    if not main:
        return
    for match in re.finditer(r"(?m)^[ \t]*user[ \t][^;]*;[ \t]*\n", text):
        yield Edit(match.start(), match.end(), "", "no user: an instance has one, and is not root")
    if not re.search(r"(?m)^[ \t]*pid[ \t]", text):
        yield Edit(0, 0, "pid {{ directory }}/nginx.pid;\n", "its own, not the compiled-in one")
    block = re.search(r"(?m)^[ \t]*http[ \t]*\{[ \t]*\n", text)
    if block is not None:
        rows = [
            f"\t{name}_temp_path {{{{ directory }}}}/{name};\n"
            for name in _NGINX_FOLDERS
            if not re.search(rf"(?m)^[ \t]*{name}_temp_path[ \t]", text)
        ]
        why = "temporary files in its own directory, not in /var/lib/nginx"
        yield Edit(block.end(), block.end(), "".join(rows), why)
