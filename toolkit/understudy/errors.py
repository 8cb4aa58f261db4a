"""Every exception of the toolkit: what happened, to which thing, and what to do."""

from __future__ import annotations

from collections.abc import Iterable


class UnderstudyError(Exception):
    """Base of all errors of the toolkit.

    Args:
        message: ``Cannot <verb> '<thing>': <what systemd or the kernel said>``.
        hint: The command or the setting that helps; who is in the way, by name.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(UnderstudyError):
    """What was asked for makes no sense: an unknown service, run, port or value."""


class DefinitionError(UnderstudyError):
    """A service definition is wrong; the message names file, key and what is allowed."""


class RenderError(UnderstudyError):
    """A template cannot be rendered: an undefined variable, a newline in a value."""


class PortError(UnderstudyError):
    """A port cannot be had.

    Attributes:
        port: The port's number, or None where it is not about one of them.
        owner: Who holds it (``camera-service.service (PID 812)``), or None if unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        port: int | None = None,
        owner: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.port = port
        self.owner = owner


class ManagerError(UnderstudyError):
    """A systemd manager refused or could not be reached.

    Attributes:
        name: The D-Bus error name (``org.freedesktop.systemd1.NoSuchUnit``), or "".
    """

    def __init__(self, message: str, *, name: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.name = name


class NoManagerError(ManagerError):
    """There is no manager of that kind in reach."""


class NoSuchUnitError(ManagerError):
    """The manager knows no such unit (``org.freedesktop.systemd1.NoSuchUnit``)."""


class UnitExistsError(ManagerError):
    """The unit's name is in use (``org.freedesktop.systemd1.UnitExists``)."""


class AccessDeniedError(ManagerError):
    """The caller has no right to do that (``org.freedesktop.DBus.Error.AccessDenied``)."""


class InstanceError(UnderstudyError):
    """Something is wrong with one instance.

    Attributes:
        unit: The instance's unit name.
        journal: The last lines that the service wrote; "" where they say nothing about it.
    """

    def __init__(
        self, message: str, *, unit: str, journal: str = "", hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.unit = unit
        self.journal = journal

    def __str__(self) -> str:
        if not self.journal:
            return super().__str__()
        lines = "\n".join(f"  | {line}" for line in self.journal.splitlines())
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{self.message}\n{lines}{hint}"


class StartError(InstanceError):
    """An instance did not start, or died before it was ready.

    Attributes:
        result: The job's result, or the unit's ``Result=`` (systemd.exec(5)).
        exit_status: The main process's exit status or signal number; None if it never ran.
    """

    def __init__(
        self,
        message: str,
        *,
        unit: str,
        result: str,
        exit_status: int | None = None,
        journal: str = "",
        hint: str | None = None,
    ) -> None:
        super().__init__(message, unit=unit, journal=journal, hint=hint)
        self.result = result
        self.exit_status = exit_status


class ReadyTimeoutError(StartError):
    """An instance runs, but was not ready in time.

    Attributes:
        timeout_s: The deadline that passed, in seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        unit: str,
        timeout_s: float,
        journal: str = "",
        hint: str | None = None,
    ) -> None:
        super().__init__(message, unit=unit, result="timeout", journal=journal, hint=hint)
        self.timeout_s = timeout_s


class LogTimeoutError(InstanceError):
    """An instance did not write what was waited for, in time.

    Attributes:
        timeout_s: The deadline that passed, in seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        unit: str,
        timeout_s: float,
        journal: str = "",
        hint: str | None = None,
    ) -> None:
        super().__init__(message, unit=unit, journal=journal, hint=hint)
        self.timeout_s = timeout_s


class RunError(UnderstudyError):
    """A run cannot be begun, found or ended."""


class NetworkError(UnderstudyError):
    """A private network cannot be made or entered, or something is not in it that should be."""


class ProductionError(UnderstudyError):
    """Production is not there, not ready, or not as it was."""


class DeployError(UnderstudyError):
    """Production cannot be put on this host, or taken away from it."""


class LeaseError(ProductionError):
    """A lease on production was not to be had in time: others have it."""


class BedError(UnderstudyError):
    """A bed cannot be booted, entered or ended."""


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """The beginning of a hint: ``did you mean 'x'? ``, or nothing if no known name is like it.

    Args:
        name: What was asked for.
        known: What there is.
    """
    import difflib  # only mistakes need it

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{near[0]}'? " if near else ""
