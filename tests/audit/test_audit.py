"""The audit as a whole: what it bears, what it never does, its command line and its baseline."""

from __future__ import annotations

import ast
import io
import json
import os
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
from click.shell_completion import ShellComplete
from hypothesis import given
from hypothesis import strategies as st

from understudy.audit import RULES, Report, audit, ignores, known
from understudy.audit.files import Kind, Source, sources
from understudy.cli import cli as group
from understudy.cli import main

ROOT = Path(__file__).parents[2]
LEGACY = ROOT / "tests/examples/legacy"
KNOWN = known()
IGNORES_MAX = 5

BOUND = 'import socket\nsocket.create_server(("", 8003))\n'


def look(*paths: Path, **options: object) -> Report:
    return audit(paths, KNOWN, **options)  # type: ignore[arg-type]


class Result(NamedTuple):
    """What the command line has done; its output is what it prints and then what it says."""

    exit_code: int
    output: str
    stdout: str


def run(*arguments: str | Path) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(["audit", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return Result(ended.value.code, out.getvalue() + err.getvalue(), out.getvalue())


def errors(report: Report) -> list[str]:
    return [str(one) for one in report.unread]


# On this project.


def test_this_project_s_tests_have_no_finding_and_few_ignores() -> None:
    exclude = ["tests/examples/*", "tests/audit/cases"]
    report = look(ROOT / "tests", ROOT / "packaging", exclude=exclude)
    assert not report.unread
    assert [f"{one.file}:{one.line} {one.rule}" for one in report.findings] == []
    comments = [
        (source.name, comment)
        for source in sources([ROOT / "tests", ROOT / "packaging"], exclude=exclude)
        if isinstance(source, Source)
        for comment in ignores.read(source)
    ]
    assert 0 < len(comments) <= IGNORES_MAX, comments


def test_the_suite_of_old_is_told_what_to_change() -> None:
    report = look(LEGACY)
    assert not report.unread
    found = Counter(one.rule for one in report.findings)
    assert found["free-port-helper"] == 1
    assert found["free-port-call"] >= 1
    assert found["port-skip"] >= 4
    assert found["connected-port"] >= 4
    assert found["port-argument"] >= 3
    assert found["port-default"] >= 3
    assert found["hidden-default"] >= 1
    places = {(Path(one.file).name, one.source, one.rule) for one in report.findings}
    assert ("conftest.py", "def find_free_port():", "free-port-helper") in places
    # Asking after production is no fault.
    assert not any("is-active" in one.source for one in report.findings)


# What it bears.


def test_a_file_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "conftest.py").write_text(f"open({str(trace)!r}, 'w')\n{BOUND}")
    (tmp_path / "run.sh").write_text(f"touch {trace}\n")
    assert [one.rule for one in look(tmp_path).findings] == ["bound-port"]
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.py", b"def f(:\n", "x.py:1': not Python: invalid syntax"),
        ("x.py", b"x = '\xff'\n", "x.py': "),
        ("x.py", b"x = 1\0\n", "x.py': binary"),
        ("x.py", b"# coding: nonsense\n", "x.py': unknown encoding: nonsense"),
        ("x.py", b"(" * 5000 + b")" * 5000, "x.py"),
        ("x.py", b"-" * 200_000 + b"1", "x.py': nested too deeply"),
        ("x.json", b"{", "x.json:1': not JSON: "),
        ("x.json", b"[" * 100_000 + b"]" * 100_000, "x.json': nested too deeply"),
        ("x.json", b"[" + b"9" * 5000 + b"]", "x.json': not JSON: "),
        ("x.toml", b"a = \n", "x.toml:1': not TOML: "),
        ("x.toml", b"a = 1\nb = [\n", "x.toml"),
        ("x.yml", b"a:\n\tb: 1\n", "x.yml:2': not YAML: a tab cannot indent"),
        ("x.yml", b"a: [1,\n", "x.yml:1': not YAML: a bracket is not closed"),
        ("x.yml", b"a: 'b\n", "x.yml:1': not YAML: a quote is not closed"),
        ("x.sh", b"echo 'a\n", "x.sh:1': a ' is not closed"),
        ("x.sh", b'\necho "a\n', "x.sh:2': a \" is not closed"),
        ("x.sh", b"\x7fELF\0\0", "x.sh': binary"),
        ("x.yaml", "ä".encode("latin-1"), "x.yaml': not utf-8: "),
    ],
)
def test_what_cannot_be_read_is_an_error_and_the_rest_is_audited(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "y.py").write_text(BOUND)
    report = look(tmp_path)
    assert [one.rule for one in report.findings] == ["bound-port"]
    [error] = errors(report)
    assert error.startswith(f"Cannot audit '{tmp_path}/")
    assert message in error


def test_other_encodings_and_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(f"# coding: latin-1\n# ä\n{BOUND}".encode("latin-1"))
    (tmp_path / "b.py").write_bytes(BOUND.replace("\n", "\r\n").encode("utf-8-sig"))
    (tmp_path / "c.py").write_bytes(b"x = '\x0c'\n" + BOUND.encode())
    report = look(tmp_path)
    assert [(Path(one.file).name, one.line) for one in report.findings] == [
        ("a.py", 4),
        ("b.py", 2),
        ("c.py", 3),
    ]


def test_ten_megabytes_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_bytes(b"[" + b"8003," * 2_000_000 + b"1]")
    (tmp_path / "y.py").write_text(BOUND)
    began = time.monotonic()
    report = look(tmp_path)
    assert time.monotonic() - began < 2
    assert len(report.findings) == 1
    [error] = errors(report)
    assert "larger than 4 MiB; --exclude 'large.json' passes it by" in error
    assert not look(tmp_path, exclude=["large.json"]).unread


def test_symbolic_links_that_lead_nowhere_new_are_borne(tmp_path: Path) -> None:
    (tmp_path / "loop.py").symlink_to("loop.py")
    (tmp_path / "gone.py").symlink_to("nowhere.py")
    (tmp_path / "folder").symlink_to(".")
    (tmp_path / "a.py").write_text(BOUND)
    (tmp_path / "same.py").symlink_to("a.py")
    report = look(tmp_path)
    assert [Path(one.file).name for one in report.findings] == ["a.py"]
    assert [error.partition(": ")[2] for error in errors(report)] == [
        "No such file or directory",
        "Too many levels of symbolic links",
    ]


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.py")
    os.mkfifo(tmp_path / "x")
    assert [error.partition(": ")[2] for error in errors(look(tmp_path))] == ["not a regular file"]


def test_long_chains_and_deep_blocks_are_no_recursion(tmp_path: Path) -> None:
    long = " + ".join(["1"] * 900)
    deep = "".join(f"{' ' * at}if x:\n" for at in range(90)) + " " * 90 + "x = 1\n"
    (tmp_path / "x.py").write_text(f"x = {long}\n{deep}{BOUND}")
    assert [one.rule for one in look(tmp_path).findings] == ["bound-port"]


def test_constants_that_double_take_no_time(tmp_path: Path) -> None:
    lines = [f"a{at} = a{at - 1} + a{at - 1}\n" for at in range(1, 60)]
    text = f"import socket\na0 = 'x'\n{''.join(lines)}socket.create_server(('', a59))\n"
    (tmp_path / "x.py").write_text(text)
    began = time.monotonic()
    assert not look(tmp_path).findings
    assert time.monotonic() - began < 2


def test_names_that_stand_for_each_other_end(tmp_path: Path) -> None:
    text = "import socket\na = b\nb = a\nsocket.create_server(('', a))\n"
    (tmp_path / "x.py").write_text(text + "class A(B): pass\nclass B(A): pass\nA()\nB(1)\n")
    assert not look(tmp_path).findings


def test_virtual_environments_and_what_tools_leave_are_passed_by(tmp_path: Path) -> None:
    for folder in ("env", "node_modules", ".tox", "__pycache__"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.py").write_text(BOUND)
    (tmp_path / "env/pyvenv.cfg").touch()
    assert not look(tmp_path).files


def test_what_is_only_beside_is_looked_up_and_not_audited(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/config.py").write_text("class Config:\n  def __init__(s, port=8003): 0\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text("from src.config import Config\nConfig()\n")
    assert not look(tmp_path / "tests").findings
    [finding] = look(tmp_path / "tests", beside=[tmp_path / "src"]).findings
    assert finding.rule == "hidden-default"
    assert finding.text == "Config() leaves port at 8003 (camera-service's health)"


PIECES = st.sampled_from(
    [
        *("8003", "9997", "port", "PORT", "=", "(", ")", "[", "]", "{", "}", ":", ",", "\n", " "),
        *("'", '"', "f'", "$", "${", "$(", "`", "<<", "EOF", "|", "&", ";", "#", "- ", "\n  "),
        *("bind", "socket", ".", "self", "class A:", "def f(", "import x", "localhost:", "http://"),
        *("systemctl", "restart", "mediamtx", "sleep", "while", "True", "*", "**", "lambda", "%s"),
        *("understudy: ignore[", "ignore-file", "run: |", "---", "&a", "!t", "\\", "\t", "ä", "\0"),
    ]
)
TEXTS = st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=40).map("".join))


@pytest.mark.parametrize("kind", list(Kind))
def test_no_text_is_too_much(kind: Kind) -> None:
    suffix = {Kind.PYTHON: "py", Kind.SHELL: "sh", Kind.YAML: "yml"}.get(kind, kind.value)
    folder = ROOT if ROOT.is_dir() else Path()
    assert folder

    @given(TEXTS)
    def check(text: str) -> None:
        from understudy import audit as auditing
        from understudy.audit import rules

        source = Source(f"x.{suffix}", kind, text.encode("utf-8", "replace"), text)
        read = auditing._read(source, KNOWN)
        if isinstance(read, list):
            assert all(1 <= one.line <= text.count("\n") + 2 for one in read)
        elif not isinstance(read, rules.Unread):
            ignores.read(source)

    check()


NAMES = st.sampled_from(["port", "PORT", "bind", "socket", "Config", "self", "time", "x"])
CONSTANTS = st.sampled_from(
    ["8003", "9997", "''", "'http://localhost" + ":9997'", "':9997'", "None"]
)


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, inner).map(lambda two: f"({two[0]} + {two[1]})"),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}, {two[1]})"),
        st.tuples(inner, NAMES).map(lambda two: f"{two[0]}.{two[1]}"),
        st.tuples(inner, inner).map(lambda two: f"{two[0]}({two[1]})"),
        st.tuples(inner, NAMES, inner).map(lambda three: f"{three[0]}(*{three[2]}, {three[1]}=1)"),
        st.tuples(NAMES, inner).map(lambda two: f"time.sleep({two[0]}={two[1]}, **{two[1]})"),
        st.tuples(inner, inner).map(lambda two: f"{{{two[0]}: {two[1]}, **{two[1]}}}"),
        st.tuples(NAMES, inner).map(lambda two: f"(lambda {two[0]}={two[1]}: {two[1]})"),
        inner.map(lambda one: f"[{one} for x in {one} if {one}]"),
        inner.map(lambda one: f"subprocess.run([{one}, {one}])"),
        inner.map(lambda one: f"pytest.skip({one})"),
        inner.map(lambda one: f"({one} % {one}).format({one})"),
        NAMES.map(lambda name: f"f'http://{{{name}}}:{{{name}}}/x'"),
    )


EXPRESSIONS = st.recursive(st.one_of(NAMES, CONSTANTS), _grown, max_leaves=12)
STATEMENTS = st.one_of(
    EXPRESSIONS,
    st.tuples(NAMES, EXPRESSIONS).map(lambda two: f"{two[0]} = {two[1]}"),
    st.tuples(NAMES, EXPRESSIONS).map(lambda two: f"self.{two[0]}: {two[1]} = {two[1]}"),
    st.tuples(NAMES, EXPRESSIONS).map(
        lambda two: f"def {two[0]}(x={two[1]}, *, y={two[1]}): {two[1]}"
    ),
    st.tuples(NAMES, EXPRESSIONS).map(
        lambda two: f"class {two[0]}({two[1]}): port: int = {two[1]}"
    ),
    st.tuples(EXPRESSIONS, EXPRESSIONS).map(lambda two: f"while {two[0]}: time.sleep({two[1]})"),
    NAMES.map(lambda name: f"from {name} import {name}"),
    NAMES.map(lambda name: f"from . import {name}"),
)


@given(st.lists(STATEMENTS, max_size=6).map("\n".join))
def test_no_syntax_tree_is_too_much(text: str) -> None:
    from understudy.audit import facts, python
    from understudy.audit.resolving import Project

    try:
        ast.parse(text)
    except SyntaxError:
        return
    module = facts.read(Source("x.py", Kind.PYTHON, text.encode(), text))
    project = Project([module])
    python.find_helpers(module, project)
    found = [*python.audit(module, project, KNOWN), *python.constants(module, project, KNOWN)]
    assert all(one.rule in RULES and one.text and one.instead for one in found)


# The command.


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text(BOUND)
    return tmp_path


def test_a_finding_is_a_row_with_what_to_write_instead(suite: Path) -> None:
    result = run("tests")
    assert result.exit_code == 1
    header, row, summary = result.output.splitlines()
    assert header.split() == ["WHERE", "ID", "RULE", "FOUND", "INSTEAD"]
    assert row.startswith(
        "tests/test_a.py:2  A101  bound-port  socket.create_server() binds port 8003"
    )
    assert 'run.spawn("camera-service").ports["health"]' in row
    assert summary == "1 finding in 1 of 1 file."


def test_nothing_found_is_success(suite: Path) -> None:
    (suite / "tests/test_a.py").write_text("x = 8003\n")
    result = run("tests")
    assert (result.exit_code, result.output) == (0, "Nothing found in 1 file.\n")


def test_a_file_that_cannot_be_read_is_3(suite: Path) -> None:
    (suite / "tests/test_b.py").write_text("def\n")
    result = run("tests")
    assert result.exit_code == 3
    assert "error: Cannot audit 'tests/test_b.py:1': not Python: " in result.output
    assert "tests/test_a.py:2" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument"),
        (("nowhere",), "does not exist"),
        (("tests", "--select", "bound-prot"), "did you mean 'bound-port'?"),
        (("tests", "--ignore", "B1"), "Cannot find rule 'B1': no id or name of that kind"),
        (("tests", "--write-baseline"), "--write-baseline needs --baseline FILE."),
        (("tests", "--format", "xml"), "xml"),
        (("tests", "--units", "nowhere"), "Cannot read definitions from 'nowhere': not a folder"),
    ],
)
def test_what_makes_no_sense_is_2(suite: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_rules_are_selected_by_name_id_and_beginning(suite: Path) -> None:
    assert run("tests", "--select", "bound-port").exit_code == 1
    assert run("tests", "--select", "a101").exit_code == 1
    assert run("tests", "--select", "A2,A1").exit_code == 1
    assert run("tests", "--select", "A2").exit_code == 0
    assert run("tests", "--ignore", "A1").exit_code == 0
    assert run("tests", "--select", "A1", "--ignore", "bound-port").exit_code == 0


@pytest.mark.parametrize(
    ("begun", "offered"),
    [
        ("post", ["post-for-delete"]),
        ("bound-port,own", ["bound-port,own-server"]),
        ("x", []),
        ("", list(RULES)),
    ],
)
def test_rules_are_completed(begun: str, offered: list[str]) -> None:
    completion = ShellComplete(group, {}, "understudy", "_UNDERSTUDY_COMPLETE")
    found = completion.get_completions(["audit", "tests", "--select"], begun)
    assert [item.value for item in found] == offered


def test_rules_are_listed(suite: Path) -> None:
    result = run("--list-rules")
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.output.splitlines()[1:]] == [
        [rule.id, rule.name] for rule in RULES.values()
    ]


def test_json_is_an_array_of_objects(suite: Path) -> None:
    [row] = json.loads(run("tests", "--json").stdout)
    assert row["instead"].startswith('run.spawn("camera-service")')
    del row["instead"]
    assert row == {
        "file": "tests/test_a.py",
        "line": 2,
        "id": "A101",
        "rule": "bound-port",
        "text": "socket.create_server() binds port 8003 (camera-service's health)",
        "source": 'socket.create_server(("", 8003))',
    }


def test_annotations_are_github_s(suite: Path) -> None:
    (suite / "tests/a,b:c%.py").write_text(BOUND)
    lines = run("tests", "--format", "github").output.splitlines()
    first = (
        "::error file=tests/a%2Cb%3Ac%25.py,line=2,title=A101 bound-port::socket.create_server()"
    )
    assert lines[0].startswith(first)
    assert "%0AInstead: run.spawn(" in lines[0]


def test_a_baseline_lets_lines_move_and_counts(suite: Path) -> None:
    baseline = suite / "audit.json"
    result = run("tests", "--baseline", baseline, "--write-baseline")
    assert (result.exit_code, result.output) == (0, f"{baseline}: 1 finding written\n")
    assert run("tests", "--baseline", baseline).exit_code == 0
    test = suite / "tests/test_a.py"
    test.write_text(f"# moved\n\nif 1:\n    {BOUND.splitlines()[1]}\n" + BOUND.splitlines()[0])
    result = run("tests", "--baseline", baseline)
    assert (result.exit_code, result.output) == (
        0,
        "Nothing found in 1 file (1 in the baseline).\n",
    )
    # The same once more is new.
    test.write_text(BOUND + BOUND)
    result = run("tests", "--baseline", baseline)
    assert result.exit_code == 1
    assert "tests/test_a.py:4  A101" in result.output
    assert "1 finding in 1 of 1 file (1 in the baseline)." in result.output


def test_a_baseline_says_what_is_gone(suite: Path) -> None:
    run("tests", "--baseline", "audit.json", "--write-baseline")
    (suite / "tests/test_a.py").write_text("")
    result = run("tests", "--baseline", "audit.json")
    assert result.exit_code == 0
    assert "note: 1 of the baseline are gone; --write-baseline makes it smaller" in result.output


def test_a_baseline_is_the_same_from_elsewhere(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("tests", "--baseline", "audit.json", "--write-baseline")
    before = (suite / "audit.json").read_text()
    assert str(suite) not in before
    monkeypatch.chdir(suite / "tests")
    assert run("test_a.py", "--baseline", "../audit.json").exit_code == 0
    run(suite / "tests", "--baseline", suite / "audit.json", "--write-baseline")
    assert (suite / "audit.json").read_text() == before


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2}', '{"version": 1, "findings": [1]}'])
def test_a_file_that_is_no_baseline_is_3(suite: Path, content: str) -> None:
    (suite / "audit.json").write_text(content)
    result = run("tests", "--baseline", "audit.json")
    assert result.exit_code == 3
    assert "error: Cannot read baseline 'audit.json': not " in result.output


def test_a_baseline_that_is_not_there_is_3(suite: Path) -> None:
    result = run("tests", "--baseline", "nowhere.json")
    assert result.exit_code == 3
    assert "hint: --write-baseline makes one of what is found now" in result.output


def test_what_a_suite_says_does_not_move_the_cursor(suite: Path) -> None:
    text = 'import subprocess\nsubprocess.run(["mediamtx\\x1b[2J", "x"])\n'
    (suite / "tests/test_a.py").write_text(text + f"def f(port=8003): '\x1b[2J'\n{BOUND}")
    assert "\x1b" not in run("tests").output


def test_an_ignore_needs_no_rule_that_is_not_applied(suite: Path) -> None:
    line = 'socket.create_server(("", 8003))  # understudy: ignore[bound-port] in a bed'
    (suite / "tests/test_a.py").write_text(f"import socket\n{line}\n")
    assert run("tests").output == "Nothing found in 1 file (1 ignored).\n"
    assert run("tests", "--select", "A2,A9").exit_code == 0
    assert run("tests", "--ignore", "bound-port").exit_code == 0


def test_an_ignore_of_a_folder_counts_for_a_single_file(suite: Path) -> None:
    comment = "# understudy: ignore-folder[bound-port] runs in a private network\n"
    (suite / "tests/conftest.py").write_text(comment)
    assert run("tests/test_a.py").exit_code == 0
    assert run("tests").output == "Nothing found in 2 files (1 ignored).\n"
    (suite / "tests/test_a.py").write_text("")
    assert "unused-ignore" in run("tests").output
