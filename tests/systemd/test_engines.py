"""An instance is the same whatever way it is made, in systemd's own eyes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Literal

import pytest
from tests.systemd.support import ACTIVATED, CAMERA_SERVICE, MEDIAMTX, SERVICES, show

from understudy.errors import NoManagerError, RenderError
from understudy.manager import connect
from understudy.model import Engine
from understudy.run import Run

DIFFERENT = {
    # Where a unit comes from is what the engines differ in.
    "Transient": "by D-Bus or systemd-run",
    "FragmentPath": "a transient unit's file is the manager's",
    "DropInPaths": "properties in the place of drop-ins",
    "UnitFileState": "transient",
    "UnitFilePreset": "a transient unit has none",
    # One life is not another.
    "ControlGroupId": "the number of a folder",
    "ExecMainPID": "another process",
    "GID": "another dynamic user",
    "InvocationID": "another life",
    "MainPID": "another process",
    "UID": "another dynamic user",
}
"""The properties that must differ or do by chance, each with a reason."""

SETS = (
    *("After", "Before", "BindsTo", "Conflicts", "Requires", "RequiresMountsFor", "Wants"),
    *("IPAddressAllow", "IPAddressDeny"),
)
"""Lists without an order."""

MEASURED = re.compile(
    r".*Timestamp(Monotonic)?|(CPUUsage|Memory|Tasks|IO|IP|EffectiveMemory|EffectiveTasks).*"
)
"""Times and amounts, which are another life's too. Limits have words of their own, see below."""

LIMITS = re.compile(
    r"(CPU|Memory|Tasks|IO|IP)(Accounting|Weight|Max|High|Low|Min|SwapMax|.*Weight|.*Max|"
    r"AddressAllow|AddressDeny|SchedulingClass|SchedulingPriority|DenyWriteExecute)"
)


@pytest.mark.parametrize("means", ["dbus", "commands"])
@pytest.mark.parametrize(
    ("service", "values"),
    [
        ("mediamtx", MEDIAMTX),
        ("redis", {}),
        ("nginx", {}),
        ("camera-service", CAMERA_SERVICE),
    ],
)
def test_engines_make_the_same_unit(
    service: str,
    values: Mapping[str, str],
    means: Literal["dbus", "commands"],
    request: pytest.FixtureRequest,
) -> None:
    # By D-Bus each row is one property of one call, by commands an option of systemd-run.
    try:
        manager = connect(prefer=means)
    except NoManagerError as exc:
        if os.environ.get("UNDERSTUDY_REQUIRE_ALL"):
            raise
        pytest.skip(exc.message)
    if service == "camera-service":
        request.getfixturevalue("camera_file")
    with Run(engine=Engine.FILES, units=SERVICES) as run:
        instance = run.spawn(service, values=values)
        by_files = properties(instance.unit, run.id)
        ports = instance.ports
    with Run(manager=manager, engine=Engine.SYSTEMD_RUN, units=SERVICES) as run:
        instance = run.spawn(service, values=values, ports=ports)
        transient = properties(instance.unit, run.id)
    assert by_files.pop("Transient") == "no"
    assert transient.pop("Transient") == "yes"
    compared = {
        name
        for name in by_files.keys() | transient.keys()
        if name not in DIFFERENT and (LIMITS.fullmatch(name) or not MEASURED.fullmatch(name))
    }
    assert len(compared) > 150
    assert {name: by_files.get(name) for name in compared} == {
        name: transient.get(name) for name in compared
    }


def test_sockets_of_the_manager_need_files() -> None:
    with (
        Run(engine=Engine.SYSTEMD_RUN) as run,
        pytest.raises(RenderError, match="its sockets are bound by the manager") as error,
    ):
        run.spawn("camera-service-activated", values=ACTIVATED)
    assert error.value.hint == "--engine files"


def properties(unit: str, run: str) -> dict[str, str]:
    """What systemctl shows of a unit, with nothing in it that names its run or its life."""
    found = {name: value.replace(run, "RUN") for name, value in show(unit).items()}
    for name in found:
        if name.startswith("Exec") and "argv[]=" in found[name]:
            # What is run and with what flags; not when it was and under which PID.
            found[name] = re.sub(r" ; start_time=.*", "", found[name])
        elif name in SETS:
            found[name] = " ".join(sorted(found[name].split()))
    return found
