"""A command as a member of a run: in a scope of its own, in the caller's terminal."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn, Self

from understudy import names
from understudy.errors import UsageError
from understudy.foreground import Forwarding, end_of
from understudy.guard import Guard, take_id
from understudy.manager import Manager, Transient, bus_variables
from understudy.model import HOST, ManagerKind, Service

if TYPE_CHECKING:
    from understudy.netns import Namespace
    from understudy.network import LettingIn

OUR_FAILURE = 125
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
        background: Whether it gets only what nobody else wants of processors and disks.
    """

    net_path: str = ""
    user_path: str = ""
    network: str = ""
    caller: Caller | None = None
    background: bool = False

    def variables(self) -> dict[str, str]:
        """What the command finds in its environment of all that."""
        network = {"UNDERSTUDY_NETWORK": self.network} if self.network else {}
        return {**network, **(self.caller.variables() if self.caller else {})}

    def as_caller(self, command: Sequence[str]) -> list[str]:
        """The command line that becomes the command, as the other user where there is one."""
        return [*(_background() if self.background else []), *self._as_user(command)]

    def _as_user(self, command: Sequence[str]) -> list[str]:
        if self.caller is None:
            return list(command)
        user = [f"--reuid={self.caller.uid}", f"--regid={self.caller.gid}", "--init-groups"]
        return [_tool("setpriv"), *user, "--inh-caps=-all", "--", *command]

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command line that gets there and becomes the command."""
        words = self.as_caller(command)
        if self.net_path:
            user = [f"--user={self.user_path}", "--preserve-credentials"] if self.user_path else []
            words = [_tool("nsenter"), f"--net={self.net_path}", *user, "--", *words]
        return words


def _background() -> list[str]:
    """What units/background.conf says, for a process of ours: a scope cannot set it."""
    idle = [_tool("chrt"), "--idle", "0", _tool("ionice"), "--class", "idle"]
    return [_tool("nice"), "-n", "19", *idle]


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
        *(_tool("systemd-run"), *user, "--scope", "--quiet", "--collect"),
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
    place: Place,
) -> int:
    """Run a command in a private network and a run of its own, and end both with it.

    Args:
        manager: Where the run is made.
        command: Its argv; `program_fault` has nothing against it.
        variables: Added to its environment.
        targets: Where ports inside lead (``127.0.0.1:9997``), by the port's number.
        place: As whom, and whether in the background; its network is made here.

    Returns:
        Its exit code; 128+n for an end by signal n.

    Raises:
        NetworkError: There is no private network to be had.
        ManagerError: The manager refused.
    """
    from understudy.network import LettingIn

    with own_network(targets) as namespace:
        place = replace(
            place,
            net_path=namespace.net_path,
            user_path=namespace.user_path,
            network="private",
        )
        return run_alone(
            manager,
            command,
            variables,
            place=place,
            let_in=lambda run: LettingIn(manager, run, namespace, targets),
        )


def run_alone(
    manager: Manager,
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    place: Place,
    let_in: Callable[[str], LettingIn] | None = None,
) -> int:
    """Run a command in a run of its own that has nothing else, and end it with the command.

    Everything starts at once: the command waits for the run's guard, and what it connects to
    inside for the process that leads out.

    Args:
        manager: Where the run is made.
        command: Its argv; `program_fault` has nothing against it.
        variables: Added to its environment.
        place: Where it runs, and as whom.
        let_in: Gives what lets ports into the command's network, for a run's id.

    Returns:
        Its exit code; 128+n for an end by signal n.

    Raises:
        NetworkError: A port could not be let in.
        ManagerError: The manager refused.
    """
    run, name = take_id()
    with name, contextlib.ExitStack() as undo:
        child = undo.enter_context(_Child(command, _whole(manager, run, variables, place), place))
        letting = undo.enter_context(let_in(run)) if let_in is not None else None
        forwarding = undo.enter_context(Forwarding())
        with forwarding.held():
            guard = Guard.start(
                manager,
                run,
                owner_pid=os.getpid(),
                lifetime_s=None,
                held={"run": name.fileno()},
                timeout_s=START_TIMEOUT_S,
                bare=True,
                beside=[_scope(run, child.pid)],
            )
        try:
            forwarding.to(child.pid)
            child.go()
            code = end_of(child.pid)
            child.ended = True
        finally:
            if letting is not None:
                letting.end()
            guard.close()
            with forwarding.held():
                manager.stop([guard.unit], timeout_s=STOP_TIMEOUT_S)
    if letting is not None and letting.errors:
        raise letting.errors[0]
    return SIGNALLED - code if code < 0 else code


class _Child:
    """A child that waits to be told to become a command.

    So it can be put into a scope first; a systemd-run process would take as long as all the rest.
    It ends if nobody will tell it any more.

    Args:
        command: The command's argv.
        variables: The command's whole environment.
        place: Where it runs, and as whom.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], place: Place) -> None:
        self.ended = False
        argv = place.as_caller(command)
        receiver, self._sender = os.pipe()
        if sys.stdout is not None:  # it was closed, as by >&-
            sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._sender)
                _become(argv, variables, place, told=receiver)
            finally:
                os._exit(NOT_EXECUTABLE)
        os.close(receiver)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._sender)
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def go(self) -> None:
        """Tell it."""
        with contextlib.suppress(BrokenPipeError):  # it has been killed
            os.write(self._sender, b"go")


def _become(argv: list[str], variables: Mapping[str, str], place: Place, *, told: int) -> NoReturn:
    # What Python has set for itself, and what an exec would leave as it is.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    code = NOT_EXECUTABLE
    try:
        if not os.read(told, 2):
            os._exit(OUR_FAILURE)
        if place.net_path:
            from understudy import netns

            netns.enter(place.net_path, place.user_path)
        try:
            os.execvpe(argv[0], argv, variables)
        except OSError as exc:
            if exc.errno != errno.ENOEXEC:
                raise
            # A script without a first line that names its shell: as execvp(3) has it.
            os.execve("/bin/sh", ["sh", shutil.which(argv[0]) or argv[0], *argv[1:]], variables)
    except OSError as exc:
        code = NOT_FOUND if exc.errno == errno.ENOENT else NOT_EXECUTABLE
        said = f"understudy: cannot run '{argv[0]}': {exc.strerror}\n"
        with contextlib.suppress(OSError):
            os.write(2, said.encode(errors="replace"))
    os._exit(code)


def _scope(run: str, pid: int) -> Transient:
    guard = names.guard_unit(run)
    return Transient(
        unit=names.command_unit(run),
        properties=[
            ("Description", f"Command of understudy run {run}"),
            ("PIDs", str(pid)),
            ("Slice", names.slice_unit(run)),
            ("BindsTo", guard),
            ("After", guard),
            ("CollectMode", "inactive-or-failed"),
            ("TimeoutStopSec", "5"),
        ],
    )


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
    whole = _whole(manager, run, variables, place)
    with Forwarding() as forwarding:
        argv = scope_argv(manager, run, place.argv(command))
        # What the caller handed down is the command's; what is ours is closed on exec.
        child = subprocess.Popen(argv, env=whole, close_fds=False)
        forwarding.to(child.pid)
        code = child.returncode = end_of(child.pid)
    return SIGNALLED - code if code < 0 else code


def _whole(
    manager: Manager, run: str, variables: Mapping[str, str], place: Place
) -> dict[str, str]:
    return {
        **os.environ,
        **bus_variables(manager),
        **environment(run, []),
        **place.variables(),
        **variables,
    }


def _tool(name: str) -> str:
    """Where a program of ours is: the command's own PATH may not lead to it."""
    return shutil.which(name) or name


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")
