"""Files of variables, written for systemd and read as it reads them."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from understudy import envfile
from understudy.errors import RenderError
from understudy.script import QUOTING

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
values = st.text(
    st.characters(blacklist_categories=["Cc", "Cs", "Cn"]) | st.sampled_from("\t\n\\\"'`$#;= ")
)


@settings(deadline=None)
@given(st.dictionaries(names, values))
@example({"A": "\\", "B": "\\\n", "C": '"', "D": " # x ", "E": "", "F": "$(x) `y`"})
def test_what_is_written_is_read_as_it_was(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        envfile.check(name, value)
    assert envfile.read(envfile.write(variables)) == variables


@settings(max_examples=20, deadline=None)
@given(values)
@example("a\nb\n\n")
@example('\\"$`')
def test_a_shell_script_quotes_the_same(value: str) -> None:
    script = f'{QUOTING}\nvariable A "$1"'
    said = subprocess.run(["/bin/sh", "-c", script, "sh", value], capture_output=True, check=True)
    assert said.stdout == envfile.write({"A": value}).encode()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=1\nB = two words \r\n", {"A": "1", "B": "two words"}),
        ("# A=1\n; B=2 \\\nC=3\nD=4#5\n", {"D": "4#5"}),
        ('A=\'a $b \\n\'\nB="a \\"b\\" \\n"', {"A": "a $b \\n", "B": 'a "b" \\n'}),
        ("A=a\\\nb\\ \nB=\\$C", {"A": "ab ", "B": "$C"}),
        ("A=\"a\nb\"\nB='c\nd'", {"A": "a\nb", "B": "c\nd"}),
        ('A="a\\\nb" c\nB=it\'s', {"A": "abc", "B": "it's"}),
        ("A\nB=\n1C=2\nexport D=3\nA=1\nA=2", {"B": "", "A": "2"}),
        ("", {}),
        ('A="open', {"A": "open"}),
    ],
)
def test_a_file_is_read_as_systemd_reads_it(text: str, found: dict[str, str]) -> None:
    assert envfile.read(text) == found


@settings(deadline=None)
@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert all(name.isidentifier() for name in envfile.read(text))


@pytest.mark.parametrize("char", ["\r", "\0", "\x1b", "\x7f", "\ud800", "\uffff"])
def test_what_systemd_would_leave_out_is_refused_without_the_value(char: str) -> None:
    code = f"U\\+{ord(char):04X}"
    with pytest.raises(RenderError, match=f"variable 'A': its value holds .* {code}") as caught:
        envfile.check("A", f"hush{char}")
    assert "hush" not in caught.value.message
    with pytest.raises(RenderError, match="Cannot set 'A B': it is no environment variable"):
        envfile.check("A B", "")
