#!/usr/bin/python3
"""Writes the manual pages: packaging/man/manpages.py DIRECTORY (…/share/man)

understudy(1) and a page for each command come from the texts of ``--help`` and from
understudy.1.md beside this, understudy.service-definition(5) from docs/service-definition.md.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
CHECKOUT: Final = HERE.parents[1]

sys.dont_write_bytecode = True
sys.path.insert(0, str(CHECKOUT / "toolkit"))

import click  # noqa: E402

from understudy.cli import COMMANDS, cli  # noqa: E402

MAIN: Final = "understudy"
DEFINITION: Final = "understudy.service-definition"

_INLINE = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<bold>[^*]+)\*\*|\*(?P<italic>[^*\s][^*]*)\*"
    r"|\[(?P<link>[^\]]+)\]\((?P<target>[^)]+)\)|(?P<page>\b[a-z][\w.-]*)\((?P<section>[1-8])\)"
)
_BULLET = re.compile(r"(?P<mark>-|[0-9]+\.) +(?P<text>.*)")
_FENCE = "```"
_OTHERS = re.compile(r"```|\||#|- ")
"""Lines that end a paragraph."""


# -- roff(7) -----------------------------------------------------------------------------------


def escape(text: str) -> str:
    """Text that roff prints as it is: no escape, no request, hyphens that can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("^", "\\(ha")
    text = (
        text.replace("~", "\\(ti").replace("`", "\\(ga").replace("'", "\\(aq").replace('"', "\\(dq")
    )
    text = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)
    return re.sub(r"^(?=\.)", r"\\&", text, flags=re.MULTILINE)


def bold(text: str) -> str:
    """Text to be typed as it is."""
    return f"\\fB{escape(text)}\\fR"


def italic(text: str) -> str:
    """Text in whose place something is put."""
    return f"\\fI{escape(text)}\\fR"


def inline(text: str) -> str:
    """A piece of Markdown within a paragraph: code, emphasis, links, names of pages."""
    out, end = [], 0
    for found in _INLINE.finditer(text):
        out.append(escape(text[end : found.start()]))
        end = found.end()
        if code := found["code"]:
            out.append(bold(code))
        elif strong := found["bold"]:
            out.append(f"\\fB{inline(strong)}\\fR" if "`" not in strong else inline(strong))
        elif emphasis := found["italic"]:
            out.append(italic(emphasis))
        elif page := found["page"]:
            out.append(f"{bold(page)}({found['section']})")
        else:
            out.append(inline(found["link"]))
            document = found["target"].partition("#")[0]
            out.append(f" ({escape(document)})" if document else "")
    out.append(escape(text[end:]))
    return re.sub(r"^(?=\.)", r"\\&", "".join(out))


def literal(lines: Sequence[str]) -> list[str]:
    """Lines to be printed as they are, a little indented."""
    return [".PP", ".RS 4", ".nf", *map(escape, lines), ".fi", ".RE"]


def title(name: str, section: int) -> list[str]:
    """The head of a page."""
    built = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    date = time.strftime("%Y-%m-%d", time.gmtime(built))
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return [
        '.\\" Made by packaging/man/manpages.py: change the texts that it reads.',
        f'.TH "{escape(name.upper())}" {section} "{date}" "{MAIN} {project["version"]}" "{MAIN}"',
        ".nh",
        ".ad l",
    ]


# -- Markdown, as far as our documents use it --------------------------------------------------


def markdown(text: str) -> list[str]:
    """The roff of a document, without its title (``# …``)."""
    return list(_blocks(text.splitlines()))


def _blocks(lines: Sequence[str]) -> Iterator[str]:
    fresh = False  # right after a heading there is no .PP
    rest = list(lines)
    while rest:
        line = rest.pop(0)
        if not line.strip() or line.startswith("# "):
            continue
        if line.startswith("## "):
            yield f".SH {inline(line[3:] if '`' in line else line[3:].upper())}"
            fresh = True
            continue
        if line.startswith("###"):
            yield f".SS {inline(line.lstrip('# '))}"
            fresh = True
            continue
        if line.startswith(_FENCE):
            end = next(n for n, other in enumerate(rest) if other.startswith(_FENCE))
            block, rest = rest[:end], rest[end + 1 :]
            yield from literal(block)[1 if fresh else 0 :]
        elif line.startswith("|"):
            rows = [line, *_take(rest, lambda other: other.startswith("|"))]
            yield from _table([_cells(row) for row in rows])
        elif found := _BULLET.match(line):
            words = [found["text"], *_take(rest, lambda other: other.startswith("  "))]
            mark = "\\(bu" if found["mark"] == "-" else escape(found["mark"])
            yield f".IP {mark} 4"
            yield _joined(words)
        else:
            words = [line, *_take(rest, lambda other: other.strip() and not _OTHERS.match(other))]
            if not fresh:
                yield ".PP"
            yield _joined(words)
        fresh = False


def _take(lines: list[str], wanted: Callable[[str], object]) -> list[str]:
    """Take lines off the front, as long as they are wanted."""
    taken = []
    while lines and wanted(lines[0]):
        taken.append(lines.pop(0))
    return taken


def _joined(lines: Sequence[str]) -> str:
    return inline(" ".join(line.strip() for line in lines))


def _cells(row: str) -> list[str]:
    """A row's cells; a bar in code is none that separates them."""
    whole = re.sub(r"`[^`]*`", lambda code: code[0].replace("|", "\0"), row.strip().strip("|"))
    return [cell.strip().replace("\0", "|") for cell in whole.split("|")]


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A list of terms: a terminal has no room for columns of sentences."""
    header, _rule, *body = rows
    for term, *cells in body:
        yield ".TP"
        if len(cells) == 2 and header[1] == "type":
            yield f"{inline(term)} ({inline(cells[0])})"
            yield inline(cells[1])
        elif len(cells) == 1:
            yield inline(term)
            yield inline(cells[0])
        else:
            yield inline(term)
            said = zip(header[1:], cells, strict=True)
            yield "; ".join(f"{inline(head)}: {inline(cell)}" for head, cell in said if cell) + "."


# -- click's commands --------------------------------------------------------------------------


def described(command: click.Command) -> tuple[list[list[str]], list[str]]:
    """The paragraphs and the examples of a command's help text."""
    paragraphs, examples = [], []
    for block in inspect.cleandoc(command.help or "").split("\n\n"):
        lines = block.splitlines()
        kept = lines[0] == "\b"
        lines = lines[1:] if kept else lines
        if kept and lines[0] == "Examples:":
            examples = inspect.cleandoc("\n".join(["", *lines[1:]])).splitlines()
        else:
            paragraphs.append(["\b", *lines] if kept else lines)
    return paragraphs, examples


def prose(paragraphs: Sequence[Sequence[str]]) -> Iterator[str]:
    """The paragraphs of a help text."""
    for lines in paragraphs:
        if lines[0] == "\b":
            yield from literal(lines[1:])
        else:
            yield ".PP"
            yield _joined(lines)


def synopsis(context: click.Context) -> str:
    """The usage line: names bold, words to be replaced in italics."""
    words = " ".join(context.command.collect_usage_pieces(context))
    marked = re.sub(
        r"[A-Z][A-Z_]+|…|--?[a-z][a-z-]*|[a-z]+|[^A-Za-z…-]+|.",
        lambda word: (
            italic(word[0])
            if word[0].isupper()
            else bold(word[0])
            if word[0][0] in "-" or word[0].islower()
            else escape(word[0])
        ),
        words,
    )
    return f"{bold(context.command_path)} {marked}"


def options(context: click.Context) -> Iterator[str]:
    """The options of a command."""
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        form, text = record
        yield ".TP"
        names, *rest = re.split(r" (?=[^-/,]\S*$|'|\[|[A-Z])", form, maxsplit=1)
        yield ", ".join(map(bold, names.split(", "))) + "".join(f" {italic(one)}" for one in rest)
        yield escape(re.sub(r"\s+", " ", text).strip())


def variables(context: click.Context) -> Iterator[str]:
    """The environment variables that stand for options."""
    for parameter in context.command.get_params(context):
        if isinstance(parameter.envvar, str):
            yield ".TP"
            yield bold(parameter.envvar)
            yield f"What {bold(parameter.opts[0])} is where it is not given."


def command_body(context: click.Context, *, section: str) -> Iterator[str]:
    """What is said of a command, below headings of a kind (SH or SS)."""
    command = context.command
    paragraphs, examples = described(command)
    for heading, lines in (
        ("SYNOPSIS", [synopsis(context)]),
        ("DESCRIPTION", list(prose(paragraphs))),
        ("OPTIONS", list(options(context))),
        ("ENVIRONMENT", list(variables(context))),
        ("EXAMPLES", literal(examples) if examples else []),
    ):
        if lines:
            yield f".{section} {heading}"
            yield from lines[1:] if lines[0] == ".PP" else lines


def subcommands(context: click.Context) -> Iterator[click.Context]:
    """The commands of a group, in the order of its help text."""
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield click.Context(command, info_name=name, parent=context)


def main_page(context: click.Context) -> Iterator[str]:
    """understudy(1)."""
    paragraphs, examples = described(cli)
    written = markdown((HERE / "understudy.1.md").read_text())
    place = written.index(".SH COMMANDS")
    yield from title(MAIN, 1)
    yield ".SH NAME"
    yield f"{MAIN} \\- {escape(_noun(paragraphs[0]))}"
    yield ".SH SYNOPSIS"
    yield synopsis(context)
    yield from written[:place]
    yield ".SH COMMANDS"
    for name, (_module, _attribute, text) in COMMANDS.items():
        yield ".TP"
        yield f"{bold(f'{MAIN}-{name}')}(1)"
        yield escape(text)
    yield ".SH OPTIONS"
    yield from options(context)
    yield ".SH EXAMPLES"
    yield from literal(examples)[1:]
    yield from written[place + 1 :]


def command_page(context: click.Context) -> Iterator[str]:
    """understudy-COMMAND(1), with the commands of a group."""
    name = context.command_path.replace(" ", "-")
    yield from title(name, 1)
    yield ".SH NAME"
    yield f"{escape(name)} \\- {escape(_noun([COMMANDS[str(context.info_name)][2]]))}"
    yield from command_body(context, section="SH")
    for one in subcommands(context):
        yield f".SH {escape(one.command_path).upper()}"
        yield from (line for line in command_body(one, section="SS") if line != ".SS SYNOPSIS")
    yield ".SH EXIT STATUS"
    yield f"As {bold(MAIN)}(1) says."
    yield ".SH SEE ALSO"
    yield f"{bold(MAIN)}(1), {bold(DEFINITION)}(5)"


def definition_page() -> Iterator[str]:
    """understudy.service-definition(5)."""
    text = (CHECKOUT / "docs/service-definition.md").read_text()
    yield from title(DEFINITION, 5)
    yield ".SH NAME"
    yield f"{escape(DEFINITION)} \\- what understudy knows of a service"
    yield ".SH DESCRIPTION"
    yield from markdown(text)[1:]
    yield ".SH SEE ALSO"
    pages = [f"{bold(f'{MAIN}-{name}')}(1)" for name in ("services", "render", "check", "spawn")]
    yield ", ".join([f"{bold(MAIN)}(1)", *pages, f"{bold('systemd.unit')}(5)"])


def _noun(lines: Sequence[str]) -> str:
    """A short description as the NAME section has it: no capital, no full stop."""
    text = " ".join(lines).rstrip(".")
    return text[0].lower() + text[1:]


def write(directory: Path, name: str, section: int, lines: Iterator[str]) -> None:
    """Write a page to where man(1) looks for it."""
    file = directory / f"man{section}" / f"{name}.{section}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Write all pages."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("Usage: packaging/man/manpages.py DIRECTORY")
    directory = Path(sys.argv[1])
    context = click.Context(cli, info_name=MAIN, **cli.context_settings)
    write(directory, MAIN, 1, main_page(context))
    for one in subcommands(context):
        write(directory, one.command_path.replace(" ", "-"), 1, command_page(one))
    write(directory, DEFINITION, 5, definition_page())


if __name__ == "__main__":
    main()
