"""One pass over a Python file: what it binds to names, and the places that rules look at.

The pass keeps its own stack, so that a chain of a thousand ``+`` is no deeper than its file. What a
name stands for is looked up afterwards (resolving.py), when all files have been seen.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final, NamedTuple, TypeAlias

from understudy.audit.files import Source
from understudy.audit.words import is_port_name

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

_LEFT_OUT: Final = frozenset(
    ("ctx", "op", "ops", "type_comment", "type_ignores", "kind", "conversion", "annotation")
)
_CHILDREN: Final[dict[type[ast.AST], tuple[str, ...]]] = {}
_TELLING = re.compile(
    r"://[^/\s]*:[0-9]|^(?:localhost|127\.|0\.0\.0\.0|\[)[^/\s]*:[0-9]+$|config/paths/delete/"
)
_TEXT_MAX: Final = 4096
_FACTORY_NAMES: Final = frozenset(("field", "Field", "attrib", "ib"))
_RECORD: Final = re.compile(
    r"(^|\.)(dataclass|define|frozen|mutable|attrs|s|NamedTuple|BaseModel|BaseSettings|Struct)$"
)


class Link(NamedTuple):
    """A node and what is around it, up to the module."""

    node: ast.AST
    outer: Link | None


class Scope:
    """What names stand for in a module, a class or a function."""

    __slots__ = ("classes", "names", "outer", "own")

    def __init__(self, outer: Scope | None, own: ast.AST) -> None:
        self.outer = outer
        self.own = own
        self.names: dict[str, ast.expr | None] = {}
        self.classes: dict[str, Class] = {}

    def bind(self, name: str, value: ast.expr | None) -> None:
        """Note a binding; a name that is bound twice stands for nothing certain."""
        self.names[name] = None if name in self.names else value


class Parameter(NamedTuple):
    """What a call of a class may pass."""

    name: str
    default: ast.expr | None
    at: int | None


@dataclass(slots=True)
class Class:
    """A class: what it is made with, and what it is made of.

    Attributes:
        node: Its definition.
        scope: Its body's names.
        around: The scope that it is defined in.
        parameters: What its constructor takes; None where that is its bases' business.
    """

    node: ast.ClassDef
    scope: Scope
    around: Scope
    parameters: list[Parameter] | None = None


class Site(NamedTuple):
    """A place that rules look at."""

    node: ast.expr | ast.stmt
    link: Link | None
    scope: Scope


class Import(NamedTuple):
    """What a name was imported from; a module has no member."""

    module: str
    member: str


@dataclass(slots=True)
class Module:
    """A Python file as the rules see it.

    Attributes:
        file: Its name.
        parts: Its path without suffix, as imports spell it.
        scope: The names of its top level.
        imports: What was imported, by the name that it has here; from anywhere in the file.
        calls: Calls.
        texts: Texts that may be URLs or addresses.
        dicts: Dictionaries with keys that may say something.
        functions: Definitions of functions.
        bindings: Assignments that may set a port.
        named: The functions of its top level.
        helpers: Functions that give a free port away, by name; filled by the rules.
        used: Lines of bindings that a finding has come from.
        probes: Whether it may have helpers.
    """

    file: str
    parts: tuple[str, ...]
    scope: Scope
    imports: dict[str, Import] = field(default_factory=dict)
    calls: list[Site] = field(default_factory=list)
    texts: list[Site] = field(default_factory=list)
    dicts: list[Site] = field(default_factory=list)
    functions: list[Site] = field(default_factory=list)
    bindings: list[Site] = field(default_factory=list)
    named: dict[str, Function] = field(default_factory=dict)
    helpers: dict[str, int] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    probes: bool = False


def read(source: Source) -> Module:
    """Parse a file and walk it once; nothing of it is imported or run.

    Raises:
        SyntaxError: It is no Python.
        RecursionError: It is nested more deeply than Python's own parser goes.
        MemoryError: The same.
        ValueError: The same, for null bytes.
    """
    with warnings.catch_warnings():
        # What the compiler finds odd in somebody's suite is not what was asked.
        warnings.simplefilter("ignore")
        tree = ast.parse(source.text, filename=source.name)
    path = PurePath(source.name).with_suffix("")
    parts = tuple(part for part in path.parts if part not in ("/", ".", ".."))
    module = Module(source.name, parts, Scope(None, tree))
    module.probes = "getsockname" in source.text or "connect_ex" in source.text
    _walk(tree, module)
    return module


def _children(kind: type[ast.AST]) -> tuple[str, ...]:
    found = tuple(name for name in kind._fields if name not in _LEFT_OUT)
    _CHILDREN[kind] = found
    return found


def _walk(tree: ast.Module, module: Module) -> None:
    stack: list[tuple[ast.AST, Link | None, Scope]] = [(tree, None, module.scope)]
    while stack:
        node, outer, scope = stack.pop()
        kind = type(node)
        if kind is ast.Name:
            if type(node.ctx) is not ast.Load:  # type: ignore[attr-defined]
                scope.bind(node.id, None)  # type: ignore[attr-defined]
            continue
        if kind is ast.Constant:
            _constant(node, outer, scope, module)  # type: ignore[arg-type]
            continue
        inner = scope
        skipped: ast.AST | None = None
        if kind is ast.Call:
            module.calls.append(Site(node, outer, scope))  # type: ignore[arg-type]
        elif kind is ast.Assign or kind is ast.AnnAssign:
            skipped = _assigned(node, outer, scope, module)  # type: ignore[arg-type]
        elif kind is ast.FunctionDef or kind is ast.AsyncFunctionDef:
            inner = _function(node, outer, scope, module)  # type: ignore[arg-type]
        elif kind is ast.ClassDef:
            inner = _class(node, scope)  # type: ignore[arg-type]
        elif kind is ast.Import or kind is ast.ImportFrom:
            _imported(node, module, scope)  # type: ignore[arg-type]
            continue
        elif kind is ast.JoinedStr:
            module.texts.append(Site(node, outer, scope))  # type: ignore[arg-type]
        elif kind is ast.Dict:
            module.dicts.append(Site(node, outer, scope))  # type: ignore[arg-type]
        elif kind is ast.Lambda:
            inner = Scope(scope, node)
            _parameters(node.args, inner)  # type: ignore[attr-defined]
        elif kind is ast.ExceptHandler and node.name:  # type: ignore[attr-defined]
            scope.bind(node.name, None)  # type: ignore[attr-defined]
        link = Link(node, outer)
        for name in _CHILDREN.get(kind) or _children(kind):
            child = getattr(node, name)
            if type(child) is list:
                for one in child:
                    if isinstance(one, ast.AST) and one is not skipped:
                        stack.append((one, link, inner))
            elif isinstance(child, ast.AST) and child is not skipped:
                stack.append((child, link, inner))


def _constant(node: ast.Constant, outer: Link | None, scope: Scope, module: Module) -> None:
    value = node.value
    if type(value) is not str or not 8 < len(value) < _TEXT_MAX or not _TELLING.search(value):
        return
    # The texts inside an f-string are parts of one.
    if outer is None or type(outer.node) is not ast.JoinedStr:
        module.texts.append(Site(node, outer, scope))


def _assigned(
    node: ast.Assign | ast.AnnAssign, outer: Link | None, scope: Scope, module: Module
) -> ast.AST | None:
    """Note an assignment; returns the target that need not be looked into."""
    target: ast.expr
    if isinstance(node, ast.Assign):
        if len(node.targets) != 1:
            return None
        target = node.targets[0]
    else:
        target = node.target
        if node.value is None:
            return target
    name = ""
    if isinstance(target, ast.Name):
        name = target.id
        scope.bind(name, node.value)
    elif isinstance(target, ast.Attribute):
        name = target.attr
        if isinstance(target.value, ast.Name) and target.value.id in ("self", "cls"):
            owner = enclosing_class(scope)
            if owner is not None:
                owner.bind(f"self.{name}", node.value)
    elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        name = target.slice.value if isinstance(target.slice.value, str) else ""
    if name:
        module.bindings.append(Site(node, outer, scope))
    return target if isinstance(target, ast.Name) else None


def enclosing_class(scope: Scope | None) -> Scope | None:
    """The names of the class that a method's scope is in."""
    while scope is not None and not isinstance(scope.own, ast.ClassDef):
        scope = scope.outer
    return scope


def _function(node: Function, outer: Link | None, scope: Scope, module: Module) -> Scope:
    scope.bind(node.name, None)
    if outer is not None and isinstance(outer.node, ast.Module):
        module.named[node.name] = node
    inner = Scope(scope, node)
    _parameters(node.args, inner)
    module.functions.append(Site(node, outer, scope))
    return inner


def _parameters(arguments: ast.arguments, scope: Scope) -> None:
    for one in (
        *(*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs),
        *(one for one in (arguments.vararg, arguments.kwarg) if one),
    ):
        scope.bind(one.arg, None)


def defaults(arguments: ast.arguments) -> list[Parameter]:
    """The parameters of a function, with their defaults."""
    plain = [*arguments.posonlyargs, *arguments.args]
    given: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults))
    given += arguments.defaults
    found = [
        Parameter(one.arg, default, at)
        for at, (one, default) in enumerate(zip(plain, given, strict=True))
    ]
    found += [
        Parameter(one.arg, default, None)
        for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return found


def _class(node: ast.ClassDef, scope: Scope) -> Scope:
    inner = Scope(scope, node)
    one = Class(node, inner, scope)
    scope.bind(node.name, None)
    scope.classes[node.name] = one
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            parameters = defaults(statement.args)
            one.parameters = [
                Parameter(name, default, None if at is None else at - 1)
                for name, default, at in parameters
                if at != 0
            ]
    if one.parameters is None and _is_record(node):
        one.parameters = [
            Parameter(statement.target.id, statement.value, at)
            for at, statement in enumerate(
                one for one in node.body if isinstance(one, ast.AnnAssign)
            )
            if isinstance(statement.target, ast.Name)
        ]
    return inner


def _is_record(node: ast.ClassDef) -> bool:
    for one in (*node.decorator_list, *node.bases):
        name = spelled(one.func if isinstance(one, ast.Call) else one)
        if _RECORD.search(name):
            return True
    return False


def field_default(value: ast.expr | None) -> ast.expr | None:
    """The default that ``field(default=8003)`` or ``Field(8003)`` stands for, or the value."""
    if not isinstance(value, ast.Call):
        return value
    if spelled(value.func).rpartition(".")[2] not in _FACTORY_NAMES:
        return value
    for keyword in value.keywords:
        if keyword.arg == "default":
            return keyword.value
        if keyword.arg in ("default_factory", "factory"):
            if isinstance(keyword.value, ast.Lambda):
                return keyword.value.body
            # What it gives is what calling it gives.
            call = ast.Call(func=keyword.value, args=[], keywords=[])
            return ast.copy_location(call, value)
    return value.args[0] if value.args else None


def spelled(node: ast.expr) -> str:
    """A dotted name as it is written; "" for anything else, ``?.name`` for an attribute of it."""
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        words.append(node.attr)
        node = node.value
    words.append(node.id if isinstance(node, ast.Name) else "?")
    return ".".join(reversed(words)) if len(words) > 1 or words[0] != "?" else ""


def _imported(node: ast.Import | ast.ImportFrom, module: Module, scope: Scope) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.asname:
                module.imports[alias.asname] = Import(alias.name, "")
            else:
                top = alias.name.partition(".")[0]
                module.imports.setdefault(top, Import(top, ""))
        return
    base = node.module or ""
    if node.level:
        above = module.parts[: len(module.parts) - node.level]
        base = ".".join((*above, *([node.module] if node.module else [])))
    for alias in node.names:
        module.imports[alias.asname or alias.name] = Import(base, alias.name)


def says_port(name: str) -> bool:
    """Whether a name is a port's, and not that of what is expected to be one."""
    return is_port_name(name) and not name.lower().startswith("expect")
