"""The texts of a definition's units: production's template, and an instance's drop-in. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from understudy import unitfile
from understudy.define import known, words
from understudy.define.copies import Copies
from understudy.define.plan import Plan
from understudy.define.words import Edit, literal, template, unit_word
from understudy.derive import unit_name_specifiers

_HIDDEN = ("/home/", "/root/", "/tmp/", "/var/tmp/")
_NOT_RUN = ("ExecCondition", "ExecStartPre", "ExecStartPost", "ExecStop", "ExecStopPost")
_COMMANDS = re.compile(r"Exec(?:Condition|StartPre|StartPost|Start|Reload|Stop|StopPost)")
_IN_SERVICE = re.compile(r"SetCredential(?:Encrypted)?")


class UnitText:
    """The texts of a definition's units.

    Args:
        plan: What is settled.
        copies: The configuration files that an instance has for itself.
    """

    def __init__(self, plan: Plan, copies: Copies) -> None:
        self.plan = plan
        self.copies = copies

    def base(self) -> str:
        """Production's unit as a template: as it is, but for secrets and what can be set."""
        head = [
            f"{{# {self.plan.facts.unit} as it is installed on this host.",
            "   What is different in an instance is in instance.conf. #}",
        ]
        lines = []
        first = True
        for line in self.plan.unit.lines:
            if line.text.startswith("# /") and line.text.endswith((".service", ".conf")):
                if not first:
                    lines.append(literal(line.text))
                first = False
                continue
            lines.append(self._base_line(line))
        text = "\n".join(lines).strip("\n")
        if self.plan.root:
            self.plan.values["root"] = (
                self.plan.root,
                "where it is read from; a checkout: --set root=$PWD",
            )
        return "\n".join([*head, text, ""])

    def _base_line(self, line: unitfile.Line) -> str:
        if not line.name:
            leak = line.text.strip() and words.secrets(line.text.strip().lstrip("#; "))
            return "# left out: a secret" if leak else literal(line.text)
        if line.section == "Service" and _IN_SERVICE.fullmatch(line.name):
            self.plan.secrets.add(line.value.partition(":")[2])
            return f"# left out, a secret: {line.name}={literal(line.value.partition(':')[0])}"
        if line.section == "Service" and line.name == "Environment" and line.value:
            return self._base_words(line, [(word, word) for word in unitfile.split(line.value)])
        if line.section == "Service" and _COMMANDS.fullmatch(line.name) and line.value:
            split = unitfile.split(line.value)
            pairs = []
            for before, word in zip(["", *split], split, strict=False):
                option = before.startswith("-") and not word.startswith("-") and "=" not in before
                pairs.append((f"{before} {word}" if option else word, word))
            return self._base_words(line, pairs)
        if words.secrets(f"{line.name}={line.value}"):
            return f"# left out, a secret: {line.name}="
        return self._base_places(literal(line.text), line)

    def _base_words(self, line: unitfile.Line, pairs: Iterable[tuple[str, str]]) -> str:
        """A line of words: as it was written, unless a secret has to go."""
        result = []
        leak = False
        for text, word in pairs:
            offset = len(text) - len(word)
            edits = []
            if not word.startswith("-") or "=" in word:
                edits = [
                    edit._replace(start=edit.start - offset, end=edit.end - offset)
                    for edit in self.plan.secret_edits(text)
                    if edit.start >= offset
                ]
            leak = leak or bool(edits)
            result.append(unit_word(template(word, edits)))
        if leak:
            return self._base_places(f"{line.name}={' '.join(result)}", line)
        return self._base_places(literal(line.text), line)

    def _base_places(self, text: str, line: unitfile.Line) -> str:
        """A line with its program and its folder as values, so that both can be set."""
        if self.plan.root and line.section == "Service":
            text = re.sub(
                rf"(?<![\w./-]){re.escape(self.plan.root)}(?=[/\s\"':]|$)", "{{ root }}", text
            )
        if line.name == "ExecStart" and line.section == "Service":
            program = self.plan.unit.program
            inside = self.plan.root and program.startswith(f"{self.plan.root}/")
            if not inside and re.fullmatch(r"/[\w./+-]+", program):
                at = text.find(program)
                if at >= 0 and "{" not in text[:at]:
                    self.plan.values["program"] = (program, "another build: --set program=…")
                    end = at + len(program)
                    text = f"{text[:at]}{{{{ program | quote }}}}{text[end:]}"
            text = self._base_shown(text)
        return text

    def _base_shown(self, text: str) -> str:
        for word in self.plan.unit.arguments:
            if not (self.plan.root and word.startswith(f"{self.plan.root}/")) and (
                shown := self._shown(word)
            ):
                text = text.replace(word, f"{{{{ {shown} }}}}")
        return text

    def command(self) -> list[str]:
        """``ExecStart=`` of an instance, as lines of its drop-in; none if production's is right."""
        arguments = [self._argument(at) for at in range(len(self.plan.unit.arguments))]
        default = next(iter(self.plan.default_files()), "")
        main = self.copies.file(default) if default else None
        if main is None:
            told = (self.plan.unit.absolute(word) for word in self.plan.unit.arguments)
            main = next(
                (self.copies.files[path] for path in told if path in self.copies.files), None
            )
        config = f"{{{{ files }}}}/{main.name}" if main is not None else ""
        special = known.command(self.plan.unit.stem, arguments, config)
        result = self._without_config(arguments) if special is None else special
        changed = result != self.plan.unit.arguments
        privilege = self.plan.unit.privilege
        if not changed and not privilege:
            return []
        kept = ":" if ":" in self.plan.unit.prefix else ""
        line = " ".join(
            [f"ExecStart={kept}{{{{ argv[0] | quote }}}}", *(unit_word(one) for one in result)]
        )
        said = known.why(self.plan.unit.stem) if special is not None else []
        if not said and changed:
            said = ["Its own ports, files and folders in the place of production's."]
        if privilege:
            said += [f"Without production's prefix '{privilege[0]}', which gives rights of root."]
        return [*(f"# {one}" for one in said), "ExecStart=", self._named_specifiers(line)]

    def _argument(self, at: int) -> str:
        """A word of the command as an instance has it, as a template."""
        word = self.plan.unit.arguments[at]
        text = self.plan.argument_text(at)
        offset = len(text) - len(word)
        edits = []
        if not word.startswith("-") or "=" in word:
            edits += list(self.plan.secret_edits(text))
        path = self.plan.unit.absolute(word)
        if not word.startswith("-") and (one := self.copies.file(path)) is not None:
            edits.append(Edit(offset, len(text), f"{{{{ files }}}}/{one.name}"))
        if path in self.plan.own:
            edits.append(Edit(offset, len(text), self.plan.own[path]))
        edits += [
            *self.copies.file_edits(text),
            *self.plan.path_edits(text),
            *self.plan.root_edits(text),
        ]
        glued = re.fullmatch(r"-[A-Za-z](\d{2,5})", word)
        pure = word.isdigit() or glued is not None
        mentioned = word[2:] if glued else text
        shift = offset + 2 if glued else 0
        for edit, port in self.plan.port_edits(mentioned, pure=pure):
            edits.append(edit._replace(start=edit.start + shift, end=edit.end + shift))
            if edit.start + shift >= offset:
                port.argument = True
                port.where.append("an argument")
        edits = [edit._replace(start=edit.start - offset, end=edit.end - offset) for edit in edits]
        edits = [edit for edit in edits if edit.start >= 0]
        if not edits and (shown := self._shown(word)):
            return f"{{{{ {shown} }}}}"
        return template(word, edits)

    def _shown(self, word: str) -> str:
        """A value for a path that an instance could not see otherwise (``_HIDDEN`` of derive)."""
        if not word.startswith(_HIDDEN) or word in self.plan.own:
            return ""
        name = re.sub(r"\W", "_", PurePosixPath(word).stem.lower()).strip("_")
        return self.plan.value(name or "path", word, "a path that instances are shown")

    def _without_config(self, arguments: list[str]) -> list[str]:
        """Arguments that say all that an unreadable configuration file would."""
        other = known.WITHOUT_CONFIG.get(self.plan.unit.stem)
        unread = self.plan.unread()
        if other is None or not unread or len(self.plan.ports) != 1:
            return arguments
        [port] = self.plan.ports
        port.argument = True
        port.where.append("an argument")
        told = [word.replace("{port}", port.value) for word in other.arguments]
        kept = [
            text
            for text, word in zip(arguments, self.plan.unit.arguments, strict=True)
            if self.plan.unit.absolute(word) not in unread
        ]
        self.plan.note(
            f"instances have the defaults of {self.plan.unit.stem}, not what '{min(unread)}' says",
            "what they need of it: more arguments in instance.conf",
        )
        return [*kept, *told]

    def _named_specifiers(self, line: str) -> str:
        """What stands for parts of production's name is an instance's name in its own drop-in."""
        own = unit_name_specifiers(self.plan.facts.unit)
        return re.sub(r"%(.)", lambda match: own.get(match[1], match[0]), line)

    def environment(self) -> None:
        """See to it that variables tell an instance its own ports, files and folders."""
        for name, value in self.plan.variables().items():
            declared = name in self.plan.unit.environment
            text = f"{name}={value}"
            if self._port_variable(name, value, text):
                continue
            edits = [
                edit
                for edit in (*self.copies.file_edits(text), *self.plan.path_edits(text))
                if edit.start > len(name)
            ]
            for edit, port in self.plan.port_edits(text) if declared else ():
                edits.append(edit)
                port.argument = True
                port.where.append(f"the variable {name}")
            if not edits:
                continue
            if declared:
                edits = [*self.plan.secret_edits(text), *edits]
                self.plan.environment[name] = template(text, edits)[len(name) + 1 :]
            elif len(edits) == 1 and edits[0].end - edits[0].start == len(value):
                # Of what an environment file says only our own word is taken.
                self.plan.environment[name] = edits[0].put

    def _port_variable(self, name: str, value: str, text: str) -> bool:
        """Whether a variable is one port and nothing else that [ports] could not say."""
        found = list(self.plan.port_edits(text, pure=value.isdigit()))
        if len(found) != 1:
            return False
        [(edit, port)] = found
        before = value[: max(0, edit.start - len(name) - 1)]
        after = value[max(0, edit.end - len(name) - 1) :]
        middle = "{host}:{port}" if "host" in edit.put else "{port}"
        whole = before + middle + after
        simple = re.fullmatch(r"(?:[a-z]+://)?(?:[\w.-]*|\[[0-9a-f:]*\])?:?/?", before) and (
            re.fullmatch(r"/?", after)
        )
        if not simple or (edit.start <= len(name)):
            if name not in self.plan.unit.environment:
                self.plan.note(
                    f"{name} of its environment has {port.number} among other things, not copied",
                    "say in [instance.environment] what an instance needs",
                )
                return True
            return False
        port.env[name] = whole
        port.where.append(f"the variable {name}")
        return True

    def socket_units(self) -> dict[str, str]:
        """Production's socket units, where systemd binds its ports."""
        if not any(port.passed for port in self.plan.ports):
            return {}
        found = {}
        for unit, text in self.plan.facts.sockets.items():
            lines = [line.text for line in unitfile.parse(text) if not line.text.startswith("# /")]
            found[unit] = literal("\n".join(lines).strip("\n")) + "\n"
        return found

    def instance(self, command: list[str]) -> str:
        """An instance's drop-in; "" if it needs none.

        Args:
            command: As `command` gave it.
        """
        rows = list(command)
        kind = self.plan.unit.setting("Type")
        if kind == "forking" and known.foreground(self.plan.unit.stem):
            rows = ["# Production forks.", "Type=exec", *rows]
        elif kind == "forking":
            rows += [
                "# It forks; systemd guesses which process is the main one, without a PID file.",
                "# If it has an option to stay in the foreground: Type=exec, and that option.",
                "GuessMainPID=yes",
            ]
            self.plan.note(
                "it forks (Type=forking)",
                "if it can stay in the foreground, say so in instance.conf: Type=exec",
            )
        elif kind == "dbus":
            rows += ["# Its name on the bus is production's.", "Type=exec", "BusName="]
        if self.plan.root:
            rows += [
                "# What is relative is read from here, as in production; nothing may be written.",
                "WorkingDirectory={{ root }}",
            ]
        if self.plan.made:
            paths = " ".join(self.plan.made)
            rows += [
                "# Folders of its own, which are empty at its start.",
                "ExecStartPre=/bin/mkdir -p " + paths,
            ]
            if "NoExecPaths" in self.plan.unit.settings:
                rows.append("ExecPaths=-/bin/mkdir -/usr/bin/mkdir")
        told = {
            f"{directive.removesuffix('Directory').upper()}_DIRECTORY"
            for directive in self.plan.unit.made.values()
            if directive != "RuntimeDirectory"
        }
        if told:
            rows.append("# What systemd tells of folders that are production's alone.")
            rows += [f"Environment={name}={{{{ directory }}}}" for name in sorted(told)]
        if self.plan.environment:
            rows.append("# Its own files, folders and ports in the place of production's.")
            rows += [
                f"Environment={unit_word(f'{name}={value}')}"
                for name, value in sorted(self.plan.environment.items())
            ]
        if not rows:
            return ""
        head = [f"# What an instance of {self.plan.name} needs different from production."]
        around = [name for name in _NOT_RUN if name in self.plan.unit.settings]
        if around:
            head.append(f"# What production does around it is not done: {', '.join(around)}.")
        head.append("[Service]")
        return "\n".join([*head, *rows, ""])
