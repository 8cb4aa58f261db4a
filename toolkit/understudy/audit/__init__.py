"""Audit a test suite without running it: what will collide with production, and what to write.

Python is read by its syntax tree, shell, YAML, TOML and JSON by their structure. docs/audit.md
explains the rules one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from understudy.audit import baseline, facts, ignores, python, shell, structured
from understudy.audit.files import Kind, Source, sources
from understudy.audit.known import Known, known
from understudy.audit.resolving import Project
from understudy.audit.rules import RULES, Finding, Rule, Unread, chosen

__all__ = [
    "Finding",
    "Known",
    "Report",
    "Rule",
    "RULES",
    "Unread",
    "audit",
    "baseline",
    "chosen",
    "known",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an audit has found.

    Attributes:
        findings: By file and line.
        unread: Files that could not be audited.
        files: Those that were.
        ignored: How many findings a comment ignores.
    """

    findings: Sequence[Finding]
    unread: Sequence[Unread]
    files: Sequence[str]
    ignored: int


def audit(
    paths: Iterable[Path],
    known: Known,
    *,
    beside: Iterable[Path] = (),
    exclude: Sequence[str] = (),
    rules: frozenset[str] = frozenset(RULES),
) -> Report:
    """Audit files, and those in folders; nothing of them is imported or run.

    Args:
        paths: Files and folders.
        known: What the definitions know.
        beside: Files and folders that are only looked names up in: the project's own code.
        exclude: Patterns of paths to pass by.
        rules: The names of the rules to apply.
    """
    texts: dict[str, Source] = {}
    unread: list[Unread] = []
    modules: list[facts.Module] = []
    found: dict[str, list[Finding]] = defaultdict(list)
    for one in sources(paths, exclude=exclude):
        if isinstance(one, Unread):
            unread.append(one)
            continue
        read = _read(one, known)
        if isinstance(read, Unread):
            unread.append(read)
            continue
        texts[one.name] = one
        if isinstance(read, facts.Module):
            modules.append(read)
        else:
            found[one.name] += read
    others = list(_modules(beside, exclude, texts))
    project = Project([*modules, *others])
    for module in (*modules, *others):
        python.find_helpers(module, project)
    for module in modules:
        found[module.file] += python.audit(module, project, known)
    for module in modules:
        found[module.file] += python.constants(module, project, known)
    comments = ignores.Comments(rules)
    ignored = 0
    for name, source in texts.items():
        applied = [finding for finding in found[name] if finding.rule in rules]
        found[name] = comments.left(source, applied)
        ignored += len(applied) - len(found[name])
    findings: list[Finding] = []
    for name, source in texts.items():
        findings += _with_lines(source, [*found[name], *comments.about(source)])
    return Report(findings=findings, unread=unread, files=list(texts), ignored=ignored)


def _read(source: Source, known: Known) -> facts.Module | list[Finding] | Unread:
    """A Python file's facts, or all that there is to find in another one."""
    try:
        match source.kind:
            case Kind.PYTHON:
                return facts.read(source)
            case Kind.SHELL:
                return list(shell.audit(source.text, known, source.name))
            case Kind.YAML:
                entries = structured.yaml_entries(source.text)
            case Kind.TOML:
                entries = structured.toml_entries(source.text)
            case Kind.JSON:
                entries = structured.json_entries(source.text)
        return list(structured.audit(entries, known, source.name))
    except SyntaxError as exc:
        return Unread(file=source.name, line=exc.lineno or 0, reason=f"not Python: {exc.msg}")
    except (shell.ShellError, structured.StructureError) as exc:
        return Unread(file=source.name, line=exc.line, reason=str(exc))
    except (RecursionError, MemoryError):
        return Unread(file=source.name, reason="nested too deeply")
    except ValueError as exc:
        return Unread(file=source.name, reason=str(exc))


def _modules(
    beside: Iterable[Path], exclude: Sequence[str], texts: dict[str, Source]
) -> Iterable[facts.Module]:
    """What the project's own code says; what of it cannot be read says nothing."""
    for one in sources(beside, exclude=exclude):
        if isinstance(one, Source) and one.kind is Kind.PYTHON and one.name not in texts:
            try:
                yield facts.read(one)
            except (SyntaxError, RecursionError, MemoryError, ValueError):
                continue


def _with_lines(source: Source, findings: list[Finding]) -> list[Finding]:
    lines = source.text.split("\n")
    return [
        replace(
            one,
            source=lines[one.line - 1].strip()[:200] if one.line <= len(lines) else "",
            line=min(one.line, len(lines)),
        )
        for one in sorted(findings, key=lambda one: (one.line, RULES[one.rule].id, one.text))
    ]
