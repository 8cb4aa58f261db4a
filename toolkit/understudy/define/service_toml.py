"""A definition's service.toml. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable

from understudy.define import words
from understudy.define.copies import Copies
from understudy.define.plan import Plan, Port
from understudy.define.words import CHANGE_ME
from understudy.model import Transport


class ServiceToml:
    """A definition's service.toml.

    Args:
        plan: What is settled.
        copies: The configuration files that an instance has for itself.
    """

    def __init__(self, plan: Plan, copies: Copies) -> None:
        self.plan = plan
        self.copies = copies

    def text(self) -> str:
        """The file; what it has no words for goes to the drop-in's environment."""
        rows = [
            f"# Written from the installed unit by: understudy define {self.plan.facts.unit}",
            "# It is yours now: edit it, and try it out with: understudy check",
            f"description = {_toml(self.plan.unit.description or self.plan.name)}",
            f"production = {_toml(self.plan.facts.unit)}",
        ]
        if self.plan.values:
            rows += ["", "[values]"]
            first = ("root", "program")
            for name, (default, why) in sorted(
                self.plan.values.items(),
                key=lambda item: (item[0] not in first, item[1][0] == CHANGE_ME),
            ):
                said = why or ("a secret, not production's" if default == CHANGE_ME else "")
                rows.append(f"{name} = {_toml(default)}" + (f"    # {said}" if said else ""))
        rows += self._ports()
        if any(port.passed for port in self.plan.ports):
            rows += ["", "# Its socket units bind the ports.", "[activation]"]
            rows += ['production = "sockets"', 'instance = "sockets"']
        rows += self._instance()
        rows += self._ready()
        return "\n".join([*rows, ""])

    def _ports(self) -> list[str]:
        if not self.plan.ports:
            return ["", "# [ports]", '# http = { tcp = 8080, env = "PORT", value = "{port}" }']
        rows = ["", "[ports]"]
        for port in self.plan.ports:
            entry = [f"{port.transport} = {port.number}"]
            by_value: dict[str, list[str]] = {}
            for name, value in port.env.items():
                by_value.setdefault(value, []).append(name)
            value, env = next(iter(by_value.items()), ("", []))
            for other, more in list(by_value.items())[1:]:
                for name in more:
                    put = other.replace("{host}", "{{ host }}").replace("{port}", port.value)
                    self.plan.environment[name] = put
            entry += self._pair(port)
            if env:
                entry.append(f"env = {_toml(env[0]) if len(env) == 1 else _toml_list(env)}")
                if value != "{host}:{port}":
                    entry.append(f"value = {_toml(value)}")
            if port.file and not env:
                entry.append(f"file = {_toml(port.file)}")
            if url := self._url(port):
                entry.append(f"url = {_toml(url)}")
            where = ", ".join(dict.fromkeys(port.where)) or ("its sockets" if port.passed else "")
            rows.append(
                f"# Told by {where}." if port.told else "# Nothing that was found tells it."
            )
            rows.append(f"{port.name} = {{ {', '.join(entry)} }}")
        return rows

    def _pair(self, port: Port) -> list[str]:
        """What RTP and RTCP ask for (RFC 3550, section 11): even, and the one after it."""
        by_name = {one.name: one for one in self.plan.ports if one.transport is Transport.UDP}
        rtp, rtcp = by_name.get("rtp"), by_name.get("rtcp")
        if rtp is None or rtcp is None or rtp.number % 2 or rtcp.number != rtp.number + 1:
            return []
        return {"rtp": ["even = true"], "rtcp": ['next-to = "rtp"']}.get(port.name, [])

    def _url(self, port: Port) -> str:
        if port.transport is not Transport.TCP:
            return ""
        kind = port.name.partition("-")[0]
        if port.number in self.plan.facts.answers or kind in ("http", "https"):
            return f"{'https' if kind == 'https' else 'http'}://{{host}}:{{port}}"
        return f"{kind}://{{host}}:{{port}}" if kind in ("redis", "rtsp", "mqtt") else ""

    def _instance(self) -> list[str]:
        files = list(self.copies.files.values())
        untold = [port for port in self.plan.ports if not port.told]
        rows: list[str] = []
        if untold:
            rows += [
                "",
                "# Its ports are written into it: each instance has a network of its own.",
                "[instance]",
                'network = "private"',
            ]
        plain = [one for one in files if not one.over]
        if plain:
            rows += ["", "[instance.files]"]
            rows += [f"{_toml(one.name)} = {_toml(f'{one.name}.j2')}" for one in plain]
        for one in files:
            if one.over:
                rows += ["", f"[instance.files.{_toml(one.name)}]"]
                rows += [f"from = {_toml(f'{one.name}.j2')}", f"over = {_toml(one.over)}"]
        missing = sorted(set(self.plan.from_files) - self.plan.given())
        if missing:
            rows += [
                "",
                "# What production has in environment files is its own: instances do not read",
            ]
            rows += [f"# {', '.join(self.plan.facts.environment_files)}"]
            rows.append("[instance.environment]")
            for name in missing:
                secret = words.secret_name(name)
                rows.append(f"{name} = {_toml(CHANGE_ME)}" if secret else f'# {name} = ""')
        return rows

    def _ready(self) -> list[str]:
        for port in self.plan.ports:
            status = self.plan.facts.answers.get(port.number)
            if port.transport is Transport.TCP and status is not None:
                said = "" if status == 200 else f", status = {status}"
                return ["", "[ready]", f'http = {{ port = {_toml(port.name)}, path = "/"{said} }}']
        http = [port for port in self.plan.ports if port.name.startswith("http")]
        if http and not self.plan.facts.running:
            return [
                "",
                "# It was not running. If it answers at /, this says when it is ready:",
                "# [ready]",
                f'# http = {{ port = {_toml(http[0].name)}, path = "/" }}',
            ]
        return []


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_list(items: Iterable[str]) -> str:
    return f"[{', '.join(_toml(one) for one in items)}]"
