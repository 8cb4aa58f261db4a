"""The rules for Python. Everything is looked up in syntax trees; nothing is imported or run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from understudy.audit import commands, shell
from understudy.audit import known as suggest
from understudy.audit.facts import (
    Function,
    Link,
    Module,
    Site,
    defaults,
    field_default,
    says_port,
    spelled,
)
from understudy.audit.known import Known, Owner
from understudy.audit.resolving import Found, Project, Trail, Value, full_name, text_of
from understudy.audit.rules import Finding
from understudy.audit.words import (
    UNKNOWN,
    Place,
    address,
    is_local,
    keyed,
    number_in,
    says_delete,
    says_taken,
    says_taken_error,
    urls,
)
from understudy.model import Transport


class Listener(NamedTuple):
    """Where a call has its address: one argument, or host and port; -1 for keywords alone."""

    address: int = -1
    host: int = -1
    port: int = -1


_AT_0: Final = Listener(address=0)
_HOST_PORT: Final = Listener(host=0, port=1)
_AFTER_HANDLER: Final = Listener(host=1, port=2)
_KEYWORDS: Final = Listener()

_SERVER_CLASSES: Final = frozenset(
    (
        *("HTTPServer", "ThreadingHTTPServer", "TCPServer", "ThreadingTCPServer", "UDPServer"),
        *("ThreadingUDPServer", "ForkingTCPServer", "SimpleXMLRPCServer", "WSGIServer"),
        "StreamServer",
    )
)
_BOUND: Final = {
    "socket.create_server": _AT_0,
    "asyncio.start_server": _AFTER_HANDLER,
    "websockets.serve": _AFTER_HANDLER,
    "websockets.server.serve": _AFTER_HANDLER,
    "websockets.sync.server.serve": _AFTER_HANDLER,
    "websockets.asyncio.server.serve": _AFTER_HANDLER,
    "websockets.legacy.server.serve": _AFTER_HANDLER,
    "aiohttp.web.TCPSite": _AFTER_HANDLER,
    "web.TCPSite": _AFTER_HANDLER,
    "aiohttp.web.run_app": _KEYWORDS,
    "web.run_app": _KEYWORDS,
    "uvicorn.run": _KEYWORDS,
    "uvicorn.Config": _KEYWORDS,
    "waitress.serve": _KEYWORDS,
    "wsgiref.simple_server.make_server": _HOST_PORT,
    "werkzeug.serving.make_server": _HOST_PORT,
    "werkzeug.serving.run_simple": _HOST_PORT,
    "prometheus_client.start_http_server": Listener(port=0),
}
_BOUND_METHODS: Final = {
    "bind": _AT_0,
    "create_server": _AFTER_HANDLER,
    "add_insecure_port": _AT_0,
    "add_secure_port": _AT_0,
}
_CONNECTED: Final = {
    "socket.create_connection": _AT_0,
    "asyncio.open_connection": _HOST_PORT,
    "http.client.HTTPConnection": _HOST_PORT,
    "http.client.HTTPSConnection": _HOST_PORT,
    "telnetlib.Telnet": _HOST_PORT,
    "smtplib.SMTP": _HOST_PORT,
    "redis.Redis": _HOST_PORT,
    "redis.StrictRedis": _HOST_PORT,
}
_CONNECTED_METHODS: Final = {
    "connect": _AT_0,
    "connect_ex": _AT_0,
    "create_connection": _AFTER_HANDLER,
    "sendto": Listener(address=1),
}
_DATAGRAMS: Final = frozenset(("sendto", "UDPServer", "ThreadingUDPServer"))
_URL_CALLS: Final = frozenset(
    (
        *("get", "post", "put", "patch", "delete", "head", "options", "request", "stream"),
        *("urlopen", "Request", "urlretrieve", "ws_connect", "websocket_connect", "connect"),
        *("create_connection", "ServerProxy", "VideoCapture"),
    )
)
_ONLY_SAYS: Final = frozenset(
    (
        *("print", "debug", "info", "warning", "error", "exception", "critical", "log", "echo"),
        *("write", "skip", "skipif", "fail", "xfail", "add_argument", "startswith", "endswith"),
    )
)
_EXEC: Final = frozenset(
    f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen")
) | frozenset(
    (
        *("anyio.run_process", "anyio.open_process", "trio.run_process", "pexpect.spawn"),
        *("pexpect.run", "pexpect.popen_spawn.PopenSpawn"),
    )
)
_EXEC_WORDS: Final = frozenset(
    ("asyncio.create_subprocess_exec", "asyncio.subprocess.create_subprocess_exec")
)
_EXEC_SHELL: Final = frozenset(
    (
        *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
        *("asyncio.create_subprocess_shell", "asyncio.subprocess.create_subprocess_shell"),
    )
)
_EXEC_HELPER = re.compile(r"_?(run|exec|execute|call)_(cmd|command|process|subprocess|shell)")
_SLEEPS: Final = frozenset(
    ("time.sleep", "asyncio.sleep", "anyio.sleep", "trio.sleep", "gevent.sleep", "eventlet.sleep")
)
_STARTS: Final = frozenset(
    (
        *("Popen", "create_subprocess_exec", "create_subprocess_shell", "start_server"),
        *("serve_forever", "run_app", "TCPSite", "create_server", "HTTPServer"),
        "ThreadingHTTPServer",
    )
)
_STARTING: Final = frozenset(
    ("start", "restart", "launch", "serve", "run", "create_task", "ensure_future", "up", "boot")
)
_SERVERISH = re.compile(
    r"serv(er|e|ice)|daemon|mediamtx|camera|backend|listener|broker|proxy|\bapp\b|\bmtx|proc"
    r"|container|stack",
    re.IGNORECASE,
)
_START_NAME = re.compile(r"(start|launch|boot|spawn|restart)_\w+", re.IGNORECASE)
_READY_NAME = re.compile(
    r"ready|healthy|health|listening|is_up|port_open|is_alive|reachable|connectable|wait_for_port"
)
_FREE = re.compile(
    r"_?(find|get|pick|choose|reserve|next|allocate|acquire)?_?(a_|an_|next_)?"
    r"(free|unused|open|available|random|ephemeral)_?(tcp_|udp_|local_|network_)?ports?"
    r"(_number)?",
    re.IGNORECASE,
)
_FREE_CALLS: Final = frozenset(
    (
        *("portpicker.pick_unused_port", "ephemeral_port_reserve.reserve"),
        *("aiohttp.test_utils.unused_port", "test.support.socket_helper.find_unused_port"),
        *("port_for.select_random", "port_for.get_port"),
    )
)
_FREE_FIXTURES: Final = frozenset(
    (
        *("unused_tcp_port", "unused_tcp_port_factory", "unused_udp_port", "aiohttp_unused_port"),
        *("unused_udp_port_factory", "free_tcp_port", "free_udp_port", "free_tcp_port_factory"),
    )
)
_TAKEN_CHECK = re.compile(
    r"(is_)?port_(is_)?(in_use|taken|used|busy|occupied|bound|conflict\w*)|has_port_conflict",
    re.IGNORECASE,
)
_KEYED: Final = frozenset(("setenv", "setdefault", "putenv", "get", "pop", "getattr", "setattr"))
_ASKS_ENVIRONMENT: Final = frozenset(("os.environ.get", "os.environ.pop", "os.environ.setdefault"))
"""Whoever runs the suite can set it: no number is forced upon them."""

_SKIPS: Final = frozenset(("pytest.skip", "pytest.xfail", "unittest.SkipTest", "pytest.exit"))
_SKIP_MARKS: Final = frozenset(
    (
        *("pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail"),
        *("unittest.skip", "unittest.skipIf", "unittest.skipUnless"),
    )
)
_BODIES: Final = ("body", "orelse", "finalbody")
_READY: Final = "run.spawn() returns when the server is ready, or says at once why it is not"
_OWN_PORTS: Final = "run.spawn() hands out ports that are claimed until the run ends"


def find_helpers(module: Module, project: Project) -> None:
    """Note the functions of a file that find a free port, close it and give its number away."""
    if not module.probes:
        return
    for site in module.functions:
        node = site.node
        if isinstance(node, Function) and _gives_away(node, module, project, site):
            module.helpers[node.name] = node.lineno


def _gives_away(node: Function, module: Module, project: Project, site: Site) -> bool:
    sockets: set[str] = set()
    numbers: set[str] = set()
    tried: set[str] = set()
    bound = False
    returned: list[ast.expr] = []
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            last = spelled(inner.func).rpartition(".")[2]
            if last in ("bind", "create_server", "connect_ex") and inner.args:
                where = inner.args[0]
                if isinstance(where, ast.Tuple) and len(where.elts) > 1:
                    port = where.elts[1]
                    zero = project.resolve(port, module, site.scope) == 0
                    bound = bound or (zero and last != "connect_ex")
                    if isinstance(port, ast.Name):
                        tried.add(port.id)
        elif isinstance(inner, ast.Assign) and len(inner.targets) == 1:
            _note(inner.targets[0], inner.value, sockets, numbers)
        elif isinstance(inner, ast.withitem) and inner.optional_vars is not None:
            _note(inner.optional_vars, inner.context_expr, sockets, numbers)
        elif isinstance(inner, ast.Return) and inner.value is not None:
            returned.append(inner.value)
    probing = any(isinstance(inner, ast.For | ast.While) for inner in ast.walk(node))
    for value in returned:
        if isinstance(value, ast.Name) and value.id in tried and probing:
            return True
        if bound and _is_number(value, sockets, numbers):
            return True
    return False


def _note(target: ast.expr, value: ast.expr, sockets: set[str], numbers: set[str]) -> None:
    says = any(
        isinstance(one, ast.Attribute) and one.attr == "getsockname" for one in ast.walk(value)
    )
    for one in ast.walk(target):
        if isinstance(one, ast.Name):
            if says:
                numbers.add(one.id)
            elif isinstance(value, ast.Call):
                name = spelled(value.func).rpartition(".")[2]
                if name in ("socket", "create_server", "closing"):
                    sockets.add(one.id)


def _is_number(value: ast.expr, sockets: set[str], numbers: set[str]) -> bool:
    """Whether the number alone is given away, without the socket that holds it."""
    asked: set[int] = set()
    says = False
    for one in ast.walk(value):
        if isinstance(one, ast.Attribute) and one.attr == "getsockname":
            says = True
            asked.add(id(one.value))
        elif isinstance(one, ast.Name):
            if one.id in sockets and id(one) not in asked:
                return False
            says = says or one.id in numbers
    return says


def audit(module: Module, project: Project, known: Known) -> list[Finding]:
    """What is wrong with a file, apart from constants that another file may use.

    Args:
        module: The file; its helpers have been found.
        project: All files of the audit.
        known: What the definitions know.
    """
    return _Rules(module, project, known).findings()


def constants(module: Module, project: Project, known: Known) -> list[Finding]:
    """The constants, attributes and defaults that are production's ports; to be asked last.

    A constant that a finding has come from is not reported once more.
    """
    rules = _Rules(module, project, known)
    for site in module.bindings:
        rules.binding(site)
    return rules.found


class _Rules:
    """The rules at work on one file."""

    def __init__(self, module: Module, project: Project, known: Known) -> None:
        self.module = module
        self.project = project
        self.known = known
        self.found: list[Finding] = []
        self.told: set[tuple[int, str, object]] = set()

    def findings(self) -> list[Finding]:
        for site in self.module.functions:
            if isinstance(site.node, Function):
                self.function(site.node, site)
        for site in self.module.calls:
            if isinstance(site.node, ast.Call):
                self.call(site.node, site)
        for site in self.module.texts:
            self.text(site)
        for site in self.module.dicts:
            if isinstance(site.node, ast.Dict):
                self.dictionary(site.node, site)
        return self.found

    def add(
        self, node: ast.AST, rule: str, text: str, instead: str, *, about: object = None
    ) -> None:
        """Report a place once; what it is about tells two findings of a line apart."""
        line = getattr(node, "lineno", 1)
        if (line, rule, about) in self.told:
            return
        self.told.add((line, rule, about))
        self.found.append(
            Finding(
                file=self.module.file,
                line=line,
                last=getattr(node, "end_lineno", None) or line,
                rule=rule,
                text=text,
                instead=instead,
            )
        )

    def value(self, node: ast.expr | None, site: Site, trail: Trail | None = None) -> Value:
        return self.project.resolve(node, self.module, site.scope, trail)

    def use(self, trail: Trail) -> None:
        for module, line in trail:
            module.used.add(line)

    # Functions

    def function(self, node: Function, site: Site) -> None:
        if node.name in self.module.helpers and self.module.helpers[node.name] == node.lineno:
            said = f"{node.name}() closes the port before anybody uses it"
            self.add(_head(node), "free-port-helper", said, _OWN_PORTS)
        for name, default, _ in defaults(node.args):
            if default is not None:
                self.default(name, default, site)
        decorated = any("fixture" in _decorator(one) for one in node.decorator_list)
        if node.name.startswith("test") or decorated:
            for one in (*node.args.args, *node.args.kwonlyargs):
                if one.arg in _FREE_FIXTURES or (
                    _FREE.fullmatch(one.arg) and self.is_helper(one.arg)
                ):
                    said = f"{one.arg} was free a moment ago, and may be taken now"
                    self.add(one, "free-port-call", said, _OWN_PORTS, about=one.arg)

    def is_helper(self, name: str) -> bool:
        return name in self.module.helpers or bool(self.project.helper(self.module, name))

    def default(self, name: str, default: ast.expr, site: Site) -> None:
        trail: Trail = []
        value = self.value(field_default(default), site, trail)
        found = keyed(name, value, self.known) if says_port(name) else None
        if found:
            number, owner = found
            self.use(trail)
            said = f"{name} is {number} ({owner}) unless told otherwise"
            instead = f"no default, and {suggest.passed_instead(owner, name)}"
            self.add(default, "port-default", said, instead, about=name)

    # Bindings

    def binding(self, site: Site) -> None:
        node = site.node
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            return
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Subscript):
            self.subscript(target, node.value, site)
            return
        name = target.id if isinstance(target, ast.Name) else getattr(target, "attr", "")
        if not says_port(name) or node.lineno in self.module.used:
            return
        given = field_default(node.value)
        if isinstance(given, ast.Name | ast.Attribute):
            return
        ports = list(self.ports_in(name, given, site))
        if ports:
            attribute = isinstance(target, ast.Attribute) and spelled(target).split(".")[0] not in (
                "self",
                "cls",
            )
            rule = "port-argument" if attribute else "port-default"
            said = ", ".join(commands.named(*port) for port in ports)
            instead = suggest.passed_instead(ports[0][1], name)
            self.add(node, rule, f"{name} is {said}", instead, about=name)

    def ports_in(self, name: str, node: ast.expr | None, site: Site) -> Iterator[tuple[int, Owner]]:
        if isinstance(node, ast.Dict):
            values: list[Value] = [self.value(one, site) for one in node.values]
        else:
            value = self.value(node, site)
            values = value if isinstance(value, list) else [value]
            if isinstance(node, ast.Set):
                values = [self.value(one, site) for one in node.elts]
        for value in values:
            if found := keyed(name, value, self.known):
                yield found

    def subscript(self, target: ast.Subscript, value: ast.expr, site: Site) -> None:
        """``os.environ["MTX_APIADDRESS"] = ":9997"``, ``config["api_port"] = 9997``."""
        key = target.slice.value if isinstance(target.slice, ast.Constant) else None
        if isinstance(key, str):
            self.set_key(key, value, site, value)

    def set_key(self, key: str, value: ast.expr | None, site: Site, at: ast.AST) -> None:
        trail: Trail = []
        found = keyed(key, self.value(value, site, trail), self.known)
        if found:
            number, owner = found
            self.use(trail)
            variable = key in self.known.variables
            instead = (suggest.variable_instead if variable else suggest.passed_instead)(owner, key)
            self.add(at, "config-port", f"{key} is {number} ({owner})", instead, about=key)

    def dictionary(self, node: ast.Dict, site: Site) -> None:
        if _is_compared(site.link):
            return
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                self.set_key(key.value, value, site, value)

    # Calls

    def call(self, node: ast.Call, site: Site) -> None:
        name = full_name(node.func, self.module, site.scope)
        last = name.rpartition(".")[2]
        if not last:
            return
        listener = self.listener(name, last, node, site)
        if listener is not None:
            self.at_port("bound-port", node, listener, name, site)
        else:
            connecting = _CONNECTED.get(name)
            if connecting is None and "." in name:
                connecting = _CONNECTED_METHODS.get(last)
            if connecting is not None:
                self.at_port("connected-port", node, connecting, name, site)
            elif not _describes(last) and not name.startswith("understudy."):
                self.keywords(node, last, site)
        if last in _URL_CALLS:
            self.asked(node, last, site)
        if last == "create_datagram_endpoint":
            self.datagrams(node, site)
        if last in _KEYED and name not in _ASKS_ENVIRONMENT and len(node.args) > 1:
            key = self.value(node.args[-2], site)
            if isinstance(key, str):
                self.set_key(key, node.args[-1], site, node)
        self.free_port(node, name, last, site)
        self.command(node, name, last, site)
        if name in _SLEEPS:
            self.sleep(node, site)
        if name in _SKIPS or name in _SKIP_MARKS or last == "skipTest":
            self.skip(node, name, site)
        self.made(node, site)

    def listener(self, name: str, last: str, node: ast.Call, site: Site) -> Listener | None:
        if name in _BOUND:
            return _BOUND[name]
        if last in _BOUND_METHODS and "." in name:
            return _BOUND_METHODS[last]
        if last in _SERVER_CLASSES:
            return _AT_0
        if last == "run" and any(keyword.arg == "port" for keyword in node.keywords):
            return _KEYWORDS
        if last == "listen" and node.args:
            # Tornado's; a socket's listen() takes a backlog.
            number = number_in(self.value(node.args[0], site))
            return Listener(port=0) if number and self.known.owner(number) else None
        if last[:1].isupper():
            found = self.project.find_class(self.module, site.scope, node.func)
            if found is not None:
                bases = {base.rpartition(".")[2] for base in self.project.bases(found)}
                return _AT_0 if bases & _SERVER_CLASSES else None
        return None

    def at_port(self, rule: str, node: ast.Call, listener: Listener, name: str, site: Site) -> None:
        """A call that binds or connects: report its port if that is written down."""
        given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        where = _argument(node, listener.address) or given.get("address")
        where = where or given.get("server_address")
        trail: Trail = []
        host: Value = ""
        port: Value
        if where is not None and listener.address >= 0:
            value = self.value(where, site, trail)
            if isinstance(value, str):
                place = address(value) or next(urls(value), None)
                if place is None or (rule == "connected-port" and "://" in value):
                    return  # a path, or a URL, which is a rule of its own
                host, port = place.host, place.port
            elif isinstance(value, list) and len(value) > 1:
                host, port = value[0], value[1]
            else:
                return
        else:
            at = _argument(node, listener.port) or given.get("port")
            if at is None:
                return
            port = self.value(at, site, trail)
            host_at = _argument(node, listener.host) or given.get("host")
            host = self.value(host_at, site, trail) if host_at is not None else ""
        number = number_in(port) if isinstance(port, int) else None
        if number is None:
            return
        elsewhere = isinstance(host, str) and not is_local(host) and UNKNOWN not in host
        if elsewhere and rule != "bound-port":
            return
        datagram = name.rpartition(".")[2] in _DATAGRAMS or self.is_datagram(node, site)
        owner = self.known.owner(number, transport=Transport.UDP if datagram else None)
        if rule == "connected-port" and owner is None and not isinstance(host, str):
            # Nobody's port on a host that is not known may well be on another machine.
            return
        self.use(trail)
        verb = "binds" if rule == "bound-port" else "connects to"
        advice = suggest.bound_instead if rule == "bound-port" else suggest.connected_instead
        said = f"{_short(name)}() {verb} port {commands.named(number, owner)}{_from(trail, self)}"
        self.add(node, rule, said, advice(owner), about=number)

    def is_datagram(self, node: ast.Call, site: Site) -> bool:
        """Whether what is bound or connected was made as a socket for UDP."""
        receiver = node.func.value if isinstance(node.func, ast.Attribute) else None
        if not isinstance(receiver, ast.Name):
            return False
        made = self.project.lookup(self.module, site.scope, receiver.id)
        return made is not None and any(
            isinstance(one, ast.Attribute) and one.attr == "SOCK_DGRAM" for one in ast.walk(made[2])
        )

    def datagrams(self, node: ast.Call, site: Site) -> None:
        for keyword in node.keywords:
            if keyword.arg in ("local_addr", "remote_addr"):
                rule = "bound-port" if keyword.arg == "local_addr" else "connected-port"
                plain = ast.Call(func=node.func, args=[keyword.value], keywords=[])
                plain = ast.copy_location(plain, node)
                self.at_port(rule, plain, _AT_0, "create_datagram_endpoint", site)

    def keywords(self, node: ast.Call, last: str, site: Site) -> None:
        for keyword in node.keywords:
            if keyword.arg is None:
                continue
            if not says_port(keyword.arg) and keyword.arg not in self.known.variables:
                continue
            trail: Trail = []
            found = keyed(keyword.arg, self.value(keyword.value, site, trail), self.known)
            if found:
                number, owner = found
                self.use(trail)
                said = f"{last}({keyword.arg}={number}) is {owner}{_from(trail, self)}"
                instead = suggest.passed_instead(owner, keyword.arg)
                self.add(keyword.value, "port-argument", said, instead, about=keyword.arg)

    def asked(self, node: ast.Call, last: str, site: Site) -> None:
        """A call whose URL is put together from constants, or is of the wrong method."""
        given = [*node.args[:2], *(one.value for one in node.keywords if one.arg in _URL_WORDS)]
        texts: list[str] = []
        for one in given:
            trail: Trail = []
            value = self.value(one, site, trail)
            if not isinstance(value, str):
                continue
            texts.append(value)
            place = next(urls(value), None)
            if place is None or not place.local:
                continue
            owner = place.owner(self.known)
            literal = isinstance(one, ast.Constant | ast.JoinedStr)
            if literal and str(place.port) in _literal(one):
                if owner is None:
                    self.url(one, place, None)
            elif owner is None and trail:
                # Where the number is written is where it has to be changed.
                module, line = trail[-1]
                if module is self.module:
                    self.url(_at(line), place, None)
        method = next((one.value for one in node.keywords if one.arg == "method"), None)
        post = last == "post" or (
            last in ("request", "Request")
            and ("POST" in texts or self.value(method, site) == "POST")
        )
        if post and any(map(says_delete, texts)):
            self.add(
                node,
                "post-for-delete",
                "POST to …/config/paths/delete/ is answered with 404: the path stays",
                "DELETE" if last != "post" else f"{spelled(node.func)[:-4]}delete(…)",
            )

    def free_port(self, node: ast.Call, name: str, last: str, site: Site) -> None:
        helper = name in _FREE_CALLS
        if not helper and isinstance(node.func, ast.Name):
            found = self.project.helper(self.module, node.func.id)
            helper = bool(found) or (found is None and _FREE.fullmatch(last) is not None)
            if found is None and node.func.id in site.scope.names:
                helper = False
        elif not helper and isinstance(node.func, ast.Attribute):
            base = node.func.value
            if isinstance(base, ast.Name):
                if base.id in ("self", "cls"):
                    helper = last in self.module.helpers
                else:
                    other = self.project.of_name(self.module, base.id)
                    if other is not None:
                        helper = last in other.helpers
                    elif base.id in self.module.imports:
                        helper = _FREE.fullmatch(last) is not None
        if helper:
            said = f"{_short(name)}() gives a port that may be taken when it is used"
            self.add(node, "free-port-call", said, _OWN_PORTS)

    # Commands

    def command(self, node: ast.Call, name: str, last: str, site: Site) -> None:
        if (last == "run" and "containers" in name) or last == "DockerContainer":
            image = self.value(_argument(node, 0), site)
            service = commands.image_service(image, self.known) if isinstance(image, str) else None
            if service:
                said = f"starts {image}: a second {service} on this host"
                self.add(node, "own-server", said, suggest.spawn_instead(service))
            return
        scripted = name in _EXEC_SHELL
        if not (scripted or name in _EXEC or name in _EXEC_WORDS or _EXEC_HELPER.fullmatch(last)):
            return
        if name in _EXEC_WORDS:
            words = [self.value(one, site) for one in node.args]
            self.words([text_of(word) for word in words], node)
            return
        first = _argument(node, 0) or next(
            (one.value for one in node.keywords if one.arg in ("args", "cmd", "command")), None
        )
        value = self.value(first, site)
        if isinstance(value, list):
            self.words([text_of(word) for word in value], node)
        elif isinstance(value, str):
            self.script(value, node)

    def words(self, argv: list[str], node: ast.AST) -> None:
        for hit in commands.audit(argv, self.known):
            self.add(node, *hit, about=hit.text)
        inner = commands.inner_script(argv)
        if inner:
            self.script(inner, node)

    def script(self, text: str, node: ast.AST) -> None:
        try:
            read = shell.read(text)
        except shell.ShellError:
            return
        for one in read:
            for hit in commands.audit(one.words, self.known):
                self.add(node, *hit, about=hit.text)
            for word in one.words if len(read) == 1 and len(one.words) > 1 else ():
                for place in urls(word):
                    if owner := place.owner(self.known):
                        self.url(node, place, owner)

    def starts_server(self, node: ast.Call, name: str, site: Site) -> bool:
        """Whether a call runs a command that starts a server, or has systemd do so."""
        if name not in _EXEC and name not in _EXEC_SHELL and name not in _EXEC_WORDS:
            return False
        value = self.value(_argument(node, 0), site)
        if name in _EXEC_WORDS:
            value = [self.value(one, site) for one in node.args]
        if isinstance(value, list):
            return commands.starts_server([text_of(word) for word in value], self.known)
        if isinstance(value, str):
            try:
                read = shell.read(value)
            except shell.ShellError:
                return False
            return any(commands.starts_server(one.words, self.known) for one in read)
        return False

    # Waiting and skipping

    def sleep(self, node: ast.Call, site: Site) -> None:
        length = _argument(node, 0)
        if isinstance(length, ast.Constant) and not length.value:
            return  # a turn for others
        why = self.slept(site)
        if why:
            self.add(node, "sleep-for-ready", f"{spelled(node.func)}() {why}", _READY)

    def slept(self, site: Site) -> str:
        inner: ast.AST = site.node
        link = site.link
        first = True
        while link is not None:
            node = link.node
            if isinstance(inner, ast.stmt):
                block = _block(node, inner)
                if first and block:
                    at = block.index(inner)
                    for before in block[max(0, at - 2) : at]:
                        if self.is_start(before, site):
                            return "after a server was started"
                first = False
                if isinstance(node, ast.While | ast.For | ast.AsyncFor) and self.asks(node):
                    return "in a loop that asks whether it is ready"
            if isinstance(node, Function | ast.Lambda | ast.ClassDef):
                return ""
            inner, link = node, link.outer
        return ""

    def is_start(self, statement: ast.stmt, site: Site) -> bool:
        if isinstance(statement, ast.With | ast.AsyncWith | ast.If | ast.Try | ast.For):
            return False
        if isinstance(statement, Function | ast.ClassDef | ast.While):
            return False
        for node in ast.walk(statement):
            if not isinstance(node, ast.Call):
                continue
            name = full_name(node.func, self.module, site.scope)
            last = name.rpartition(".")[2]
            if last in _STARTS or name in _BOUND or self.starts_server(node, name, site):
                return True
            if last in _STARTING and name not in _EXEC:
                said = " ".join(
                    spelled(one)
                    for one in ast.walk(node)
                    if isinstance(one, ast.Attribute | ast.Name)
                )
                if _SERVERISH.search(said):
                    return True
            if _START_NAME.fullmatch(last) and _SERVERISH.search(last):
                return True
        return False

    def asks(self, loop: ast.While | ast.For | ast.AsyncFor) -> bool:
        parts: list[ast.AST] = [*loop.body]
        if isinstance(loop, ast.While):
            parts.append(loop.test)
        for part in parts:
            for node in ast.walk(part):
                if isinstance(node, ast.Call):
                    name = full_name(node.func, self.module, self.module.scope)
                    last = name.rpartition(".")[2]
                    if (
                        name in _CONNECTED
                        or last in ("connect", "connect_ex", "urlopen", "open_connection")
                        or name in ("requests.get", "httpx.get", "requests.head")
                        or _READY_NAME.search(last)
                    ):
                        return True
        return False

    def skip(self, node: ast.Call, name: str, site: Site) -> None:
        texts = [self.value(one, site) for one in (*node.args, *(k.value for k in node.keywords))]
        why = ""
        if any(isinstance(text, str) and says_taken(text) for text in texts):
            why = "because a port is taken"
        elif any(self.is_taken_check(one, site) for one in node.args):
            why = "if a port is taken"
        elif name not in _SKIP_MARKS and self.around_taken(site):
            why = "when a port is taken"
        if why:
            self.add(
                node,
                "port-skip",
                f"{_short(name)}() {why}: what it tests is not tested beside production",
                f"{_OWN_PORTS}; or as it is: {suggest.PRIVATE}",
            )

    def is_taken_check(self, node: ast.expr, site: Site) -> bool:
        for one in ast.walk(node):
            match one:
                case ast.Attribute(attr=name) | ast.Name(id=name):
                    if name == "EADDRINUSE" or _TAKEN_CHECK.fullmatch(name):
                        return True
                case ast.Constant(value=str(text)) if says_taken_error(text):
                    return True
                case ast.Compare() if self.compares_taken(one):
                    return True
        return False

    def compares_taken(self, node: ast.Compare) -> bool:
        left, right = node.left, node.comparators[0]
        known = len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq | ast.In)
        if not known or not isinstance(right, ast.Constant):
            return False
        if isinstance(left, ast.Attribute) and left.attr == "errno":
            return bool(right.value == 98)
        if isinstance(left, ast.Call) and right.value == 0 and type(right.value) is int:
            return spelled(left.func).rpartition(".")[2] == "connect_ex"
        return False

    def around_taken(self, site: Site) -> bool:
        """Whether a skip stands where a port was seen to be taken."""
        inner: ast.AST = site.node
        link = site.link
        while link is not None:
            node = link.node
            if isinstance(node, ast.If) and inner in node.body:
                if self.is_taken_check(node.test, site):
                    return True
            elif isinstance(node, ast.ExceptHandler) and node.type is not None:
                caught = {spelled(one) for one in ast.walk(node.type) if isinstance(one, ast.expr)}
                if caught & {"OSError", "socket.error", "IOError", "EnvironmentError"}:
                    tried = link.outer.node if link.outer else None
                    if isinstance(tried, ast.Try) and self.binds(tried, site):
                        return True
            elif isinstance(node, Function | ast.Lambda):
                return False
            inner, link = node, link.outer
        return False

    def binds(self, tried: ast.Try, site: Site) -> bool:
        for statement in tried.body:
            for node in ast.walk(statement):
                if isinstance(node, ast.Call):
                    name = full_name(node.func, self.module, site.scope)
                    last = name.rpartition(".")[2]
                    if self.listener(name, last, node, site) is not None:
                        return True
        return False

    # Classes

    def made(self, node: ast.Call, site: Site) -> None:
        """``Config()`` whose default is a known port, and ``Config("localhost", 9997)``."""
        name = spelled(node.func).rpartition(".")[2]
        if _describes(name):
            return
        found = self.project.find_class(self.module, site.scope, node.func)
        if found is None:
            function = self.project.find_function(self.module, site.scope, node.func)
            parameters = defaults(function.args) if function and _opens_sockets(function) else []
        else:
            parameters = self.project.parameters(found)[2]
        if not parameters:
            return
        plain = not any(isinstance(one, ast.Starred) for one in node.args)
        for parameter in parameters if plain else ():
            if parameter.at is None or parameter.at >= len(node.args):
                continue
            if says_port(parameter.name):
                trail: Trail = []
                value = self.value(node.args[parameter.at], site, trail)
                port = keyed(parameter.name, value, self.known)
                if port:
                    self.use(trail)
                    said = f"{name}(): {parameter.name} is {port[0]} ({port[1]})"
                    instead = suggest.passed_instead(port[1], parameter.name)
                    at = node.args[parameter.at]
                    self.add(at, "port-argument", said, instead, about=parameter.name)
        for path, number, owner in self.hidden(found, node, 0) if found else ():
            said = f"{name}() leaves {path} at {number} ({owner})"
            instead = suggest.passed_instead(owner, path)
            self.add(node, "hidden-default", said, instead, about=path)

    def hidden(self, found: Found, node: ast.Call, depth: int) -> Iterator[tuple[str, int, Owner]]:
        """The known ports that a call leaves to defaults, also of what it makes itself."""
        if depth > 3:
            return
        starred = any(isinstance(one, ast.Starred) for one in node.args)
        if starred or any(one.arg is None for one in node.keywords):
            return
        passed = {one.arg for one in node.keywords}
        module, definition, parameters = self.project.parameters(found)
        for name, default, at in parameters:
            if default is None or name in passed or (at is not None and at < len(node.args)):
                continue
            given = field_default(default)
            if says_port(name):
                value = self.project.resolve(given, module, definition.around)
                port = keyed(name, value, self.known)
                if port:
                    yield name, *port
            elif isinstance(given, ast.Call):
                inner = self.project.find_class(module, definition.around, given.func)
                if inner is not None and inner.definition is not definition:
                    for path, number, owner in self.hidden(inner, given, depth + 1):
                        yield f"{name}.{path}", number, owner

    # Texts

    def text(self, site: Site) -> None:
        if _is_compared(site.link) or _only_says(site.link, site.node):
            return
        trail: Trail = []
        value = self.value(site.node if isinstance(site.node, ast.expr) else None, site, trail)
        if not isinstance(value, str) or re.search(r"\s", value):
            return
        place = next(urls(value), None)
        if place is None:
            place = address(value)
            keyed_here = site.link is not None and isinstance(site.link.node, ast.Dict)
            if place is None or not place.host or place.open or keyed_here:
                return
        owner = place.owner(self.known)
        if owner is None:
            return
        written = str(place.port) in _literal(site.node)
        if not written and any(isinstance(one, str) and ":" in one for one in self.parts(site)):
            return  # a URL that is a constant has been reported there
        self.use(trail)
        self.url(site.node, place, owner)

    def parts(self, site: Site) -> Iterator[Value]:
        """What stands in the braces of an f-string."""
        if isinstance(site.node, ast.JoinedStr):
            for one in site.node.values:
                if isinstance(one, ast.FormattedValue):
                    yield self.value(one.value, site)

    def url(self, node: ast.AST, place: Place, owner: Owner | None) -> None:
        what = f"a {place.scheme} URL of port" if place.scheme else "the address of port"
        said = f"{what} {commands.named(place.port, owner)}"
        instead = suggest.connected_instead(owner, url=bool(place.scheme))
        self.add(node, "connected-port", said, instead, about=place.port)


_OPENERS: Final = _SERVER_CLASSES | frozenset(
    ("open_connection", "start_server", "HTTPConnection", "HTTPSConnection", "serve", "TCPSite")
)
_URL_WORDS: Final = frozenset(("url", "uri"))


def _argument(node: ast.Call, at: int) -> ast.expr | None:
    """A positional argument; None where it is not given, or behind ``*arguments``."""
    if not 0 <= at < len(node.args):
        return None
    if any(isinstance(one, ast.Starred) for one in node.args[: at + 1]):
        return None
    return node.args[at]


def _at(line: int) -> ast.AST:
    return ast.Constant(value=0, lineno=line, end_lineno=line, col_offset=0, end_col_offset=0)


def _head(node: Function) -> ast.AST:
    """A function's first line alone: an ignore comment belongs there, not anywhere inside."""
    return _at(node.lineno)


def _decorator(node: ast.expr) -> str:
    return spelled(node.func if isinstance(node, ast.Call) else node)


def _opens_sockets(function: Function) -> bool:
    """Whether a function itself does with a port what ports are for."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            last = spelled(node.func).rpartition(".")[2]
            if last in _BOUND_METHODS or last in _CONNECTED_METHODS or last in _OPENERS:
                return True
        elif isinstance(node, ast.JoinedStr) and "://" in _literal(node):
            return True
    return False


def _describes(name: str) -> bool:
    """Whether a call only says something of a port: an error, an assertion."""
    return name.endswith(("Error", "Exception", "Warning")) or name.startswith("assert")


def _short(name: str) -> str:
    return ".".join(name.lstrip("?.").split(".")[-2:])


def _from(trail: Trail, rules: _Rules) -> str:
    """Where the constant stands that a port came from."""
    if not trail:
        return ""
    module, line = trail[-1]
    return f", set in line {line}" if module is rules.module else f", set in {module.file}:{line}"


def _literal(node: ast.AST) -> str:
    """What of a text is written down."""
    if isinstance(node, ast.Constant):
        return str(node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return UNKNOWN.join(
            one.value
            for one in node.values
            if isinstance(one, ast.Constant) and isinstance(one.value, str)
        )
    return ""


def _block(node: ast.AST, statement: ast.stmt) -> list[ast.stmt]:
    """The statements of a node that one is among."""
    for name in _BODIES:
        block = getattr(node, name, None)
        if isinstance(block, list) and statement in block:
            return block
    return []


def _is_compared(link: Link | None) -> bool:
    """Whether a literal is what something is compared with, or stands alone as a docstring."""
    while link is not None:
        node = link.node
        if isinstance(node, ast.Compare | ast.Assert | ast.Expr):
            return True
        if isinstance(node, ast.Call):
            return spelled(node.func).rpartition(".")[2].lower().startswith("assert")
        if isinstance(node, ast.stmt):
            return False
        link = link.outer
    return False


def _only_says(link: Link | None, node: ast.AST) -> bool:
    """Whether a text is written to somebody, or matched with what was."""
    while link is not None:
        around = link.node
        if isinstance(around, ast.Call):
            last = spelled(around.func).rpartition(".")[2]
            return last in _ONLY_SAYS or _describes(last)
        if isinstance(around, ast.keyword) and around.arg in ("match", "help", "reason", "msg"):
            return True
        if isinstance(around, ast.stmt):
            return isinstance(around, ast.Raise)
        link = link.outer
    return False
