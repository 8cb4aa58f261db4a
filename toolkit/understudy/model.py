"""The words of the design as frozen values. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

OURS = "understudy-"
"""The prefix of every unit that the toolkit may start, change or stop."""

HOST = "127.0.0.1"
"""The address instances are bound to where their service lets itself be told."""

IDLE_S = 300
"""Seconds without a connection after which production behind a proxy is stopped."""


class ManagerKind(StrEnum):
    """Which systemd manager: the system's (PID 1), or the calling user's own."""

    SYSTEM = "system"
    USER = "user"


class Engine(StrEnum):
    """How an instance is handed to the manager: as files, or as a unit like systemd-run's."""

    FILES = "files"
    SYSTEMD_RUN = "systemd-run"


class Transport(StrEnum):
    """A port's transport; ports are numbered per transport."""

    TCP = "tcp"
    UDP = "udp"


class Activation(StrEnum):
    """How a service comes by its listening sockets."""

    NONE = "none"
    SOCKETS = "sockets"
    PROXY = "proxy"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateNetwork:
    """The private network that an instance is in.

    Attributes:
        name: What it is called where several instances share it (``lab``); "" otherwise.
        net_path: Where its network namespace is: ``/proc/812/ns/net``; "" where the instance's
            own unit makes one.
        user_path: Where the user namespace around that one is; "" where there is none.
        holder: The unit of the same run that keeps it; "" where that is another's affair.
        here: Whether it is the one that the run's own process is in. To that it is what the host's
            is to others: ports are assigned, and nothing is published.
    """

    name: str = ""
    net_path: str = ""
    user_path: str = ""
    holder: str = ""
    here: bool = False

    def __str__(self) -> str:
        return f"private:{self.name}" if self.name else "private"


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One listener of a service, as ``[ports]`` of its service.toml declares it.

    Attributes:
        name: The listener's name: ``api``.
        transport: TCP or UDP.
        number: Production's number; None for a port that only instances have.
        env: Environment variables that tell the service its port.
        value: What these variables are set to; ``{host}`` and ``{port}`` are filled in.
        url: A URL of this listener, with ``{host}`` and ``{port}``; None if it has none.
        file: The instance file that carries the number instead of a variable; None if none.
        even: The number must be even (RTP, RFC 3550 section 11).
        next_to: The port whose number plus one this is (RTCP); None if free.
        shares: The service sets SO_REUSEADDR or SO_REUSEPORT: it starts beside another
            holder of the port without an error, so only looking tells.
        optional: An instance may come up without it (a newer version's listener).
        switch: The assignment that opens it in an instance (``MTX_METRICS=yes``), for one that is
            closed unless asked for; ``{host}`` and ``{port}`` are filled in. Ports with the same
            switch are opened together. None for one that is open anyhow.
        behind: The number that production itself listens on while a proxy has the public one
            (`Activation.PROXY`); None where it has a network of its own for that.
    """

    name: str
    transport: Transport
    number: int | None = None
    env: tuple[str, ...] = ()
    value: str = "{host}:{port}"
    url: str | None = None
    file: str | None = None
    even: bool = False
    next_to: str | None = None
    shares: bool = False
    optional: bool = False
    switch: str | None = None
    behind: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedPort:
    """How a service is told a port of another service that it uses.

    Attributes:
        env: The environment variables that carry it.
        value: What they are set to; ``{host}`` and ``{port}`` are filled in.
    """

    env: tuple[str, ...]
    value: str = "{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedPrefix:
    """How a service is told what its names on another's server are to begin with.

    Attributes:
        env: The environment variables that carry it.
        value: What they are set to; ``{prefix}`` is filled in: ``r7k2mq/camera-service-1``.
    """

    env: tuple[str, ...]
    value: str = "{prefix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A value that is nobody else's business, as ``[secrets]`` declares it.

    Attributes:
        environment: What tells the service, where it is set: variables by name, in which ``{name}``
            and ``{name|sha256}`` stand for values and secrets of the definition.
    """

    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFile:
    """A file rendered into an instance's directory.

    Attributes:
        name: Its name there.
        template: The jinja2 template's name in the definition's folder.
        over: A fixed absolute path over which it is bound for this instance only;
            None where the service can be told its place.
    """

    name: str
    template: str
    over: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCheck:
    """Ready means: this GET is answered with this status.

    Attributes:
        port: The port's name.
        path: The request path.
        status: The HTTP status that says ready.
        user: The user that asks, where there is a password (RFC 7617).
        password: The password; "" for none. In both ``{name}`` is a value or secret.
    """

    port: str
    path: str = "/"
    status: int = 200
    user: str = ""
    password: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployFile:
    """A file that production needs beside its units, as ``[deploy.files]`` declares it.

    Attributes:
        path: Where it is on the host; ``{name}`` stands for a value of the definition.
        template: The jinja2 template's name in the definition's folder.
        mode: Its permission bits.
        owner: The user that it belongs to.
        group: The group that it belongs to.
        needs: The value without which there is no such file; None: there always is.
    """

    path: str
    template: str
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"
    needs: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployDirectory:
    """A directory that production needs, as ``[deploy.directories]`` declares it.

    Attributes:
        path: Where it is on the host; ``{name}`` stands for a value of the definition.
        mode: Its permission bits.
        owner: The user that it belongs to.
        group: The group that it belongs to.
    """

    path: str
    mode: int = 0o755
    owner: str = "root"
    group: str = "root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What production needs on a host beside its units: ``[deploy]``.

    Attributes:
        user: The system user that it runs as, with a group of the same name; None for none.
        files: Its configuration.
        directories: Its directories, made at each boot where they are missing.
    """

    user: str | None = None
    files: tuple[DeployFile, ...] = ()
    directories: tuple[DeployDirectory, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFile:
    """A file of the host as it is to be.

    Attributes:
        path: Its absolute path.
        text: Its content.
        mode: Its permission bits.
        owner: The user that it belongs to.
        group: The group that it belongs to.
        ours: Whether it lies where deployed services have their files; else it is left to
            whoever named that place.
    """

    path: str
    text: str
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"
    ours: bool = True

    @property
    def secret(self) -> bool:
        """Whether only its owner may read it: then its content is shown nowhere."""
        return not self.mode & 0o077


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service definition: ``units/<name>/``.

    Attributes:
        name: The folder's name: ``camera-service``.
        description: A noun phrase.
        production: The unit name of the host's own copy; None for an ad hoc service.
        singleton: Whether a host may have only one production copy (AD-001).
        folder: Where templates and files are read from; None for an ad hoc service.
        origin: Where it was found, for people: ``shipped``, ``/etc/understudy/units``.
        values: Defaults of the templates' variables, by name.
        secrets: Values that no template shows, by name; empty until they are set.
        ports: The listeners, by name, in the order of declaration.
        uses: By service name, by that service's port name: how this service is told.
        uses_secrets: By service name, by the name of a value or secret of that service: the
            variables that tell this service, where a secret of that service is set.
        prefixes: By service name: how this service is told a path prefix, if it takes one there.
        production_activation: How production comes by its sockets.
        instance_activation: How an instance does.
        idle_s: Seconds without a connection after which production behind a proxy is stopped.
        files: Files rendered for each instance.
        environment: Environment of each instance.
        private: Whether its instances are in a private network each, unless told otherwise.
        ready: The check that says ready, beside held ports; None if that is enough.
        command: The command line of an ad hoc service; empty for one with a unit template.
        deploy: What production needs on a host beside its units.
    """

    name: str
    description: str
    production: str | None = None
    singleton: bool = False
    folder: Path | None = None
    origin: str = "shipped"
    values: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    ports: Mapping[str, Port] = field(default_factory=dict)
    uses: Mapping[str, Mapping[str, UsedPort]] = field(default_factory=dict)
    uses_secrets: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    prefixes: Mapping[str, UsedPrefix] = field(default_factory=dict)
    production_activation: Activation = Activation.NONE
    instance_activation: Activation = Activation.NONE
    idle_s: int = IDLE_S
    files: tuple[InstanceFile, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    private: bool = False
    ready: HttpCheck | None = None
    command: tuple[str, ...] = ()
    deploy: Deployment = field(default_factory=Deployment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What makes one instance different from production: the input of `derive`.

    Attributes:
        run: The run's id (``r7k2mq``).
        number: The instance's number in its run, from 1.
        kind: The manager it will run on.
        runtime_dir: That manager's ``%t``: ``/run`` or ``/run/user/1000``.
        ports: The number of each port that the service is told, by name.
        published: Those under which its ports are reached from outside a private network, by
            name; not every port need have one.
        network: Its private network; None where it is in the host's.
        values: Values that override the definition's (``--set``).
        secrets: Its secrets, as far as they were set.
        used_secrets: By service name, by name: values and secrets of the services it talks to.
        environment: Further environment (``--env``), which is nobody's business but the instance's;
            wins over everything else.
        used: By service name, by port name: the numbers of the services it talks to.
        prefixes: By service name: what its names on production's server begin with.
        base: The unit text to derive from, as installed on the host; None for ours.
        lazy: Whether a socket-activated instance is left to its first connection.
        denied: Production's port numbers, which it may not bind where the kernel can say no.
        limits: What it may use at most, as directives: ``MemoryMax`` and ``512M``.
        background: Whether it gets only what nobody else wants of processors and disks.
        start_timeout_s: Seconds that systemd gives it to start.
        stop_timeout_s: Seconds from SIGTERM to SIGKILL.
    """

    run: str
    number: int
    kind: ManagerKind
    runtime_dir: str
    ports: Mapping[str, int] = field(default_factory=dict)
    published: Mapping[str, int] = field(default_factory=dict)
    network: PrivateNetwork | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    used_secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    used: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    base: str | None = None
    lazy: bool = False
    denied: frozenset[tuple[Transport, int]] = frozenset()
    limits: Mapping[str, str] = field(default_factory=dict)
    background: bool = False
    start_timeout_s: float = 60.0
    stop_timeout_s: float = 5.0

    @property
    def outside(self) -> Mapping[str, int]:
        """The number of each port for whoever is where the run's own process is, by name."""
        return self.ports if self.network is None or self.network.here else self.published


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """An instance as text: what `derive` gives and a manager starts.

    Attributes:
        unit: The service's unit name: ``understudy-mediamtx@r7k2mq-1.service``.
        socket: Its socket's unit name, where the manager binds the ports; else None.
        units: Unit files and drop-ins, by their path below the manager's unit directory.
        files: The instance's own files, by absolute path.
        secrets: Variables that are in none of these, by name: in a file for its manager alone.
        confided: All of its values by name, where a secret is among them; for who talks to it.
        directory: The instance's own directory (``%t/understudy/r7k2mq/mediamtx-1``).
        gate: The FIFO at which its command waits until its network was looked at; None where
            there is nothing to look at.
        proxies: The services that pass its published ports on, by the port's name. Each has a
            socket of the same name.
        slice: The slice within the run's that it is in; "" for the run's own.
    """

    unit: str
    socket: str | None
    units: Mapping[str, str]
    files: Mapping[str, str]
    directory: str
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    confided: Mapping[str, str] = field(default_factory=dict, repr=False)
    gate: str | None = None
    proxies: Mapping[str, str] = field(default_factory=dict)
    slice: str = ""

    @property
    def place(self) -> str:
        """Its control group, as a path below that of the run's slice."""
        return f"{self.slice}/{self.unit}" if self.slice else self.unit
