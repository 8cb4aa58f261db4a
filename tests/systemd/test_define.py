"""A definition is written from an installed unit, tried out, and used: two side by side."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.systemd.support import (
    ROOT,
    RUNTIME,
    UNIT_DIR,
    eventually,
    get,
    holders,
    require,
    require_throwaway,
    show,
    systemctl,
    understudy,
)

from understudy.check import Finding, check
from understudy.define import Definition, define, find, look, place, service_name
from understudy.errors import UnderstudyError
from understudy.manager import connect
from understudy.run import Run

SECRETS = ("t0ken-of-the-shop", "s3cret-of-the-shop", "pg-secret-of-the-shop", "old-secret-of-it")

SERVER = '''
"""A site's own service: told by a variable, an argument and a file; it writes into a folder."""
import configparser, http.server, json, os, signal, sys, threading

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
config = configparser.ConfigParser()
config.read(sys.argv[sys.argv.index("--config") + 1])
store = config["store"]
with open(os.path.join(store["path"], "pid"), "w") as file:
    file.write(str(os.getpid()))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = {"store": store["path"], "token": os.environ["API_TOKEN"], "key": store["password"]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def log_message(self, *_):
        pass

numbers = (os.environ["SHOP_PORT"], config["admin"]["port"], sys.argv[sys.argv.index("-m") + 1])
servers = [http.server.HTTPServer(("127.0.0.1", int(one)), Handler) for one in numbers]
for one in servers[1:]:
    threading.Thread(target=one.serve_forever, daemon=True).start()
servers[0].serve_forever()
'''

CONFIG = """\
# password = old-secret-of-it
[admin]
port = 7902
[store]
path = {store}
password = s3cret-of-the-shop
cache_size = 7902
"""

HARD = """
import http.server, os, signal, socket
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Server(http.server.HTTPServer):
    def server_bind(self):
        if "LISTEN_FDS" in os.environ:
            self.socket.close()
            self.socket = socket.socket(fileno=3)
            self.server_address = self.socket.getsockname()
        else:
            self.socket.bind(self.server_address)
    def server_activate(self):
        self.socket.listen()
Server(("127.0.0.1", 7904), http.server.SimpleHTTPRequestHandler).serve_forever()
"""

UNIT = """\
[Unit]
Description=The shop of this site
[Service]
Type=exec
EnvironmentFile={folder}/shop.env
Environment=PGPASSWORD=pg-secret-of-the-shop COLOUR=red
WorkingDirectory={folder}
ExecStart=/usr/bin/python3 server.py --config {folder}/shop.ini -m 7903
"""


def pong(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(100)


def write(unit: str, parent: Path) -> Definition:
    """What the command does, without its process."""
    name, manager = find(unit, None)
    definition = define(look(name, manager), service_name(name))
    place(definition, parent)
    return definition


def wrong(folder: Path) -> list[Finding]:
    return check(folder, connect())


def life(unit: str) -> dict[str, str]:
    """What says that a unit was neither restarted nor changed."""
    names = ("ActiveState", "InvocationID", "MainPID", "NRestarts", "StateChangeTimestampMonotonic")
    return show(unit, *names, "DropInPaths", "NeedDaemonReload")


@pytest.fixture(scope="module")
def shop() -> Iterator[Path]:
    """A service that this site wrote for itself, running, and an alias and a masked unit."""
    folder = Path("/var/tmp/tests-shop")
    store = RUNTIME / "tests-shop-store"
    with ExitStack() as undo:
        for place in (folder, store):
            place.mkdir()
            place.chmod(0o755)
            undo.callback(shutil.rmtree, place)
        (folder / "server.py").write_text(SERVER)
        (folder / "shop.ini").write_text(CONFIG.format(store=store))
        (folder / "hard.py").write_text(HARD)
        for name in ("server.py", "hard.py", "shop.ini"):
            (folder / name).chmod(0o644)
        (folder / "shop.env").write_text(
            "SHOP_PORT=7901\nAPI_TOKEN='t0ken-of-the-shop'\nLEVEL=debug\n"
        )
        (folder / "shop.env").chmod(0o600)
        UNIT_DIR.mkdir(parents=True, exist_ok=True)
        undo.callback(systemctl, "daemon-reload")
        for name, text in (
            ("tests-shop.service", UNIT.format(folder=folder)),
            ("tests-bad.service", "[Service]\nType=exec\n"),
            ("tests-hard.service", f"[Service]\nExecStart=/usr/bin/python3 {folder}/hard.py\n"),
            ("tests-handed.service", f"[Service]\nExecStart=/usr/bin/python3 {folder}/hard.py\n"),
            ("tests-handed.socket", "[Socket]\nListenStream=7905\nFileDescriptorName=web\n"),
        ):
            (UNIT_DIR / name).write_text(text)
            undo.callback((UNIT_DIR / name).unlink)
        for name, target in (
            ("tests-alias.service", "tests-shop.service"),
            ("tests-masked.service", "/dev/null"),
        ):
            (UNIT_DIR / name).symlink_to(target)
            undo.callback((UNIT_DIR / name).unlink)
        systemctl("daemon-reload")
        running = ("tests-shop.service", "tests-hard.service", "tests-handed.socket")
        undo.callback(systemctl, "stop", *running, "tests-handed.service")
        systemctl("start", *running)
        assert eventually(lambda: holders("tcp", 7901) == {"tests-shop.service"})
        assert eventually(lambda: holders("tcp", 7904) == {"tests-hard.service"})
        yield folder


@pytest.fixture
def debian(request: pytest.FixtureRequest) -> Iterator[str]:
    """Debian's own unit of a server, which runs."""
    require_throwaway()
    unit: str = request.param
    require(show(unit, "LoadState") == {"LoadState": "loaded"}, f"{unit} is not installed")
    systemctl("start", unit)
    yield unit
    systemctl("stop", unit)
    systemctl("reset-failed", unit, check=False)


def test_a_site_s_own_service_gets_understudies(shop: Path, tmp_path: Path) -> None:
    before = life("tests-shop.service")
    done = understudy("define", "tests-alias", "--name", "shop", "--output", tmp_path)
    assert done.stdout.splitlines()[-2:] == [
        f"next:  understudy check {tmp_path}/shop",
        f"       understudy spawn shop --units {tmp_path}",
    ]
    assert "note: tests-alias.service is an alias of tests-shop.service" in done.stderr
    assert "note: an environment file sets LEVEL; instances do not read it" in done.stderr
    assert "note: secrets are not taken: API_TOKEN ('change-me'" in done.stderr
    written = "".join(path.read_text() for path in (tmp_path / "shop").iterdir())
    for secret in SECRETS:
        assert secret not in written + done.stdout + done.stderr
    assert understudy("check", tmp_path / "shop").stdout == "shop: nothing wrong\n"
    with Run(units=tmp_path) as run:
        pair = run.spawn_many(["shop", "shop"])
        said = [json.loads(get(url)) for one in pair for url in one.urls.values()]
    assert len(said) == 6
    assert {one["key"] for one in said} == {one["token"] for one in said} == {"change-me"}
    assert len({one["store"] for one in said}) == 2
    assert all(run.id in one["store"] for one in said)
    production = json.loads(get("http://127.0.0.1:7901/"))
    assert production["token"] == "t0ken-of-the-shop"
    assert life("tests-shop.service") == before


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("tests-hard", 'network = "private"'),
        ("tests-handed", 'instance = "sockets"'),
    ],
)
def test_ports_that_are_written_into_it_or_handed_to_it(
    shop: Path, tmp_path: Path, unit: str, expected: str
) -> None:
    assert expected in write(unit, tmp_path).files["service.toml"]
    assert wrong(tmp_path / unit) == []


def test_the_files_are_printed_and_nothing_is_written(shop: Path, tmp_path: Path) -> None:
    printed = understudy("define", "tests-shop", "--dry-run", "--output", tmp_path).stdout
    assert printed.startswith(f"# {tmp_path}/tests-shop/service.toml\n")
    [row] = json.loads(understudy("define", "tests-shop", "--stdout", "--json").stdout)
    assert row["unit"] == "tests-shop.service"
    assert row["manager"] == ("system" if ROOT else "user")
    assert (row["running"], row["folder"]) == (True, None)
    assert sorted(row["files"]) == [
        "instance.conf",
        "service.toml",
        "shop.ini.j2",
        "tests-shop.service.j2",
    ]
    assert {"text", "hint"} == set(row["notes"][0])
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_there_is_replaced_only_by_force(shop: Path, tmp_path: Path) -> None:
    arguments = ("define", "tests-shop", "--output", tmp_path)
    (tmp_path / "tests-shop").mkdir()
    (tmp_path / "tests-shop/service.toml").write_text("mine")
    done = understudy(*arguments, code=1)
    assert f"Cannot write '{tmp_path}/tests-shop': it is there already" in done.stderr
    understudy(*arguments, "--force")
    assert [path.name for path in tmp_path.iterdir()] == ["tests-shop"]
    assert "mine" not in (tmp_path / "tests-shop/service.toml").read_text()


@pytest.mark.parametrize(
    ("unit", "problem", "hint"),
    [
        ("tests-nowhere", "no unit file of that name", "systemctl list-unit-files"),
        ("tests-masked", "it is masked", "systemctl unmask tests-masked.service"),
        ("tests-bad", "its manager cannot read it", "systemd-analyze verify tests-bad.service"),
        ("tests-shop@", "it is a template", "name an instance of it: tests-shop@NAME.service"),
        ("tests-shop.socket", "only a service can have instances", "name the service itself"),
    ],
)
def test_what_cannot_be_defined_is_told(shop: Path, unit: str, problem: str, hint: str) -> None:
    with pytest.raises(UnderstudyError, match=f"Cannot define '{unit}.*{problem}") as caught:
        find(unit, None)
    assert hint in (caught.value.hint or "")


def test_errors_are_one_line_and_nothing_is_written(shop: Path, tmp_path: Path) -> None:
    done = understudy("define", "tests-nowhere", "--output", tmp_path, code=1)
    assert done.stderr.startswith("error: Cannot define 'tests-nowhere.service': no unit file of ")
    done = understudy("define", "tests-shop", "--name", "../x", "--output", tmp_path, code=1)
    assert "'../x' is no name for a service" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_names_of_units_are_completed(shop: Path) -> None:
    words = {"COMP_WORDS": "understudy define tests-sh", "COMP_CWORD": "2"}
    done = subprocess.run(
        ["understudy"],
        env={**os.environ, **words, "_UNDERSTUDY_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["plain,tests-shop.service"]


@pytest.mark.skipif(not ROOT, reason="only root may start Debian's units; the root session does")
@pytest.mark.parametrize("debian", ["nginx.service", "redis-server.service"], indirect=True)
def test_debian_s_own_servers_get_understudies(debian: str, tmp_path: Path) -> None:
    before = life(debian)
    name = write(debian, tmp_path).name
    assert wrong(tmp_path / name) == []
    with Run(units=tmp_path) as run:
        pair = run.spawn_many([name, name])
        numbers = [number for one in pair for number in one.ports.values()]
        assert len(set(numbers)) == 2
        if name == "nginx":
            assert "nginx" in get(pair[0].urls["http"]) + get(pair[1].urls["http"])
        else:
            assert [pong(number) for number in (*numbers, 6379)] == [b"+PONG\r\n"] * 3
    assert life(debian) == before


@pytest.mark.skipif(ROOT, reason="what others than root may see; the user's session does it")
def test_a_unit_of_the_system_is_defined_by_who_may_only_look(tmp_path: Path) -> None:
    for name in ("nginx", "redis-server"):
        require(shutil.which(name, path="/usr/sbin:/usr/bin") is not None, f"no {name} here")
        notes = list(map(str, write(name, tmp_path).notes))
        assert notes[0].startswith("not running: ")
    assert any("sudo understudy define redis-server.service" in note for note in notes)
    (tmp_path / "nginx/nginx.conf.j2").chmod(0)
    [finding] = wrong(tmp_path / "nginx")
    assert "nginx.conf.j2': Permission denied" in finding.text
    assert finding.hint.startswith("who runs instances")
    (tmp_path / "nginx/nginx.conf.j2").chmod(0o644)
    with Run(units=tmp_path) as run:
        *two, web = run.spawn_many(["redis-server", "redis-server", "nginx"])
        assert [pong(one.ports["redis"]) for one in two] == [b"+PONG\r\n"] * 2
        assert "nginx" in get(web.urls["http"])
