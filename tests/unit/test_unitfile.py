"""Unit-file text, read and written."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from understudy import unitfile
from understudy.errors import RenderError


def assignments(text: str) -> list[tuple[str, str, str]]:
    return [(line.section, line.name, line.value) for line in unitfile.parse(text) if line.name]


def test_lines_are_read_as_systemd_reads_them() -> None:
    text = """\
# [Service]
[Unit]
Description = a  server \n\
; Type=no
[Service]
ExecStart=/bin/a \\
# a comment within
  b \\\\
Environment=X=1
"""
    assert assignments(text) == [
        ("Unit", "Description", "a  server"),
        ("Service", "ExecStart", "/bin/a    b \\\\"),
        ("Service", "Environment", "X=1"),
    ]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\0"])
def test_every_line_end_of_systemd_ends_a_line(end: str) -> None:
    assert assignments(f"[Service]{end}A=1{end}B=2") == [
        ("Service", "A", "1"),
        ("Service", "B", "2"),
    ]


@given(st.text())
@example("A=1\\")
@example("A=1\\\n# a comment")
def test_nothing_of_a_text_is_lost(text: str) -> None:
    read = "\n".join(line.text for line in unitfile.parse(text))
    assert [part.strip() for part in read.split()] == text.replace("\0", " ").split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a  b\tc", ["a", "b", "c"]),
        ('"a b" c', ["a b", "c"]),
        ("'a \"b'", ['a "b']),
        (r"a\sb\x41\u2603\101\n", ["a bA☃A\n"]),
        ('"" a', ["", "a"]),
        ('FOO="a b"', ["FOO=a b"]),
        (r'"a\"b\\"', ['a"b\\']),
    ],
)
def test_words_are_split_as_systemd_splits_them(text: str, words: list[str]) -> None:
    assert unitfile.split(text) == words


@pytest.mark.parametrize("text", ['"a', "a'", "a\\", r"\q", r"\x4"])
def test_a_line_that_systemd_would_not_take_is_refused(text: str) -> None:
    with pytest.raises(RenderError, match="Cannot split"):
        unitfile.split(text)


@given(st.lists(st.text(st.characters(blacklist_categories=["Cc", "Cs"]))))
def test_a_quoted_text_is_one_word_whatever_is_in_it(texts: list[str]) -> None:
    assert unitfile.split(" ".join(map(unitfile.quote, texts))) == texts


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a\nb", "a newline"),
        ("a\r", "a carriage return"),
        ("\0", "a NUL"),
        ("\x1b[1m", r"U\+001B"),
        ("\ud800", r"U\+D800"),
        ("\uffff", r"U\+FFFF"),
        ("\U0010ffff", r"U\+10FFFF"),
    ],
)
def test_what_no_line_can_hold_is_refused_by_name(text: str, word: str) -> None:
    with pytest.raises(RenderError, match=f"value 'root': it holds .*{word}"):
        unitfile.check_text("value 'root'", text)


def test_tabs_and_other_alphabets_are_text() -> None:
    unitfile.check_text("value 'root'", "\tä ☃ 𝄞 \u2028")


def test_an_empty_assignment_undoes_and_a_later_one_counts() -> None:
    text = """[Service]
Environment=A=1
Type=simple
Environment=
Environment=B=2
Environment=C=3
Type=exec
PIDFile=/x
PIDFile=
CapabilityBoundingSet=CAP_KILL
CapabilityBoundingSet=
"""
    assert unitfile.effective(unitfile.parse(text)) == [
        ("Environment", "B=2"),
        ("Environment", "C=3"),
        ("Type", "exec"),
        ("CapabilityBoundingSet", ""),
    ]


def test_a_bounding_set_of_everything_is_the_default() -> None:
    text = "[Service]\nCapabilityBoundingSet=CAP_KILL\nCapabilityBoundingSet=~\n"
    assert unitfile.effective(unitfile.parse(text)) == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("  a\tb ", ["a", "b"]),
        ("'a b' \"c d\"", ["a b", "c d"]),
        ("a''b \"\"", ["ab", ""]),
        (r'"A=q\"\$z" B=x\ny', ['A=q"$z', "B=x\ny"]),
        (r"\x41\101\s\\\q", ["AA \\q"]),
        (r"'a\'b'", ["a'b"]),
    ],
)
def test_what_systemctl_prints_is_split_as_systemd_does(text: str, parts: list[str]) -> None:
    assert unitfile.split(text, relaxed=True) == parts


@pytest.mark.parametrize("text", ["'a", 'a "b', "a\\"])
def test_words_without_an_end_are_refused(text: str) -> None:
    with pytest.raises(RenderError, match=r"not closed|unknown escape"):
        unitfile.split(text, relaxed=True)
