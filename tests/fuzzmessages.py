"""Messages to drive a daemon with, good and bad: what hypothesis draws.

A message's ``ref``, where it has one, is the text ``REF``, which whoever sends it replaces.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

PARTIES = ("anna", "bjorn", "eva")
IDS = ("m1", "m2", "m.3~:@-")
LINES = 4
"""So many connections there are at a time."""
REF = "REF"


@dataclass(frozen=True)
class Text:
    """A text frame; `good` says whether it is a request, None that it may be one."""

    line: int
    payload: bytes
    good: bool | None = None


@dataclass(frozen=True)
class Audio:
    """Some bytes of a binary frame."""

    line: int
    size: int
    begins: bool = True


@dataclass(frozen=True)
class Recording:
    """A whole recording, in good order."""

    line: int
    id: str
    receiver: str | None
    size: int


@dataclass(frozen=True)
class Collect:
    """A text is fetched as soon as it is there, and acked."""

    line: int
    id: str
    owner: str


@dataclass(frozen=True)
class Lose:
    """A connection breaks; there is a new one at once, of `party` if it says hello."""

    line: int
    party: str | None


@dataclass(frozen=True)
class Advance:
    """Time passes, then the purge comes by where `purge` says so."""

    seconds: float
    purge: bool


@dataclass(frozen=True)
class Work:
    """A worker answers, with so many words in each window, or fails."""

    at: int
    words: int | None


Step = Text | Audio | Recording | Collect | Lose | Advance | Work

_id = st.sampled_from(IDS)
_party = st.sampled_from(PARTIES)
_receiver = st.one_of(st.none(), _party)
_ref = st.just(REF)
_line = st.integers(0, LINES - 1)


def _request(type: str, needed: dict[str, Any], may: dict[str, Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"type": st.just(type), **needed}, optional={"ref": _ref, **may})


REQUESTS = st.one_of(
    _request("hello", {"party": _party}, {"token": st.just("t")}),
    _request(
        "submit",
        {"id": _id},
        {
            "receiver": _receiver,
            "rate": st.sampled_from([8000, 16000, 48000]),
            "channels": st.integers(1, 8),
            "ttl": st.sampled_from([0.001, 1, 60.5, 86400]),
            "language": st.sampled_from(["sv", "en", "xx", None]),
        },
    ),
    _request("end", {"id": _id}, {"sha256": st.sampled_from([None, "", "00" * 32])}),
    *[
        _request(type, {"id": _id}, {"owner": _receiver, **more})
        for type, more in (
            ("fetch", {"wait": st.booleans()}),
            ("fetch", {"wait": st.booleans()}),
            ("ack", {}),
            ("status", {}),
            ("cancel", {}),
        )
    ],
    _request("list", {}, {}),
    _request("subscribe", {}, {}),
)
"""Requests of all types, all of them good."""

_deep: Any = []
for _ in range(40):
    _deep = [_deep, {"type": _deep}] if len(json.dumps(_deep)) < 200 else [_deep]

NASTY: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    16000.5,
    1e308,
    -0.0,
    2**63,
    10**400,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    REF,
    "x" * 128,
    "x" * 129,
    "x" * 5000,
    "ö" * 128,
    "\U0001f3a4" * 64,
    "m1\n",
    "a b",
    "../../etc/passwd",
    "\0",
    "\x1b[2J",
    "\x7f\x85",
    "\ud800",
    "\udfff\ud800",
    "\ufffe\uffff",
    "true",
    [],
    {},
    ["anna"],
    {"type": "list"},
    _deep,
]
"""Values that no field, or few, may have."""

_FIELDS = (
    "type",
    "ref",
    "id",
    "owner",
    "party",
    "receiver",
    "rate",
    "channels",
    "ttl",
    "language",
    "sha256",
    "wait",
    "Type",
    "",
    "x" * 300,
)

_RAW = [
    b"",
    b" ",
    b"null",
    b"0",
    b'"hello"',
    b"[]",
    b"{}",
    b"[" * 60_000,
    b'{"type":' * 8000,
    b"{" + b'"a":[' * 9000,
    b'{"type":"list"',
    b'{"type":"list"}}',
    b'{"type":"list"} {"type":"list"}',
    b"\xef\xbb\xbf" + b'{"type":"list"}',
    b'{"type":"list",}',
    b"{'type':'list'}",
    b'{"type":"list","type":"subscribe"}',
    b'{"type":"list","pad":NaN}',
    b'{"type":"list","pad":-Infinity}',
    b'{"type":"list","pad":01}',
    b'{"type":"list","pad":1e999999999}',
    b'{"type":"list","pad":"\xff"}',
    b'{"type":"list","pad":"\xed\xa0\x80"}',
    b'{"type":"list","pad":"\\ud800"}',
    b'{"type":"list","pad":"\\u"}',
    b'{"type":"list","pad":"\t"}',
    b'{"type":"list","pad":"' + b"x" * 65000 + b'"}',
    b'{"type":"list","pad":' + b"9" * 65000 + b"}",
    "{\u201ctype\u201d:\u201clist\u201d}".encode(),
]


def _render(message: Any, ascii: bool = True) -> bytes:
    return json.dumps(message, ensure_ascii=ascii).encode(errors="surrogatepass")


def _mutate(request: dict[str, Any], change: tuple[str, str, Any, int]) -> bytes:
    kind, field, value, number = change
    names = list(request)
    name = names[number % len(names)]
    changed = dict(request)
    match kind:
        case "drop":
            del changed[name]
        case "rename":
            changed = {field if key == name else key: each for key, each in request.items()}
        case "replace":
            changed[name] = value
        case "add":
            changed[field] = value
        case "twice":
            return _render(request)[:-1] + b"," + _render({name: value})[1:]
        case "cut":
            whole = _render(request)
            return whole[: number % len(whole)]
        case "flip":
            flipped = bytearray(_render(request))
            flipped[number % len(flipped)] ^= 1 << number % 8
            return bytes(flipped)
        case "put":
            whole = _render(request)
            at = number % len(whole)
            return whole[:at] + _render(value, False)[:2000] + whole[at:]
    return _render(changed, number % 2 == 0)


MUTATIONS = st.builds(
    _mutate,
    REQUESTS,
    st.tuples(
        st.sampled_from(
            ["drop", "rename", "replace", "replace", "add", "twice", "cut", "flip", "put"]
        ),
        st.sampled_from(_FIELDS),
        st.sampled_from(NASTY),
        st.integers(0, 2**16),
    ),
)
"""What once was a request, and may still be one."""

RUBBISH = st.one_of(st.sampled_from(_RAW), st.binary(max_size=40))
"""What never was one, but for a few."""

_REQUEST_STEPS = st.builds(lambda line, r: Text(line, _render(r), True), _line, REQUESTS)

STEPS: st.SearchStrategy[Step] = st.one_of(
    _REQUEST_STEPS,
    _REQUEST_STEPS,
    _REQUEST_STEPS,
    st.builds(Text, _line, MUTATIONS),
    st.builds(Text, _line, MUTATIONS),
    st.builds(Text, _line, RUBBISH),
    st.builds(Audio, _line, st.sampled_from([0, 1, 2, 31, 3200, 64_000]), st.booleans()),
    st.builds(Recording, _line, _id, _receiver, st.sampled_from([1, 2, 16, 16_000, 1_500_000])),
    st.builds(Recording, _line, _id, _receiver, st.sampled_from([2, 16, 16_000])),
    st.builds(Collect, _line, _id, _party),
    st.builds(Collect, _line, _id, _party),
    st.builds(Lose, _line, _receiver),
    st.builds(Advance, st.sampled_from([0.0, 0.2, 1.0, 61.0, 3601.0]), st.booleans()),
    st.builds(Work, st.integers(0, 3), st.sampled_from([0, 1, 3, None])),
    st.builds(Work, st.integers(0, 3), st.sampled_from([1, 3])),
)
"""What may happen next."""


def episodes(least: int = 1) -> st.SearchStrategy[list[Step]]:
    """What happens to one daemon, in at least so many steps."""
    return st.lists(STEPS, min_size=least, max_size=100)
