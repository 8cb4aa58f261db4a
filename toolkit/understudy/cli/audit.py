"""``understudy audit``: what of a test suite will collide with production."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from understudy.cli.options import print_json, print_table, units_option

if TYPE_CHECKING:
    from understudy.audit import Finding, Report, Unread

EXIT_FINDINGS = 1
EXIT_UNREAD = 3


def _list_rules(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from understudy.audit import RULES

        rows = [(rule.id, rule.name, rule.summary) for rule in RULES.values()]
        print_table(("ID", "RULE", "FOUND WHEN"), rows)
        ctx.exit()


def _split(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())


def _complete_rule(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from understudy.audit import RULES

    done, comma, begun = incomplete.rpartition(",")
    return [
        CompletionItem(f"{done}{comma}{rule.name}", help=rule.summary)
        for rule in RULES.values()
        if rule.name.startswith(begun)
    ]


@click.command()
@click.argument(
    "paths", metavar="PATH…", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
@click.option(
    "--select",
    multiple=True,
    callback=_split,
    shell_complete=_complete_rule,
    metavar="RULE,…",
    help="Only these rules: names, ids, or how ids begin (A1).",
)
@click.option(
    "--ignore",
    multiple=True,
    callback=_split,
    shell_complete=_complete_rule,
    metavar="RULE,…",
    help="Not these rules.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Pass by files and folders whose path or name is like this.",
)
@click.option(
    "--beside",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="Code that is not audited, but where its classes and constants are looked up.",
)
@click.option(
    "--baseline",
    "baseline_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Report only what this file does not hold.",
)
@click.option(
    "--write-baseline", is_flag=True, help="Write what is found to the baseline, and end with 0."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "github"]),
    default="table",
    show_default=True,
    help="github: annotations of a workflow's run.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json (docs/audit.md).")
@click.option(
    "--list-rules",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_rules,
    help="Print all rules and exit.",
)
@units_option
def audit(
    paths: tuple[Path, ...],
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    exclude: tuple[str, ...],
    beside: tuple[Path, ...],
    baseline_file: Path | None,
    write_baseline: bool,
    form: str,
    as_json: bool,
    units: Path | None,
) -> int:
    """Report what of a test suite will collide with production, and what to write instead.

    PATH… are files and folders. Python, shell, YAML, TOML and JSON are read, and nothing of it is
    imported or run. The exit code is 0 if nothing was found, 1 if something was, 3 if a file could
    not be read; the others are audited all the same.

    \b
    Examples:
      understudy audit tests
      understudy audit tests --beside src --select bound-port,A2
      understudy audit tests --baseline audit.json --write-baseline
      understudy audit tests --baseline audit.json --format github
    """
    from understudy import audit as auditing
    from understudy.errors import UnderstudyError, UsageError

    if write_baseline and baseline_file is None:
        raise click.UsageError("--write-baseline needs --baseline FILE.")
    try:
        rules = auditing.chosen(select, ignore)
        known = auditing.known(units=units)
    except UsageError as exc:
        raise click.UsageError(str(exc)) from exc
    report = auditing.audit(paths, known, beside=beside, exclude=exclude, rules=rules)
    findings: Sequence[Finding] = report.findings
    notes = [f"{report.ignored} ignored"] if report.ignored else []
    _show_unread(report.unread, form)
    if baseline_file is not None and write_baseline:
        _write(baseline_file, auditing.baseline.text(findings, baseline_file))
        click.echo(f"{baseline_file}: {_count(len(findings), 'finding')} written", err=True)
        return EXIT_UNREAD if report.unread else 0
    if baseline_file is not None:
        from understudy.cli import show_error

        try:
            compared = auditing.baseline.compare(findings, baseline_file, report.files)
        except UnderstudyError as exc:
            show_error(exc)
            return EXIT_UNREAD
        findings = compared.new
        notes += [f"{compared.known} in the baseline"] if compared.known else []
        if compared.gone:
            gone = f"{compared.gone} of the baseline are gone"
            click.echo(f"note: {gone}; --write-baseline makes it smaller", err=True)
    _show(findings, "json" if as_json else form)
    click.echo(_summary(findings, report, notes), err=True)
    if report.unread:
        return EXIT_UNREAD
    return EXIT_FINDINGS if findings else 0


def _show(findings: Sequence[Finding], form: str) -> None:
    from understudy.audit import RULES

    if form == "json":
        print_json([one.to_json() for one in findings])
    elif form == "github":
        for one in findings:
            title = _escaped(f"{RULES[one.rule].id} {one.rule}", more=True)
            place = f"file={_escaped(one.file, more=True)},line={one.line}"
            text = _escaped(f"{one.text}\nInstead: {one.instead}")
            click.echo(f"::error {place},title={title}::{text}")
    elif findings:
        header = ("WHERE", "ID", "RULE", "FOUND", "INSTEAD")
        print_table(
            header,
            [
                (f"{one.file}:{one.line}", RULES[one.rule].id, one.rule, one.text, one.instead)
                for one in map(_printable, findings)
            ],
        )


def _printable(one: Finding) -> Finding:
    """Without what would move a terminal's cursor: the text may be the suite's."""
    from dataclasses import replace

    return replace(one, file=_plain(one.file), text=_plain(one.text), instead=_plain(one.instead))


def _plain(text: str) -> str:
    return "".join(
        character if character.isprintable() else "…" if character == "\0" else "?"
        for character in text
    )


def _show_unread(unread: Sequence[Unread], form: str) -> None:
    from understudy.cli import show_error
    from understudy.errors import UnderstudyError

    for one in unread:
        show_error(UnderstudyError(_plain(str(one))))
        if form == "github":
            line = f",line={one.line}" if one.line else ""
            click.echo(f"::error file={_escaped(one.file, more=True)}{line}::{_escaped(str(one))}")


def _escaped(text: str, *, more: bool = False) -> str:
    """As workflow commands want it (GitHub's actions/toolkit, command.ts)."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace("\0", "…")
    return text.replace(":", "%3A").replace(",", "%2C") if more else text


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = file.with_name(f".{file.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def _summary(findings: Sequence[Finding], report: Report, notes: list[str]) -> str:
    files = _count(len(report.files), "file")
    extra = f" ({', '.join(notes)})" if notes else ""
    if not findings:
        return f"Nothing found in {files}{extra}."
    where = len({one.file for one in findings})
    return f"{_count(len(findings), 'finding')} in {where} of {files}{extra}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
