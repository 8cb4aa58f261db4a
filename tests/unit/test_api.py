"""The client of MediaMTX's control API bears what its versions answer, and says what it cannot."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.api import Api, Json, Session
from understudy.errors import ProductionError

JSON: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


class Answers(Api):
    """A client whose server says what it is told to."""

    def __init__(self, status: int, *bodies: bytes) -> None:
        super().__init__("http://127.0.0.1:1")
        self.status = status
        self.bodies = list(bodies)
        self.asked: list[tuple[str, str, bytes | None]] = []

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        self.asked.append((method, path, body))
        return self.status, self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]


@pytest.mark.parametrize("body", [b"", b'{"status":"ok"}', b"\n", b"whatever comes next"])
def test_success_is_success_in_either_shape(body: bytes) -> None:
    api = Answers(200, body)
    api.add("r7k2mq/test/cam0", source="publisher")
    assert api.delete("r7k2mq/test/cam0")
    assert api.asked == [
        ("POST", "/v3/config/paths/add/r7k2mq/test/cam0", b'{"source": "publisher"}'),
        ("DELETE", "/v3/config/paths/delete/r7k2mq/test/cam0", None),
    ]


@pytest.mark.parametrize(
    "body",
    [b'{"error":"path already exists"}', b'{"status":"error","error":"path already exists"}'],
)
def test_the_reason_of_a_refusal_is_passed_on_in_either_shape(body: bytes) -> None:
    with pytest.raises(
        ProductionError, match=r"POST /v3/config/paths/add/cam0 at .*: 400 path already exists$"
    ):
        Answers(400, body).add("cam0")


@pytest.mark.parametrize("body", [b"", b'{"status":"error","error":"authentication error"}'])
def test_a_missing_right_has_a_hint(body: bytes) -> None:
    with pytest.raises(ProductionError, match=r"GET /v3/paths/list at .*: 401") as caught:
        Answers(401, body).paths()
    assert caught.value.hint is not None
    assert "authInternalUsers" in caught.value.hint


def test_what_is_not_there_is_no_error_where_that_can_be() -> None:
    api = Answers(404, b'{"status":"error","error":"path not found"}')
    assert api.info() is None
    assert api.path("cam0") is None
    assert not api.delete("cam0")
    assert not api.kick(Session(kind="rtspsessions", id="1", path="", state="", remote=""))
    assert api.sessions() == []
    with pytest.raises(ProductionError, match="404"):
        api.paths()


def test_every_page_is_read() -> None:
    pages = [
        json.dumps({"itemCount": 3, "pageCount": 3, "items": [{"name": name}]}).encode()
        for name in "abc"
    ]
    api = Answers(200, *pages)
    assert [*api.configured()] == ["a", "b", "c"]
    assert [path.partition("?")[2].partition("&")[0] for _, path, _ in api.asked] == [
        "page=0",
        "page=1",
        "page=2",
    ]


@pytest.mark.parametrize("body", [b'{"itemCount":0,"pageCount":0,"items":null}', b"{}"])
def test_an_empty_list_may_be_null_or_missing(body: bytes) -> None:
    assert Answers(200, body).paths() == []


def test_a_path_of_any_version() -> None:
    old: dict[str, Json] = {"name": "a", "confName": "all_others", "source": None, "ready": False}
    old |= {"tracks": None, "bytesReceived": 0, "readers": []}
    new: dict[str, Json] = {"name": "b", "confName": "b", "source": {"type": "rtspSession"}}
    new |= {"available": True, "tracks2": [], "readers": [{"type": "x", "id": "2"}], "novel": {}}
    body = json.dumps({"items": [old, new]}).encode()
    first, second = Answers(200, body).paths()
    assert (first.ready, first.source, first.readers) == (False, "", 0)
    assert (second.ready, second.source, second.readers) == (True, "rtspSession", 1)


def test_what_has_another_type_is_named() -> None:
    with pytest.raises(ProductionError, match=r"GET /v3/paths/list: 'name' should not be 7"):
        Answers(200, b'{"items":[{"name":7}]}').paths()
    with pytest.raises(ProductionError, match='items should not be "x"'):
        Answers(200, b'{"items":"x"}').paths()
    with pytest.raises(ProductionError, match=r"an answer that is no JSON: '<html>"):
        Answers(200, b"<html>hello").paths()


@given(status=st.sampled_from([200, 204, 400, 401, 404, 500]), body=JSON)
def test_no_answer_is_anything_but_understood_or_an_error(status: int, body: Json) -> None:
    shapes: list[Json] = [
        body,
        {"items": body, "error": body},
        {"items": [body], "name": body, "source": body},
    ]
    for shape in shapes:
        ask_all(Answers(status, json.dumps(shape).encode()))


@given(st.integers(100, 599), st.binary(max_size=200))
def test_bytes_that_are_no_answer(status: int, data: bytes) -> None:
    ask_all(Answers(status, data))


def ask_all(api: Api) -> None:
    """Every call gives something, or the one kind of error, in one line."""

    def add() -> None:
        api.add("x")

    for ask in (api.info, api.settings, api.configured, api.paths, api.sessions, add,
                partial(api.path, "x"), partial(api.delete, "x")):  # fmt: skip
        try:
            ask()
        except ProductionError as exc:
            assert re.match(r"Cannot (use|understand) MediaMTX's [^\n]*$", exc.message)  # noqa: PT017


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(
        ProductionError, match=r"GET /v3/info at 127\.0\.0\.1:1: Connection refused"
    ):
        Api("http://127.0.0.1:1").info()
    with pytest.raises(ProductionError, match="that is no http:// URL"):
        Api("rtsp://127.0.0.1")
