"""What a command line does: starts a server, rules production, asks a fixed port."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from understudy.audit import known as suggest
from understudy.audit.known import Known, Owner
from understudy.audit.words import UNKNOWN, is_local, is_port_name, number_in, says_delete, urls

_WRAPPERS: Final = {
    # Their options that take a value.
    "sudo": frozenset(("-u", "-g", "-h", "-p", "-C", "-D", "-R", "-T", "-U")),
    "env": frozenset(("-u", "-C", "-S")),
    "timeout": frozenset(("-k", "-s")),
    "nice": frozenset(("-n",)),
    "ionice": frozenset(("-c", "-n")),
    "stdbuf": frozenset(("-i", "-o", "-e")),
    "setsid": frozenset[str](),
    "nohup": frozenset[str](),
    "exec": frozenset(("-a",)),
    "time": frozenset(("-f", "-o")),
    "command": frozenset[str](),
    "xvfb-run": frozenset(("-n", "-s")),
    "!": frozenset[str](),
    **{word: frozenset[str]() for word in ("if", "then", "else", "do", "while", "until", "elif")},
}
_SHELLS: Final = frozenset(("sh", "bash", "dash", "ash", "ksh", "zsh"))
_VERBS: Final = frozenset(
    (
        *("start", "stop", "restart", "reload", "try-restart", "reload-or-restart", "kill"),
        *("enable", "disable", "mask", "unmask", "reenable", "condrestart", "isolate"),
        *("revert", "edit", "set-property", "clean", "freeze", "thaw", "force-reload"),
    )
)
_SYSTEMCTL_VALUES: Final = frozenset(
    ("-H", "--host", "-M", "--machine", "-t", "--type", "-p", "--property", "-s", "--signal")
)
_MODULES: Final = frozenset(
    ("http.server", "SimpleHTTPServer", "uvicorn", "gunicorn", "hypercorn", "daphne", "waitress")
)
_SERVERS: Final = frozenset(
    (
        *("uvicorn", "gunicorn", "hypercorn", "daphne", "waitress-serve", "nginx", "httpd"),
        *("redis-server", "postgres", "mysqld", "mariadbd", "mongod", "memcached", "mosquitto"),
        *("rabbitmq-server", "haproxy", "lighttpd", "live555MediaServer", "rtsp-server"),
    )
)
_SUBCOMMANDS: Final = {
    "flask": frozenset(("run",)),
    "caddy": frozenset(("run", "start", "file-server", "reverse-proxy")),
    "manage.py": frozenset(("runserver",)),
    "etcd": frozenset(("",)),
}
_MERELY_ASKS: Final = frozenset(("--version", "--help", "-h", "-v", "-V", "-version", "--check"))
_FFMPEG_LISTENS = re.compile(r"[?&](listen\b|mode=listener)|^rtmp_listen$")
_SOCAT_LISTENS = re.compile(r"(TCP[46]?|UDP[46]?|OPENSSL|SCTP[46]?)-(LISTEN|L|RECVFROM):", re.I)
_PYTHON = re.compile(r"(python|pypy)[\d.]*")
_FUSER_PORT = re.compile(r"([0-9]{1,5})/(tcp|udp)")
_OPTION_NUMBER = re.compile(r"--?([A-Za-z][\w-]*)=([0-9]{1,5})")
_DECLARERS: Final = frozenset(("export", "readonly", "local", "declare", "typeset"))
_PUBLISHED = re.compile(
    r"(?:\[[0-9a-fA-F:.]*\]:|[0-9.]+:)?([0-9]{1,5})(?:-[0-9]+)?:[0-9]{1,5}(?:-[0-9]+)?(?:/\w+)?"
)
_CONTAINERS: Final = frozenset(("docker", "podman", "nerdctl"))
_CONNECTORS: Final = frozenset(("nc", "ncat", "netcat", "telnet"))


class Hit(NamedTuple):
    """What is wrong with a command; its number tells two ports on a line apart."""

    rule: str
    text: str
    instead: str


def audit(argv: Sequence[str], known: Known, *, shell: bool = False) -> Iterator[Hit]:
    """What is wrong with a command.

    Args:
        argv: Its words; a part that is only known at run time is `UNKNOWN`.
        known: What the definitions know.
        shell: Whether it stands in a shell script, where no other rule sees its URLs.
    """
    words = unwrapped(argv)
    if not words or words[0] == "understudy":
        return
    program = PurePosixPath(words[0]).name
    rest = words[1:]
    yield from _production(program, rest, known, shell=shell)
    server = _server(program, rest, known, shell=shell)
    if server:
        yield server
    yield from _deletes(program, rest)
    yield from _ports(program, rest, known, shell=shell, server=server is not None)


def unwrapped(argv: Sequence[str]) -> list[str]:
    """The words without what only changes how the command is run (sudo, env, timeout, …)."""
    words = list(argv)
    while words:
        program = PurePosixPath(words[0]).name
        name, equals, _ = words[0].partition("=")
        if equals and name.isidentifier():
            del words[0]
            continue
        if program not in _WRAPPERS:
            break
        del words[0]
        taking = _WRAPPERS[program]
        while words and words[0].startswith("-") and len(words[0]) > 1:
            option = words.pop(0)
            if option == "--":
                break
            if option in taking and words:
                del words[0]
        if program == "timeout" and words:
            del words[0]
    return words


def inner_script(argv: Sequence[str]) -> str | None:
    """The script of ``bash -c 'SCRIPT'``; None if it is no such command."""
    words = unwrapped(argv)
    if len(words) < 3 or PurePosixPath(words[0]).name not in _SHELLS:
        return None
    for at, word in enumerate(words[1:-1], 1):
        if not word.startswith("-"):
            return None
        if word.endswith("c") and not word.startswith("--"):
            return words[at + 1]
    return None


def starts_server(argv: Sequence[str], known: Known) -> bool:
    """Whether a command starts a server, or has systemd start one."""
    words = unwrapped(argv)
    if not words:
        return False
    program = PurePosixPath(words[0]).name
    if program == "systemctl":
        return bool({"start", "restart", "reload-or-restart"} & set(words[1:]))
    return _server(program, words[1:], known) is not None


def _production(program: str, rest: list[str], known: Known, *, shell: bool) -> Iterator[Hit]:
    for service, did in _controlled(program, rest, known):
        yield Hit(
            "production-control",
            f"{did}: production's {service} is everybody's",
            suggest.alone_instead(service, shell=shell),
        )


def _controlled(program: str, rest: list[str], known: Known) -> Iterator[tuple[str, str]]:
    """Service and deed, for each production unit that a command changes."""
    plain = _positional(rest, _SYSTEMCTL_VALUES if program == "systemctl" else frozenset())
    if program == "systemctl" and plain and plain[0] in _VERBS:
        for unit in plain[1:]:
            stem = unit.removesuffix(".service").removesuffix(".socket")
            if stem in known.units:
                yield known.units[stem], f"systemctl {plain[0]} {unit}"
    elif program in ("service", "invoke-rc.d") and len(plain) > 1:
        if plain[0] in known.units and plain[1] in _VERBS:
            yield known.units[plain[0]], f"{program} {plain[0]} {plain[1]}"
    elif program in ("pkill", "killall"):
        for name in plain:
            stem = PurePosixPath(name.strip("^$")).name
            if stem in known.programs:
                yield known.programs[stem], f"{program} {name}"
            elif stem in known.modules:
                yield known.modules[stem], f"{program} {name}"
    elif program == "fuser" and any(_kills(word) for word in rest):
        for word in plain:
            match = _FUSER_PORT.fullmatch(word)
            owner = known.owner(int(match[1]), name=match[2]) if match else None
            if owner:
                yield owner.service, f"fuser -k {word}"


def _kills(option: str) -> bool:
    return option == "--kill" or (re.fullmatch(r"-[a-zA-Z]*k[a-zA-Z]*", option) is not None)


def _positional(rest: list[str], taking: frozenset[str]) -> list[str]:
    plain: list[str] = []
    skip = False
    for word in rest:
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = word in taking
        else:
            plain.append(word)
    return plain


def _server(program: str, rest: list[str], known: Known, *, shell: bool = False) -> Hit | None:
    started = _started(program, rest, known)
    if started is None:
        return None
    service, what = started
    copy = f": a second {service} on this host" if service else ""
    return Hit("own-server", f"starts {what}{copy}", suggest.spawn_instead(service, shell=shell))


def _started(program: str, rest: list[str], known: Known) -> tuple[str | None, str] | None:
    """The service, where it is a known one, and the server that a command starts."""
    if _MERELY_ASKS.intersection(rest[:1]):
        return None
    if program in known.programs:
        return (known.programs[program], program)
    if _PYTHON.fullmatch(program):
        return _python(rest, known)
    if program in _CONTAINERS:
        return _container(program, rest, known)
    if program in ("ffmpeg", "ffplay", "ffserver", "gst-rtsp-server"):
        return (None, "ffmpeg that listens") if _ffmpeg_listens(rest) else None
    listens = any(re.fullmatch(r"-[a-zA-Z]*l[a-zA-Z]*|--listen", word) for word in rest)
    if (program in ("nc", "ncat", "netcat") and listens) or (
        program == "socat" and any(_SOCAT_LISTENS.match(word) for word in rest)
    ):
        return (None, f"{program} that listens")
    if program in _SERVERS or _SUBCOMMANDS.get(program, frozenset()).intersection(rest):
        return (None, program)
    return None


def _python(rest: list[str], known: Known) -> tuple[str | None, str] | None:
    at = 0
    while at < len(rest) and rest[at].startswith("-") and rest[at] not in ("-m", "-c", "-"):
        at += 2 if rest[at] in ("-W", "-X") else 1
    if at >= len(rest) or rest[at] in ("-c", "-"):
        return None
    if rest[at] == "-m":
        module = rest[at + 1] if at + 1 < len(rest) else ""
    else:
        path = rest[at]
        if PurePosixPath(path).name == "manage.py" and "runserver" in rest:
            return (None, "manage.py runserver")
        module = path.removesuffix(".py").lstrip("./").replace("/", ".")
    for name, service in known.modules.items():
        # The same program from another folder: camera_service.main for src.camera_service.main.
        shorter = "." in module and f".{name}".endswith(f".{module}")
        if module == name or shorter or module.endswith(f".{name}"):
            return (service, module)
    return (None, module) if module in _MODULES else None


def _container(program: str, rest: list[str], known: Known) -> tuple[str | None, str] | None:
    if not {"run", "create"}.intersection(rest[:2]):
        return None
    for word in rest[1:]:
        if service := image_service(word, known):
            return (service, f"{word} by {program}")
    return None


def image_service(image: str, known: Known) -> str | None:
    """The service that a container image is of: ``bluenviron/mediamtx:1.13.1``."""
    if image.startswith("-") or "=" in image:
        return None
    name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    # Without a registry or a tag a word may be the container's name.
    return known.programs.get(name) if "/" in image or ":" in image or name == image else None


def _ffmpeg_listens(rest: list[str]) -> bool:
    pairs = list(pairwise(rest))
    return (
        ("-listen", "1") in pairs
        or ("-listen", "2") in pairs
        or ("-rtsp_flags", "listen") in pairs
        or ("-mode", "listener") in pairs
        or any(_FFMPEG_LISTENS.search(word) for word in rest)
    )


def _deletes(program: str, rest: list[str]) -> Iterator[Hit]:
    if program not in ("curl", "http", "wget") or not any(map(says_delete, rest)):
        return
    pairs = set(pairwise(rest))
    posts = (
        {("-X", "POST"), ("--request", "POST")} & pairs
        or {"-XPOST", "--request=POST", "POST", "--method=POST"} & set(rest)
        or any(word.startswith(("-d", "--data", "--post-data", "--json")) for word in rest)
    )
    if posts and not {("-X", "DELETE"), ("--request", "DELETE")} & pairs:
        yield Hit(
            "post-for-delete",
            "POST to …/config/paths/delete/ is answered with 404: the path stays",
            f"{program} -X DELETE" if program == "curl" else "the method DELETE",
        )


def _ports(
    program: str, rest: list[str], known: Known, *, shell: bool, server: bool
) -> Iterator[Hit]:
    for at, word in enumerate(rest):
        before = rest[at - 1] if at else program
        for place in urls(word) if shell or " " in word else ():
            if owner := place.owner(known):
                yield Hit(
                    "bound-port" if server else "connected-port",
                    f"{place.scheme}:// on port {place.port} ({owner})",
                    _instead(owner, shell=shell, url=True),
                )
        if program in _CONTAINERS and (published := _published(before, word)):
            owner = known.owner(published)
            yield Hit(
                "bound-port",
                f"publishes port {named(published, owner)}",
                _instead(owner, shell=shell) if owner else suggest.bound_instead(None),
            )
            continue
        option, number = _optioned(before, word, known)
        if program in _CONNECTORS and not server and number_in(word) and at:
            owner = known.owner(int(word), name="udp" if "-u" in rest else "")
            if owner and (UNKNOWN in before or is_local(before)):
                instead = _instead(owner, shell=shell)
                yield Hit("connected-port", f"{program} to {word} ({owner})", instead)
        elif option and program not in _DECLARERS and (owner := known.owner(number, name=option)):
            instead = _instead(owner, shell=shell)
            yield Hit("port-argument", f"{option} {number} ({owner}) for {program}", instead)


def named(number: int, owner: Owner | None) -> str:
    """A port's number, and whose it is."""
    return f"{number} ({owner})" if owner else str(number)


def published_port(text: str) -> int | None:
    """The host's port of what a container publishes: ``127.0.0.1:8554:8554/tcp``."""
    match = _PUBLISHED.fullmatch(text)
    return number_in(match[1]) if match else None


def _published(before: str, word: str) -> int | None:
    option, equals, value = word.partition("=")
    if equals and option in ("-p", "--publish"):
        return published_port(value)
    return published_port(word) if before in ("-p", "--publish") else None


def _instead(owner: Owner, *, shell: bool, url: bool = False) -> str:
    return suggest.shell_instead(owner) if shell else suggest.connected_instead(owner, url=url)


def _optioned(before: str, word: str, known: Known) -> tuple[str, int]:
    """The option that is named like a port, and its number: ``--port 8003``, ``-e MTX_…=8554``."""
    match = _OPTION_NUMBER.fullmatch(word)
    if match and is_port_name(match[1]):
        return f"--{match[1]}", int(match[2])
    number = number_in(word)
    if number is not None and before.startswith("--") and is_port_name(before[2:]):
        return before, number
    name, equals, value = word.partition("=")
    if equals and (is_port_name(name) or name in known.variables) and number_in(value):
        return name, int(value)
    return "", 0
