"""The manual pages: made of the texts of --help, and as man(1) wants them."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
from tests.packaging.support import CHECKOUT, run, tool

from understudy.cli import COMMANDS, cli

GENERATOR = CHECKOUT / "packaging/man/manpages.py"
TERMINAL = os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": "80", "TERM": "dumb"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages."""
    made = tmp_path_factory.mktemp("man")
    run(sys.executable, GENERATOR, made)
    return made


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The generator as a module."""
    spec = importlib.util.spec_from_file_location("manpages", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(page: Path) -> str:
    """A page as a terminal shows it, without its head and foot, in one line."""
    text = run("mandoc", "-T", "utf8", "-O", "width=1000", page).stdout
    return re.sub(r".\x08", "", text)


def test_every_command_has_a_page(pages: Path) -> None:
    names = {path.name for path in pages.rglob("*.?")}
    assert names == {
        "understudy.1",
        "understudy.service-definition.5",
        *(f"understudy-{name}.1" for name in COMMANDS),
    }


def test_nobody_has_anything_to_say_against_them(pages: Path) -> None:
    for page in sorted(pages.rglob("*.?")):
        for command in (
            (tool("mandoc"), "-T", "lint", "-W", "warning", page),
            (tool("groff"), "-man", "-ww", "-z", "-T", "utf8", page),
        ):
            done = run(*command)
            assert (done.stdout, done.stderr) == ("", ""), page
    for page in (pages / "man1/understudy.1", pages / "man5/understudy.service-definition.5"):
        done = run("man", "--warnings", "--local-file", page, env=TERMINAL)
        assert done.stderr == ""
        assert "understudy" in done.stdout


def test_a_page_has_all_that_help_has(pages: Path) -> None:
    context = click.Context(cli, info_name="understudy")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        words = shown(pages / f"man1/understudy-{name}.1").split()
        with click.Context(command, info_name=f"understudy {name}") as inner:
            inner.max_content_width = inner.terminal_width = 400
            helped = command.get_help(inner).replace("Usage:", "").replace("`", "")
        missing = [word for word in helped.split() if word not in words]
        assert set(missing) <= {"Options:", "Examples:", "Commands:"}  # headings are others


def test_spawns_page_has_its_sections_in_order(pages: Path) -> None:
    headings = re.findall(r"^\.SH (.*)$", (pages / "man1/understudy-spawn.1").read_text(), re.M)
    assert headings == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "ENVIRONMENT", "EXAMPLES"),
        *("EXIT STATUS", "SEE ALSO"),
    ]


def test_main_page_names_commands_variables_and_files(pages: Path) -> None:
    text = shown(pages / "man1/understudy.1")
    for name in COMMANDS:
        assert f"understudy-{name}(1)" in text
    read = {
        variable
        for path in (CHECKOUT / "toolkit/understudy/cli").rglob("*.py")
        for variable in re.findall(r'envvar="(\w+)"', path.read_text())
    }
    assert read
    for variable in {*read, "UNDERSTUDY_PORT_RANGE", "UNDERSTUDY_MEDIAMTX"}:
        assert variable in text
    for section in ("EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"):
        assert f"\n{section}\n" in text


def test_definition_page_has_every_key_of_the_document(pages: Path) -> None:
    document = (CHECKOUT / "docs/service-definition.md").read_text()
    text = shown(pages / "man5/understudy.service-definition.5")
    keys = re.findall(r"^\| `([^`]+)`", document, re.MULTILINE)
    assert {"production", "next-to", "argv"} <= set(keys)
    assert [key for key in keys if not re.search(rf"^ +{re.escape(key)}\b", text, re.M)] == []
    for fence in re.findall(r"^```\w*\n(.*?)^```", document, re.MULTILINE | re.DOTALL):
        for line in fence.splitlines():
            assert line in text


@pytest.mark.parametrize(
    "line",
    [
        ".so /etc/passwd",
        "'quoted' at the beginning",
        r"a \backslash and \fBno escape",
        "--all - ^~`",
    ],
)
def test_text_is_never_read_as_roff(line: str, generator: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.1"
    text = [".TH P 1 2026-01-01 p p", ".SH NAME", "p \\- page", ".SH TEXT", generator.escape(line)]
    page.write_text("\n".join([*text, *generator.literal([line]), ""]))
    words = shown(page)
    assert words.count(line) == 2
    assert run("mandoc", "-T", "lint", "-W", "warning", page).stdout == ""


def test_markdown_as_our_documents_use_it(generator: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.1"
    document = """# Left out

## The "heading"'s

A paragraph with `code`, **bold**, *italics*, [a link](there.md#part), systemd.unit(5)
over two lines. [Within](#here).

| key | type | meaning |
|---|---|---|
| `a` or `b` | string, `x|y` | the first |

1. one
2. two
   goes on

```ini
[Unit]
  Indented=yes
```
"""
    page.write_text("\n".join([".TH P 1 2026-01-01 p p", *generator.markdown(document), ""]))
    lines = [line.rstrip() for line in shown(page).splitlines()[1:-1]]
    assert [line for line in lines if line] == [
        'THE "HEADING"\'S',
        "       A paragraph with code, bold, italics, a link (there.md), systemd.unit(5) over two"
        " lines. Within.",
        "       a or b (string, x|y)",
        "              the first",
        "       1.  one",
        "       2.  two goes on",
        "           [Unit]",
        "             Indented=yes",
    ]
    assert r"\fBsystemd.unit\fR(5)" in page.read_text()
