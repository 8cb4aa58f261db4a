"""A command as a member of a run: in a scope of its own, in the caller's terminal."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from understudy import names
from understudy.errors import UsageError
from understudy.foreground import Forwarding, end_of
from understudy.guard import Guard, take_id
from understudy.manager import Manager, bus_variables
from understudy.model import HOST, ManagerKind, Service

if TYPE_CHECKING:
    from understudy.netns import Namespace

NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNALLED = 128

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The user who called root's help (sudo), and as whom the command runs.

    Attributes:
        uid: The user's number.
        gid: The number of the user's own group.
        name: The user's name.
        home: The user's home directory.
    """

    uid: int
    gid: int
    name: str
    home: str

    def variables(self) -> dict[str, str]:
        """What a command of this user finds in its environment in the place of root's."""
        found = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}
        runtime = f"/run/user/{self.uid}"
        if os.path.isdir(runtime):  # noqa: PTH112 - no error, ever
            found["XDG_RUNTIME_DIR"] = runtime
            found["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={runtime}/bus"
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a command runs, and as whom.

    Attributes:
        net_path: Its network namespace as a path; "" for the caller's own.
        user_path: The user namespace to enter first; "" for none.
        network: What the network is called for people: ``private:lab``; "" for the host's.
        caller: Another user than this process's; None for the same.
    """

    net_path: str = ""
    user_path: str = ""
    network: str = ""
    caller: Caller | None = None

    def variables(self) -> dict[str, str]:
        """What the command finds in its environment of all that."""
        network = {"UNDERSTUDY_NETWORK": self.network} if self.network else {}
        return {**network, **(self.caller.variables() if self.caller else {})}

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command line that gets there and becomes the command."""
        words = list(command)
        if self.caller is not None:
            caller = self.caller
            words = [
                *("setpriv", f"--reuid={caller.uid}", f"--regid={caller.gid}", "--init-groups"),
                *("--inh-caps=-all", "--", *words),
            ]
        if self.net_path:
            user = [f"--user={self.user_path}", "--preserve-credentials"] if self.user_path else []
            words = ["nsenter", f"--net={self.net_path}", *user, "--", *words]
        return words


def calling_user() -> Caller | None:
    """Who called sudo(8), if this process is root's by way of it; else None.

    Raises:
        UsageError: sudo names a user whom nobody knows.
    """
    text = os.environ.get("SUDO_UID", "")
    if os.geteuid() != 0 or not text.isdecimal() or text == "0":
        return None
    import pwd

    try:
        entry = pwd.getpwuid(int(text))
    except (KeyError, OverflowError) as exc:
        raise UsageError(
            f"Cannot run the command as user {text}: there is no such user",
            hint="SUDO_UID is sudo's; without it the command runs as root: env -u SUDO_UID",
        ) from exc
    return Caller(uid=entry.pw_uid, gid=entry.pw_gid, name=entry.pw_name, home=entry.pw_dir)


def environment(run: str, instances: Iterable[tuple[Service, Mapping[str, int]]]) -> dict[str, str]:
    """What a command is told of the instances it runs beside.

    ``UNDERSTUDY_<SERVICE>_<PORT>_PORT`` and ``…_URL``, upper case, dashes as underscores, for
    the first instance of each service; ``UNDERSTUDY_<SERVICE>_2_<PORT>_PORT`` for its second.

    Args:
        run: The run's id.
        instances: The definition and the port numbers, by name, of each.
    """
    variables = {"UNDERSTUDY_RUN": run, "UNDERSTUDY_HOST": HOST}
    if not (instances := list(instances)):
        return variables
    from understudy.derive import urls_of  # it brings jinja2 along

    counts: dict[str, int] = {}
    for service, ports in instances:
        count = counts[service.name] = counts.get(service.name, 0) + 1
        stem = _variable(service.name) + (f"_{count}" if count > 1 else "")
        for port, number in ports.items():
            variables[f"UNDERSTUDY_{stem}_{_variable(port)}_PORT"] = str(number)
        for port, url in urls_of(service, ports).items():
            variables[f"UNDERSTUDY_{stem}_{_variable(port)}_URL"] = url
    return variables


def scope_argv(manager: Manager, run: str, command: Sequence[str]) -> list[str]:
    """The command line that runs a command in a scope of the run.

    Args:
        manager: The run's manager.
        run: The run's id.
        command: The command's argv.
    """
    guard = names.guard_unit(run)
    user = ["--user"] if manager.kind is ManagerKind.USER else []
    return [
        *("systemd-run", *user, "--scope", "--quiet", "--collect"),
        f"--unit={names.command_unit(run)}",
        f"--slice={names.slice_unit(run)}",
        *("-p", f"BindsTo={guard}", "-p", f"After={guard}", "-p", "TimeoutStopSec=5"),
        *("--", *command),
    ]


def program_fault(program: str) -> int:
    """The exit code of a shell for a program that cannot be run; 0 for one that can.

    Args:
        program: Its path, or a name to look for in PATH.

    Returns:
        0; 127 if there is none; 126 if it may not be executed.
    """
    if shutil.which(program) is not None:
        return 0
    # which(1) passes folders by; the kernel says of them that they may not be executed.
    folder = os.sep in program and os.path.isdir(program)  # noqa: PTH112 - no error, ever
    there = folder or shutil.which(program, mode=os.F_OK) is not None
    return NOT_EXECUTABLE if there else NOT_FOUND


def own_network(listen: Iterable[int] = ()) -> Namespace:
    """Make a private network for a command of this process's; the caller closes it.

    Root's has no user namespace around it: what is setuid works in it.

    Args:
        listen: Ports that are to be let in.

    Raises:
        NetworkError: It is denied.
    """
    from understudy.netns import Namespace

    return Namespace.create(user=os.geteuid() != 0, listen=listen)


def run_in_private_network(
    manager: Manager,
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    targets: Mapping[int, str],
    caller: Caller | None,
) -> int:
    """Run a command in a private network and a run of its own, and end both with it.

    Args:
        manager: Where the run is made.
        command: Its argv; `program_fault` has nothing against it.
        variables: Added to its environment.
        targets: Where ports inside lead (``127.0.0.1:9997``), by the port's number.
        caller: As whom, if not as this process's user.

    Returns:
        Its exit code; 128+n for an end by signal n.

    Raises:
        NetworkError: There is no private network to be had.
        ManagerError: The manager refused.
    """
    with own_network(targets) as namespace:
        place = Place(
            net_path=namespace.net_path,
            user_path=namespace.user_path,
            network="private",
            caller=caller,
        )
        return run_alone(
            manager, command, variables, place=place, targets=targets, namespace=namespace
        )


def run_alone(
    manager: Manager,
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    place: Place,
    targets: Mapping[int, str] | None = None,
    namespace: Namespace | None = None,
) -> int:
    """Run a command in a run of its own that has nothing else, and end it with the command.

    Everything starts at once: the command waits for the run's guard, and what it connects to
    inside for the process that leads out.

    Args:
        manager: Where the run is made.
        command: Its argv; `program_fault` has nothing against it.
        variables: Added to its environment.
        place: Where it runs, and as whom.
        targets: Where ports inside lead.
        namespace: The private network, where there are targets.

    Returns:
        Its exit code; 128+n for an end by signal n.

    Raises:
        NetworkError: A port is taken inside.
        ManagerError: The manager refused.
    """
    run, name = take_id()
    through = []
    with contextlib.ExitStack() as undo:
        undo.enter_context(name)
        if targets and namespace is not None:
            from understudy import network

            listeners = namespace.listen(targets)
            for listener in listeners.values():
                undo.callback(listener.close)
            through = network.through_units(manager, run, listeners, targets)
        with Forwarding() as forwarding:
            child: list[subprocess.Popen[bytes]] = []

            def start() -> None:
                child.append(_start(manager, run, command, variables, place))
                forwarding.to(child[0].pid)

            try:
                guard = Guard.start(
                    manager,
                    run,
                    owner_pid=os.getpid(),
                    lifetime_s=None,
                    held={"run": name.fileno()},
                    timeout_s=START_TIMEOUT_S,
                    bare=True,
                    beside=through,
                    queued=start,
                )
            except BaseException:
                for each in child:
                    each.terminate()
                    each.wait()
                raise
            try:
                undo.close()  # The units have them now.
                if through and namespace is not None:
                    network.check_outside(manager, [unit.unit for unit in through], namespace)
                code = end_of(child[0])
            finally:
                guard.close()
                manager.stop([guard.unit], timeout_s=STOP_TIMEOUT_S)
                child[0].wait()
    return SIGNALLED - code if code < 0 else code


def run_command(
    manager: Manager,
    run: str,
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    place: Place = Place(),
) -> int:
    """Run a command as a member of a run, and give its exit code as a shell would.

    It has the caller's directory, environment, standard streams and terminal. A signal from the
    terminal reaches it directly; one that was sent to this process alone is passed on.

    Args:
        manager: The run's manager.
        run: The run's id.
        command: Its argv; `program_fault` has nothing against it.
        variables: Added to its environment.
        place: Where it runs, and as whom.

    Returns:
        Its exit code; 128+n for an end by signal n.
    """
    with Forwarding() as forwarding:
        child = _start(manager, run, command, variables, place)
        forwarding.to(child.pid)
        code = end_of(child)
    return SIGNALLED - code if code < 0 else code


def _start(
    manager: Manager,
    run: str,
    command: Sequence[str],
    variables: Mapping[str, str],
    place: Place,
) -> subprocess.Popen[bytes]:
    whole = {
        **os.environ,
        **bus_variables(manager),
        **environment(run, []),
        **place.variables(),
        **variables,
    }
    return subprocess.Popen(scope_argv(manager, run, place.argv(command)), env=whole)


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")
