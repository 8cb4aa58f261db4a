"""What an expression stands for, as far as the text of the suite tells: constants, no more."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from understudy.audit.facts import (
    Class,
    Function,
    Module,
    Parameter,
    Scope,
    enclosing_class,
    field_default,
    spelled,
)
from understudy.audit.words import UNKNOWN

Value: TypeAlias = "int | str | list[Value] | None"
"""None is what is not known. A tuple is a list; in a text `UNKNOWN` stands for unknown parts."""

Trail: TypeAlias = "list[tuple[Module, int]]"
"""The modules and lines of the constants that a value came from."""

DEPTH_MAX: Final = 24
STEPS_MAX: Final = 4000
_TEXT_MAX: Final = 65536


class Found(NamedTuple):
    """A class, and the module that it is in."""

    module: Module
    definition: Class


class Project:
    """All Python files of an audit, to look names up across them."""

    def __init__(self, modules: Iterable[Module]) -> None:
        self._left = 0
        self._by_last: dict[str, list[Module]] = {}
        for module in modules:
            parts = module.parts
            if parts and parts[-1] == "__init__":
                parts = parts[:-1]
            if parts:
                self._by_last.setdefault(parts[-1], []).append(module)

    def module(self, dotted: str) -> Module | None:
        """The file that an import means: the only one whose path ends like it."""
        parts = tuple(dotted.split("."))
        fitting = [
            module
            for module in self._by_last.get(parts[-1], ())
            if _stem(module)[-len(parts) :] == parts
        ]
        return fitting[0] if len(fitting) == 1 else None

    def lookup(
        self, module: Module, scope: Scope, name: str, depth: int = 0
    ) -> tuple[Module, Scope, ast.expr] | None:
        """What a name is bound to, where, and in which module."""
        around: Scope | None = scope
        inside = True
        while around is not None:
            # The names of a class are seen in its body, not in its methods.
            if name in around.names and (inside or not isinstance(around.own, ast.ClassDef)):
                value = around.names[name]
                return (module, around, value) if value is not None else None
            around = around.outer
            inside = False
        imported = module.imports.get(name)
        if imported is None or not imported.member or depth > 4:
            return None
        other = self.module(imported.module)
        if other is None or other is module:
            return None
        return self.lookup(other, other.scope, imported.member, depth + 1)

    def find_class(
        self, module: Module, scope: Scope, node: ast.expr, depth: int = 0
    ) -> Found | None:
        """The class that an expression names."""
        if depth > 4:
            return None
        if isinstance(node, ast.Name):
            around: Scope | None = scope
            while around is not None:
                if node.id in around.classes:
                    return Found(module, around.classes[node.id])
                if node.id in around.names:
                    return None
                around = around.outer
            return self._imported_class(module, node.id, depth)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            other = self.of_name(module, node.value.id)
            if other is not None:
                top = ast.Name(id=node.attr, ctx=ast.Load())
                return self.find_class(other, other.scope, top, depth + 1)
        return None

    def _imported_class(self, module: Module, name: str, depth: int) -> Found | None:
        imported = module.imports.get(name)
        if imported is None or not imported.member:
            return None
        other = self.module(imported.module)
        if other is None or other is module:
            return None
        top = ast.Name(id=imported.member, ctx=ast.Load())
        return self.find_class(other, other.scope, top, depth + 1)

    def find_function(self, module: Module, scope: Scope, node: ast.expr) -> Function | None:
        """The function of a file's top level that an expression names."""
        if isinstance(node, ast.Name):
            around: Scope | None = scope
            while around is not None and node.id not in around.names:
                around = around.outer
            if around is not None:
                return module.named.get(node.id) if around is module.scope else None
            imported = module.imports.get(node.id)
            other = self.module(imported.module) if imported and imported.member else None
            return other.named.get(imported.member) if imported and other else None
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            other = self.of_name(module, node.value.id)
            return other.named.get(node.attr) if other else None
        return None

    def of_name(self, module: Module, name: str) -> Module | None:
        """The module that a name was imported as."""
        imported = module.imports.get(name)
        if imported is None:
            return None
        dotted = ".".join(part for part in imported if part)
        other = self.module(dotted)
        return other if other is not module else None

    def helper(self, module: Module, name: str) -> bool | None:
        """Whether a function gives a free port away; None if it is not in the files audited."""
        if name in module.helpers:
            return True
        if name in module.scope.names:
            return False
        imported = module.imports.get(name)
        other = self.module(imported.module) if imported and imported.member else None
        if imported is None or other is None or other is module:
            return None
        return imported.member in other.helpers

    def parameters(self, found: Found, depth: int = 0) -> tuple[Module, Class, list[Parameter]]:
        """What a class's constructor takes: its own, or its first base's that says so."""
        module, definition = found
        if definition.parameters is not None or depth > 4:
            return module, definition, definition.parameters or []
        for base in definition.node.bases:
            above = self.find_class(module, definition.around, base)
            if above is not None and above.definition is not definition:
                return self.parameters(above, depth + 1)
        return module, definition, []

    def bases(self, found: Found, depth: int = 0) -> list[str]:
        """The full names of all bases of a class."""
        module, definition = found
        names = []
        for base in definition.node.bases:
            names.append(full_name(base, module, definition.around))
            above = self.find_class(module, definition.around, base)
            if above is not None and above.definition is not definition and depth < 4:
                names += self.bases(above, depth + 1)
        return names

    def resolve(
        self,
        node: ast.expr | None,
        module: Module,
        scope: Scope,
        trail: Trail | None = None,
        depth: int = 0,
    ) -> Value:
        """What an expression stands for; None where only running it would tell.

        Args:
            node: The expression.
            module: Its file.
            scope: The names around it.
            trail: Is given the constants that were looked up.
            depth: How many expressions it is inside of.
        """
        # A name that is twice another, which is twice another … would take for ever.
        self._left = STEPS_MAX if depth == 0 else self._left - 1
        if node is None or depth > DEPTH_MAX or self._left < 0:
            return None
        if isinstance(node, ast.Constant):
            plain = isinstance(node.value, int | str) and not isinstance(node.value, bool)
            return node.value if plain else None  # type: ignore[return-value]
        if isinstance(node, ast.Name):
            return self._bound(self.lookup(module, scope, node.id), trail, depth)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, module, scope, trail, depth)
        if isinstance(node, ast.List | ast.Tuple):
            return self._items(node.elts, module, scope, trail, depth)
        if isinstance(node, ast.JoinedStr):
            return self._joined(node, module, scope, trail, depth)
        if isinstance(node, ast.BinOp):
            return self._added(node, module, scope, trail, depth)
        if isinstance(node, ast.Call):
            return self._called(node, module, scope, trail, depth)
        if isinstance(node, ast.Await | ast.Starred | ast.NamedExpr):
            return self.resolve(node.value, module, scope, trail, depth + 1)
        return None

    def _bound(
        self, found: tuple[Module, Scope, ast.expr] | None, trail: Trail | None, depth: int
    ) -> Value:
        if found is None:
            return None
        module, scope, value = found
        if trail is not None:
            trail.append((module, value.lineno))
        return self.resolve(field_default(value), module, scope, trail, depth + 1)

    def _attribute(
        self, node: ast.Attribute, module: Module, scope: Scope, trail: Trail | None, depth: int
    ) -> Value:
        if node.attr == "value":
            # An enumeration's member.
            return self.resolve(node.value, module, scope, trail, depth + 1)
        if spelled(node) == "sys.executable":
            return "python3"
        if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            own = enclosing_class(scope)
            if own is None:
                return None
            for name in (f"self.{node.attr}", node.attr):
                if name in own.names:
                    value = own.names[name]
                    found = (module, own, value) if value is not None else None
                    return self._bound(found, trail, depth)
            return None
        definition = self.find_class(module, scope, node.value)
        if definition is not None:
            inner = definition.definition.scope
            value = inner.names.get(node.attr)
            found = (definition.module, inner, value) if value is not None else None
            return self._bound(found, trail, depth)
        if isinstance(node.value, ast.Name):
            other = self.of_name(module, node.value.id)
            if other is not None and node.attr in other.scope.names:
                return self._bound(self.lookup(other, other.scope, node.attr), trail, depth)
        return None

    def _items(
        self,
        nodes: list[ast.expr],
        module: Module,
        scope: Scope,
        trail: Trail | None,
        depth: int,
    ) -> list[Value]:
        items: list[Value] = []
        for node in nodes[:1000]:
            value = self.resolve(node, module, scope, trail, depth + 1)
            if isinstance(node, ast.Starred):
                items += value if isinstance(value, list) else [None]
            else:
                items.append(value)
        return items

    def _joined(
        self, node: ast.JoinedStr, module: Module, scope: Scope, trail: Trail | None, depth: int
    ) -> str:
        parts: list[str] = []
        for one in node.values:
            value: Value
            if isinstance(one, ast.FormattedValue):
                value = self.resolve(one.value, module, scope, trail, depth + 1)
            else:
                value = self.resolve(one, module, scope, trail, depth + 1)
            parts.append(text_of(value))
        return "".join(parts)[:_TEXT_MAX]

    def _added(
        self, node: ast.BinOp, module: Module, scope: Scope, trail: Trail | None, depth: int
    ) -> Value:
        left = self.resolve(node.left, module, scope, trail, depth + 1)
        right = self.resolve(node.right, module, scope, trail, depth + 1)
        if isinstance(node.op, ast.Add):
            if isinstance(left, int) and isinstance(right, int):
                return left + right
            if isinstance(left, str) or isinstance(right, str):
                return (text_of(left) + text_of(right))[:_TEXT_MAX]
            if isinstance(left, list) or isinstance(right, list):
                first: list[Value] = left if isinstance(left, list) else [None]
                second: list[Value] = right if isinstance(right, list) else [None]
                return [*first, *second][:1000]
        if isinstance(node.op, ast.Div) and isinstance(right, str):
            # A path: / "mediamtx"
            return f"{text_of(left)}/{right}"
        if isinstance(node.op, ast.Mod) and isinstance(left, str):
            return percent(left, right if isinstance(right, list) else [right])
        return None

    def _called(
        self, node: ast.Call, module: Module, scope: Scope, trail: Trail | None, depth: int
    ) -> Value:
        name = spelled(node.func).rpartition(".")[2]
        first = node.args[0] if node.args else None
        if name in ("int", "str", "Path", "list", "tuple", "quote", "fspath") and first is not None:
            value = self.resolve(first, module, scope, trail, depth + 1)
            if name == "int":
                if isinstance(value, str) and value.isascii() and value.isdigit():
                    return int(value) if len(value) < 20 else None
                return value if isinstance(value, int) else None
            return str(value) if name == "str" and isinstance(value, int) else value
        if name == "split" and isinstance(node.func, ast.Attribute) and len(node.args) <= 1:
            # "systemctl restart mediamtx".split(), shlex.split("…")
            text = self.resolve(first or node.func.value, module, scope, trail, depth + 1)
            if isinstance(text, str) and (first is None or spelled(node.func) == "shlex.split"):
                return list(text.split())
        if name == "join" and isinstance(node.func, ast.Attribute):
            glue = self.resolve(node.func.value, module, scope, trail, depth + 1)
            items = self.resolve(first, module, scope, trail, depth + 1)
            if isinstance(glue, str) and isinstance(items, list):
                return glue.join(map(text_of, items))[:_TEXT_MAX]
        if name == "format" and isinstance(node.func, ast.Attribute):
            text = self.resolve(node.func.value, module, scope, trail, depth + 1)
            if isinstance(text, str):
                given = {
                    word.arg: text_of(self.resolve(word.value, module, scope, trail, depth + 1))
                    for word in node.keywords
                    if word.arg
                }
                plain = [
                    text_of(value) for value in self._items(node.args, module, scope, trail, depth)
                ]
                return formatted(text, plain, given)
        return None


def _stem(module: Module) -> tuple[str, ...]:
    return module.parts[:-1] if module.parts[-1] == "__init__" else module.parts


def text_of(value: Value) -> str:
    """A value as an f-string would have it."""
    if isinstance(value, int):
        # Python refuses to write numbers of thousands of digits.
        return str(value) if abs(value) < 10**18 else UNKNOWN
    return value if isinstance(value, str) else UNKNOWN


def percent(text: str, values: Sequence[Value]) -> str:
    """What ``text % values`` gives."""
    rest = iter(values)
    return re.sub(
        r"%(?:\(\w+\))?[-#0 +]*[0-9]*(?:\.[0-9]+)?[a-zA-Z]",
        lambda match: text_of(next(rest, None)),
        text,
    )


def formatted(text: str, plain: list[str], given: dict[str, str]) -> str:
    """What ``text.format(…)`` gives, for names and plain braces."""
    rest = iter(plain)

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if not name:
            return next(rest, UNKNOWN)
        if name.isdigit():
            return plain[int(name)] if len(name) < 4 and int(name) < len(plain) else UNKNOWN
        return given.get(name, UNKNOWN)

    return re.sub(r"\{(\w*)(?:[!:][^{}]*)?\}", value, text)


def full_name(node: ast.expr, module: Module, scope: Scope) -> str:
    """A dotted name by what was imported: ``sp.run`` is ``subprocess.run``."""
    name = spelled(node)
    first, dot, rest = name.partition(".")
    imported = module.imports.get(first)
    if imported is None or (first in module.scope.names and first not in module.imports):
        return name
    top = ".".join(part for part in imported if part)
    return f"{top}{dot}{rest}"
