"""The pure parts of ports: ranges, numbers, the check, names of units and holders."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import DefinitionError, PortError, UsageError
from understudy.model import Port, Transport
from understudy.ports import (
    BLOCK,
    Allocator,
    Hold,
    Holder,
    PortRange,
    Socket,
    Sockets,
    State,
    block_of,
    cgroups,
    check,
    configured_range,
    ranges,
    unit_of,
)
from understudy.ports.numbering import assign, fix, group

TCP, UDP = Transport.TCP, Transport.UDP


def tcp(name: str, *, optional: bool = False) -> Port:
    return Port(name=name, transport=TCP, optional=optional)


def udp(name: str, *, even: bool = False, next_to: str | None = None) -> Port:
    return Port(name=name, transport=UDP, even=even, next_to=next_to)


RTP = udp("rtp", even=True)
RTCP = udp("rtcp", next_to="rtp")
MEDIAMTX = [tcp("api"), tcp("rtsp"), RTP, RTCP, tcp("hls"), tcp("webrtc"), udp("ice"), udp("srt")]


# Ranges


@given(st.integers(1024, 65535), st.integers(1024, 65535))
def test_blocks_are_aligned_whole_and_cover_all_but_the_edges(first: int, last: int) -> None:
    try:
        found = PortRange(first, last)
    except PortError:
        assert last - first < 2 * BLOCK
        return
    blocks = list(found.blocks)
    assert blocks == list(range(blocks[0], blocks[-1] + 1, BLOCK))
    for block in (blocks[0], blocks[-1]):
        assert block % BLOCK == 0
        assert first <= block <= block + BLOCK - 1 <= last
    assert blocks[0] - first < BLOCK
    assert last - (blocks[-1] + BLOCK - 1) < BLOCK


@given(st.integers(1, 65535))
def test_a_port_lies_in_its_block(number: int) -> None:
    assert block_of(number) % BLOCK == 0
    assert 0 <= number - block_of(number) < BLOCK


@given(st.integers(1024, 60000), st.integers(BLOCK * 2, 5000))
def test_a_range_is_read_as_it_is_printed(first: int, size: int) -> None:
    expected = PortRange(first, first + size)
    assert PortRange.parse(str(expected)) == expected
    assert PortRange.parse(f" {first} - {first + size} ") == expected


@given(st.text(max_size=12))
def test_text_is_a_range_or_an_error(text: str) -> None:
    try:
        found = PortRange.parse(text, origin="here")
    except PortError:
        with pytest.raises(PortError, match=r"\(here\).*\n.*hint: "):
            PortRange.parse(text, origin="here")
    else:
        assert 1024 <= found.first <= found.last <= 65535


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("80-30000", "ports for everybody are 1024-65535"),
        ("20000-70000", "ports for everybody are 1024-65535"),
        ("20000-20014", "it holds no whole block of 16 ports"),
        ("20001-20030", "it holds no whole block of 16 ports"),
        ("29999-20000", "it holds no whole block of 16 ports"),
    ],
)
def test_unusable_ranges_say_why_and_where_they_come_from(text: str, why: str) -> None:
    with pytest.raises(PortError, match=f"Cannot use the port range {text} .a file.: {why}"):
        PortRange.parse(text, origin="a file")


@pytest.fixture
def sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ranges, "_IPV4", tmp_path)
    (tmp_path / "ip_local_port_range").write_text("32768\t60999\n")
    (tmp_path / "ip_local_reserved_ports").write_text("\n")
    return tmp_path


@pytest.mark.parametrize("text", ["20000-32768", "60999-62000", "40000-41000", "20000-65000"])
@pytest.mark.usefixtures("sysctl")
def test_a_range_that_clients_get_ports_from_is_refused(text: str) -> None:
    with pytest.raises(PortError, match=r"\(a file\): the kernel gives .* to clients") as caught:
        Allocator(PortRange.parse(text, origin="a file"))
    assert f"sysctl net.ipv4.ip_local_reserved_ports={text}" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["20000-32767", "61000-65535"])
@pytest.mark.usefixtures("sysctl")
def test_a_range_beside_the_ephemeral_ports_is_accepted(text: str) -> None:
    Allocator(PortRange.parse(text))


def test_reserved_ports_may_lie_among_the_ephemeral_ones(sysctl: Path) -> None:
    wanted = PortRange.parse("32000-33000")
    (sysctl / "ip_local_reserved_ports").write_text("8080,32768-32999\n")
    with pytest.raises(PortError, match="the kernel gives 32768-33000 to clients"):
        wanted.check_ephemeral()
    (sysctl / "ip_local_reserved_ports").write_text("8080,32768-32999,33000\n")
    wanted.check_ephemeral()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    own, system = tmp_path / "own.toml", tmp_path / "etc.toml"
    monkeypatch.setattr(ranges, "_FILES", (str(own), str(system)))
    monkeypatch.delenv(ranges.VARIABLE, raising=False)
    return own, system


def test_the_nearest_setting_counts(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, system = files
    assert configured_range() == PortRange(20000, 29999)
    system.write_text('port_range = "21000-21999"\n')
    assert configured_range() == PortRange(21000, 21999)
    own.write_text("# nothing is set here\n")
    assert configured_range() == PortRange(21000, 21999)
    own.write_text('port_range = "22000-22999"\n')
    assert configured_range() == PortRange(22000, 22999)
    monkeypatch.setenv("UNDERSTUDY_PORT_RANGE", "23000-23999")
    assert configured_range() == PortRange(23000, 23999)
    assert configured_range("24000-24999") == PortRange(24000, 24999)
    monkeypatch.setenv("UNDERSTUDY_PORT_RANGE", "")
    assert configured_range() == PortRange(22000, 22999)


def test_an_error_names_the_setting(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, system = files
    system.write_text('port_range = "many"\n')
    with pytest.raises(PortError, match=f"'many' .port_range in {system}.") as caught:
        configured_range()
    assert "FIRST-LAST" in str(caught.value.hint)
    own.write_text("port_range = 20000\n")
    with pytest.raises(PortError, match=f"port_range in '{own}': 20000 is not a text"):
        configured_range()
    own.write_text("port_range = \n")
    with pytest.raises(PortError, match=f"Cannot read '{own}': not TOML: Invalid value") as caught:
        configured_range()
    assert caught.value.hint == 'Write: port_range = "20000-29999"'
    own.write_bytes(b'port_range = "\xff"\n')
    with pytest.raises(PortError, match=f"Cannot read '{own}': not TOML: .*codec can't decode"):
        configured_range()
    monkeypatch.setenv("UNDERSTUDY_PORT_RANGE", "1-2")
    with pytest.raises(PortError, match=r"1-2 \(UNDERSTUDY_PORT_RANGE\)"):
        configured_range()


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ('port-range = "21000-21999"', "port-range", "did you mean 'port_range'? allowed: port_ra"),
        ('port_range = "21000-21999"\n[other]\nkey = 1', "other", "allowed: port_range"),
    ],
)
def test_a_key_that_nobody_reads_is_an_error(
    files: tuple[Path, Path], text: str, key: str, hint: str
) -> None:
    own, _ = files
    own.write_text(text)
    with pytest.raises(PortError, match=f"Cannot read '{own}': {key}: unknown key") as caught:
        configured_range()
    assert (caught.value.hint or "").startswith(hint)


def test_the_hosts_file_may_say_what_testers_may_use(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, system = files
    system.write_text('port_range = "21000-21999"\n[testers]\ntasks_max = 9\n')
    own.write_text('port_range = "22000-22999"\n')
    monkeypatch.setenv(ranges.VARIABLE, "23000-23999")
    assert configured_range() == PortRange(23000, 23999)
    assert ranges.host_range() == PortRange(21000, 21999)
    monkeypatch.delenv(ranges.VARIABLE)
    own.write_text("[testers]\n")
    with pytest.raises(PortError, match=f"Cannot read '{own}': testers: unknown key"):
        configured_range()


def test_a_file_that_cannot_be_read_is_an_error_and_one_in_a_strange_home_is_none(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _ = files
    own.mkdir()
    with pytest.raises(PortError, match=f"Cannot read '{own}': Is a directory"):
        configured_range()
    own.rmdir()
    own.write_text("")
    monkeypatch.setattr(ranges, "_FILES", (str(own / "below"), "~no-such-user/understudy.toml"))
    assert configured_range() == PortRange()


# Numbers


@st.composite
def declarations(draw: st.DrawFn) -> list[Port]:
    """Singles and chains, even or not, of both transports, shuffled."""
    ports: list[Port] = []
    for number in range(draw(st.integers(0, 8))):
        length = draw(st.sampled_from([1, 1, 1, 2, 3]))
        even_at = draw(st.sampled_from([None, 0, length - 1]))
        for at in range(length):
            ports.append(
                Port(
                    name=f"p{number}-{at}",
                    transport=draw(st.sampled_from(Transport)),
                    even=at == even_at,
                    next_to=f"p{number}-{at - 1}" if at else None,
                )
            )
    return draw(st.permutations(ports))


@given(
    declarations(),
    st.integers(64, 4000).map(lambda block: block * BLOCK),
    st.integers(1, 3),
    st.sets(st.tuples(st.sampled_from(Transport), st.integers(0, 3 * BLOCK))),
)
def test_numbers_keep_what_was_declared(
    ports: list[Port], first: int, blocks: int, in_use: set[tuple[Transport, int]]
) -> None:
    unusable = {(transport, first + offset) for transport, offset in in_use}
    candidates = range(first, first + blocks * BLOCK)
    numbers = assign(group(ports), candidates, unusable)
    if numbers is None:
        assert unusable or len(ports) > len(candidates) - 8
        return
    assert numbers.keys() == {port.name for port in ports}
    assert len(set(numbers.values())) == len(ports)
    for port in ports:
        number = numbers[port.name]
        assert number in candidates
        assert (port.transport, number) not in unusable
        assert not (port.even and number % 2)
        if port.next_to is not None:
            assert number == numbers[port.next_to] + 1


def test_a_full_block_of_pairs_and_singles_fits() -> None:
    ports = [tcp(f"t{number}") for number in range(14)] + [RTCP, RTP]
    numbers = assign(group(ports), range(20000, 20016), set())
    assert numbers is not None
    assert sorted(numbers.values()) == list(range(20000, 20016))


def test_the_hardest_to_place_is_placed_first() -> None:
    other = [udp("rtp2", even=True), udp("rtcp2", next_to="rtp2")]
    in_use = {(UDP, 20003), (TCP, 20003)}
    numbers = assign(group([tcp("a"), RTP, RTCP, *other]), range(20000, 20006), in_use)
    assert numbers == {"rtp": 20000, "rtcp": 20001, "rtp2": 20004, "rtcp2": 20005, "a": 20002}
    assert assign(group([tcp("a"), udp("b", even=True)]), range(20000, 20002), set()) == {
        "a": 20001,
        "b": 20000,
    }


def test_a_number_in_use_on_one_transport_is_free_on_the_other() -> None:
    in_use = {(UDP, number) for number in range(20000, 20016)}
    assert assign(group([tcp("api")]), range(20000, 20016), in_use) == {"api": 20000}
    assert assign(group([udp("srt")]), range(20000, 20016), in_use) is None


@pytest.mark.parametrize(
    ("ports", "why"),
    [
        ([RTCP], "'rtcp' next to 'rtp': there is no such port"),
        ([RTP, RTCP, udp("x", next_to="rtp")], "'x' next to 'rtp': 'rtcp' is there"),
        ([udp("a", next_to="b"), udp("b", next_to="a")], "each is next to another"),
        ([udp("a", next_to="a")], "each is next to another"),
        ([RTP, udp("rtcp", even=True, next_to="rtp")], "not all of them can be even"),
    ],
)
def test_contradicting_declarations_are_refused(ports: list[Port], why: str) -> None:
    with pytest.raises(DefinitionError, match=why):
        group(ports)


def test_exact_numbers_bring_their_neighbours() -> None:
    groups = group(MEDIAMTX)
    assert fix(groups, {}) == {}
    assert fix(groups, {"rtp": 9000, "api": 80}) == {"rtp": 9000, "rtcp": 9001, "api": 80}
    assert fix(groups, {"rtcp": 9001}) == {"rtp": 9000, "rtcp": 9001}
    assert fix(groups, {"api": 9000, "srt": 9000}) == {"api": 9000, "srt": 9000}


@pytest.mark.parametrize(
    ("exact", "why"),
    [
        ({"apo": 9000}, "Cannot set port 'apo': there is no such port\n.*did you mean 'api'?"),
        ({"zzz": 9000}, "there is no such port\n.*its ports: api, rtsp, rtp"),
        ({"api": 0}, "'api' to 0: ports are 1-65535"),
        ({"api": 65536}, "'api' to 65536: ports are 1-65535"),
        ({"api": 9000, "rtsp": 9000}, "'rtsp' to 9000: 'api' has that number"),
        ({"rtp": 9000, "srt": 9001}, "'srt' to 9001: 'rtcp' has that number"),
        ({"rtp": 65535}, "'rtp' to 65535: it has to be even"),
        ({"rtcp": 1}, "'rtp' to 0: ports are 1-65535"),
        ({"rtp": 9001}, "'rtp' to 9001: it has to be even"),
        ({"rtcp": 9000}, "'rtp' to 8999: it has to be even"),
        ({"rtp": 9000, "rtcp": 9003}, "'rtp', 'rtcp': each is the one before plus one"),
    ],
)
def test_exact_numbers_that_cannot_be_are_refused(exact: dict[str, int], why: str) -> None:
    with pytest.raises((UsageError, PortError), match=why):
        fix(group(MEDIAMTX), exact)


# The check

OURS, THEIRS = 100, 200


def bound(
    transport: Transport,
    port: int,
    *,
    cgroup: int = OURS,
    inode: int = 1,
    address: str = "127.0.0.1",
    connected: bool = False,
) -> Socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return Socket(
        protocol=socket.IPPROTO_TCP if transport is TCP else socket.IPPROTO_UDP,
        family=family,
        state=1 if connected else 10 if transport is TCP else 7,
        network_port=socket.htons(port),
        network_address=socket.inet_pton(family, address).ljust(16, b"\0"),
        uid=0,
        inode=inode,
        cgroup=cgroup,
    )


def test_all_ports_held() -> None:
    sockets = Sockets([bound(TCP, 20000), bound(UDP, 20001, address="0.0.0.0")])
    found = check([tcp("a"), udp("b")], {"a": 20000, "b": 20001}, sockets, ids={OURS})
    assert found.held
    assert found.holds == {"a": Hold.HELD, "b": Hold.HELD}
    assert (found.missing, found.conflicts, found.undeclared) == ((), (), ())


def test_both_families_and_several_workers_are_still_one_holder() -> None:
    sockets = Sockets(
        [bound(TCP, 20000), bound(TCP, 20000, address="::1"), bound(TCP, 20000, inode=3)]
    )
    assert check([tcp("a")], {"a": 20000}, sockets, ids={OURS, 5}).held


def test_a_port_nobody_has_bound_is_missing_unless_it_is_optional() -> None:
    ports = [tcp("a"), tcp("b", optional=True)]
    sockets = Sockets([bound(UDP, 20000)])
    found = check(ports, {"a": 20000, "b": 20001}, sockets, ids={OURS})
    assert found.holds == {"a": Hold.MISSING, "b": Hold.MISSING}
    assert found.missing == ((ports[0], 20000),)
    assert not found.held


def test_a_port_of_somebody_else_is_a_conflict_that_names_the_socket() -> None:
    thief = bound(TCP, 20000, cgroup=THEIRS, address="::")
    found = check([tcp("api")], {"api": 20000}, Sockets([thief]), ids={OURS})
    assert found.holds == {"api": Hold.TAKEN}
    assert not found.held
    [conflict] = found.conflicts
    assert (conflict.number, conflict.others, conflict.shared) == (20000, (thief,), False)
    assert str(conflict) == (
        "port 20000 ('api') is taken by another process's socket (tcp [::]:20000)"
    )


def test_a_shared_port_is_a_conflict_even_if_it_is_optional() -> None:
    sockets = Sockets([bound(UDP, 20000), bound(UDP, 20000, cgroup=THEIRS, address="0.0.0.0")])
    port = Port(name="srt", transport=UDP, shares=True, optional=True)
    found = check([port], {"srt": 20000}, sockets, ids={OURS})
    assert found.holds == {"srt": Hold.SHARED}
    assert not found.held
    assert "is shared with another process's socket (udp 0.0.0.0:20000)" in str(found.conflicts[0])


def test_a_passed_socket_is_known_by_its_inode() -> None:
    sockets = Sockets([bound(TCP, 20000, cgroup=THEIRS, inode=7)])
    assert not check([tcp("a")], {"a": 20000}, sockets, ids={OURS}).held
    assert check([tcp("a")], {"a": 20000}, sockets, ids={OURS}, inodes={7}).held


def test_undeclared_listeners_are_reported_and_clients_are_not() -> None:
    debug = bound(TCP, 9999)
    multicast = bound(UDP, 8002, address="0.0.0.0")
    client = bound(UDP, 40000)
    sockets = Sockets(
        [
            bound(TCP, 20000),
            debug,
            multicast,
            client,
            bound(UDP, 5000, connected=True),
            bound(TCP, 7777, cgroup=THEIRS),
        ]
    )
    found = check([tcp("a")], {"a": 20000}, sockets, ids={OURS})
    assert found.held
    assert set(found.undeclared) == {debug, multicast}
    found = check([tcp("a")], {"a": 20000}, sockets, ids={OURS}, ephemeral=range(50000, 60000))
    assert client in found.undeclared


def test_ports_without_a_number_are_passed_over() -> None:
    found = check([tcp("a"), tcp("b")], {"b": 20000}, Sockets([bound(TCP, 20000)]), ids={OURS})
    assert found.holds == {"b": Hold.HELD}


# Names


@pytest.mark.parametrize(
    ("path", "unit", "around"),
    [
        ("/", None, None),
        ("", None, None),
        ("/system.slice", None, None),
        ("/system.slice/nginx.service", "nginx.service", None),
        ("/system.slice/nginx.service/worker", "nginx.service", None),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", None),
        (r"/system.slice/a\x2db.service", r"a\x2db.service", None),
        ("/system.slice/_cpu.service", "cpu.service", None),
        ("/system.slice/sshd.socket", "sshd.socket", None),
        ("/init.scope", "init.scope", None),
        ("/user.slice/user-0.slice/session-1.scope", "session-1.scope", None),
        (
            "/user.slice/user-1.slice/user@1.service/app.slice/x.service",
            "x.service",
            "user@1.service",
        ),
        ("/user.slice/user-1.slice/user@1.service/init.scope", "init.scope", "user@1.service"),
        (
            "/machine.slice/machine-web.scope/payload/system.slice/nginx.service",
            "nginx.service",
            "machine-web.scope",
        ),
        ("/system.slice/docker-0123abcd.scope", "docker-0123abcd.scope", None),
    ],
)
def test_the_innermost_unit_is_found(path: str, unit: str | None, around: str | None) -> None:
    assert unit_of(path) == unit
    found = cgroups.units_of(path)
    assert (found[1] if len(found) > 1 else None) == around


def holder(
    unit: str | None = None,
    within: str | None = None,
    *,
    pid: int | None = 812,
    command: str = "",
    state: State = State.LISTENING,
) -> Holder:
    return Holder(
        state=state,
        transport=TCP,
        port=8003,
        unit=unit,
        within=within,
        uid=990,
        user="camera",
        pid=pid,
        command=command,
    )


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (holder("a.service"), "a.service (user camera, PID 812)"),
        (holder("a.service", pid=None), "a.service (user camera)"),
        (
            holder("a.service", "user@9.service"),
            "a.service in user@9.service (user camera, PID 812)",
        ),
        (holder("a.socket"), "a.socket (user camera, PID 812)"),
        (
            holder("init.scope", "user@9.service", pid=None),
            "a .socket unit in user@9.service (user camera)",
        ),
        (holder("init.scope"), "a .socket unit (user camera, PID 812)"),
        (holder(command="/usr/bin/python3 -m http.server"), "python3 (user camera, PID 812)"),
        (holder(pid=None), "a process (user camera)"),
        (holder(command="  "), "a process (user camera, PID 812)"),
        (holder("a.service", state=State.CLAIMED), "claimed by a.service (user camera, PID 812)"),
    ],
)
def test_holders_are_named_for_people(found: Holder, text: str) -> None:
    assert str(found) == text
