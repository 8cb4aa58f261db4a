from __future__ import annotations

import pytest

from understudy.standins.plain_yaml import YamlError, load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n\n", None),
        ("---\napi: yes\n", {"api": True}),
        ("a: no\nb: Off\nc: true\nd: on\n", {"a": False, "b": False, "c": True, "d": True}),
        ("a: 8554\nb: -1\nc: 1.5\nd: 1.2.3\n", {"a": 8554, "b": -1, "c": 1.5, "d": "1.2.3"}),
        ("a: :8554\nb: http://host:1/x\n", {"a": ":8554", "b": "http://host:1/x"}),
        ("a:\nb: ~\nc: null\nd: ''\n", {"a": None, "b": None, "c": None, "d": ""}),
        (
            "a: it's # a word\nb: 'it''s'\nc: \"x # y\"\nd: a#b\n",
            {"a": "it's", "b": "it's", "c": "x # y", "d": "a#b"},
        ),
        (
            "path: ./rec/%path/%Y-%m-%d_%H-%M-%S-%f\n",
            {"path": "./rec/%path/%Y-%m-%d_%H-%M-%S-%f"},
        ),
        (
            "l: ['*', \"a, b\", 1]\nm: {k: v, n: [1]}\ne: []\n",
            {"l": ["*", "a, b", 1], "m": {"k": "v", "n": [1]}, "e": []},
        ),
        ("l:\n- a\n- b\nm:\n  - c\n", {"l": ["a", "b"], "m": ["c"]}),
        ("paths:\n  # cam0:\n  all_others:\n", {"paths": {"all_others": None}}),
        ("paths:\n  ~^cam\\d+$:\n    source: x\n", {"paths": {"~^cam\\d+$": {"source": "x"}}}),
        (
            "users:\n- user: any\n  pass:\n  may:\n  - do: publish\n    path:\n- user: b\n",
            {
                "users": [
                    {"user": "any", "pass": None, "may": [{"do": "publish", "path": None}]},
                    {"user": "b"},
                ]
            },
        ),
        ("-\n  a: 1\n- - x\n  - y\n", [{"a": 1}, ["x", "y"]]),
    ],
)
def test_settings_files_are_read(text: str, value: object) -> None:
    assert load(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: |\n  x\n", r"line 1.*cannot be read"),
        ("a: &x 1\n", r"line 1.*cannot be read"),
        ("a: [1\n", r"line 1.*cannot be read"),
        ("a: {b}\n", r"line 1.*cannot be read"),
        ("a: 'x\n", r"line 1.*cannot be read"),
        ("a: 1\na: 2\n", r'line 2.*mapping key "a" already defined'),
        ("a: 1\n   b: 2\n", r"line 2.*unexpected indentation"),
        ("a: 1\nb\n", r"line 2.*a key and a colon were expected: b"),
        ("\ta: 1\n", r"line 1.*a tab cannot indent"),
    ],
)
def test_what_is_not_read_is_an_error_that_names_the_line(text: str, message: str) -> None:
    with pytest.raises(YamlError, match=message):
        load(text)
