"""From facts to a definition's files. Pure: text in, text out."""

from __future__ import annotations

import re

from understudy import names
from understudy.define import words
from understudy.define.copies import Copies
from understudy.define.facts import Definition, Facts
from understudy.define.finding import Finding
from understudy.define.plan import Plan
from understudy.define.service_toml import ServiceToml
from understudy.define.unit_text import UnitText
from understudy.define.words import CHANGE_ME
from understudy.errors import UsageError


def service_name(unit: str) -> str:
    """The name that a definition of a unit has unless it is given another; "" if none is fit.

    Args:
        unit: The unit's name.
    """
    stem = unit.removesuffix(".service").lower()
    name = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")
    return name if names.valid_service_name(name) else ""


def define(facts: Facts, name: str) -> Definition:
    """Write the definition of an installed unit.

    Args:
        facts: What was found out of it.
        name: What the service is to be called.

    Raises:
        UsageError: The unit cannot have instances: it has no command.
    """
    plan = Plan(facts, name)
    if not plan.unit.program:
        raise UsageError(
            f"Cannot define '{facts.unit}': it has no ExecStart=",
            hint="only a service with a command can have instances",
        )
    finding = Finding(plan)
    finding.find_ports()
    finding.find_own_paths()
    finding.name_ports()
    copies = Copies(plan)
    units = UnitText(plan, copies)
    base = units.base()
    command = units.command()
    units.environment()
    copies.usual_files()  # what they tell is what nothing else has told
    _last_words(plan)
    toml = ServiceToml(plan, copies).text()  # before the drop-in: a second way to be told is there
    instance = units.instance(command)
    files = {"service.toml": toml, f"{facts.unit}.j2": base}
    if instance:
        files["instance.conf"] = instance
    files |= {f"{unit}.j2": text for unit, text in units.socket_units().items()}
    files |= {f"{one.name}.j2": one.text for one in copies.files.values()}
    return Definition(
        name=name,
        files={file: _safe(plan, file, text) for file, text in files.items()},
        private=frozenset(copies.private),
        notes=tuple(plan.notes),
    )


def _safe(plan: Plan, name: str, text: str) -> str:
    """The last word on secrets: what was found to be one anywhere is nowhere."""
    for secret in sorted(plan.secrets, key=len, reverse=True):
        # A password that is a word like others says nothing, and stands in too many places.
        if len(secret) < 6 or (secret.isalpha() and len(secret) < 12):
            continue
        mention = re.compile(rf"(?<![\w/.-]){re.escape(secret)}(?![\w/.-])")
        if mention.search(text):
            text = mention.sub(CHANGE_ME, text)
            plan.note(f"a secret was taken out of {name} where it had no name", "look there")
    return text


def _last_words(plan: Plan) -> None:
    """Say what was not found out."""
    untold = [port for port in plan.ports if not port.told]
    if untold:
        listed = ", ".join(f"{port.name} ({port.number})" for port in untold)
        plan.note(
            f"nothing that was looked at tells it {listed}: its instances get private networks",
            "if it can be told, say how in [ports], and leave out network",
        )
    for path, source in plan.facts.environment_files.items():
        if source.private and source.text is None:
            plan.note(f"'{path}' {source.problem}: what it sets is not known")
    missing = sorted(set(plan.from_files) - plan.given())
    secret = [name for name in missing if words.secret_name(name)]
    if plain := [name for name in missing if name not in secret]:
        plan.note(
            f"an environment file sets {', '.join(plain)}; instances do not read it",
            "give them what they need in [instance.environment]",
        )
    if left := [name for name, (default, _) in plan.values.items() if default == CHANGE_ME]:
        plan.note(
            f"secrets are not taken: {', '.join(left)} ('{CHANGE_ME}' in instances)",
            "--set NAME=…, or [values]",
        )
    if secret:
        plan.note(
            f"secrets are not taken: {', '.join(secret)} ('{CHANGE_ME}' in instances)",
            "--env NAME=…, or [instance.environment]",
        )
    _of_processes(plan)
    if plan.unit.setting("Type") == "oneshot":
        plan.note("it is of Type=oneshot: it ends by itself", "only what stays can be ready")
    if plan.unit.commands > 1:
        plan.note("it has several ExecStart=", "an instance has one: look at instance.conf")

    if held := [name for name in plan.unit.settings if "Credential" in name]:
        plan.note(
            f"credentials are production's alone ({', '.join(held)})",
            "what an instance needs: SetCredential=NAME:VALUE in instance.conf",
        )
    for path in sorted(plan.facts.closed):
        if not plan.unit.is_state(path) and path not in plan.facts.environment_files:
            plan.note(
                f"an instance has another user, who may not read '{path}'",
                "give it one of its own, or a right to this",
            )


def _of_processes(plan: Plan) -> None:
    if not plan.facts.running:
        return
    if not plan.facts.seen:
        plan.note(
            "its processes may not be looked at: what it has open is not known",
            f"sudo understudy define {plan.facts.unit}",
        )
    for path in sorted(plan.facts.written):
        below = any(path == one or path.startswith(f"{one}/") for one in plan.own)
        if not below and plan.unit.is_state(path):
            plan.note(
                f"it writes '{path}', which nothing that was looked at names",
                "find out where it is told, or an instance cannot write or two meet",
            )
