"""One connection that anything is sent on, and what docs/protocol.rst says must come back."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from tests.fakes import FakePeer, House
from tests.fuzzmessages import REF
from transcribed import wire
from transcribed.session import Session

CODES = {
    "bad-message",
    "unauthenticated",
    "unknown-id",
    "id-taken",
    "gone",
    "bad-audio",
    "too-long",
    "busy",
    "not-fetched",
    "failed",
    "unsupported",
}
"""The codes of docs/protocol.rst but for `internal`, which nothing that is sent may lead to."""
ANSWERS: dict[type, set[str]] = {
    wire.Hello: {"welcome"},
    wire.End: {"accepted"},
    wire.Fetch: {"transcript", "status"},
    wire.Ack: {"acked"},
    wire.AskStatus: {"status"},
    wire.Cancel: {"cancelled"},
    wire.AskList: {"listing"},
    wire.Subscribe: {"subscribed"},
}
MAX_BAD = 10


class Broken(AssertionError):
    """A promise was not kept."""


def must(condition: object, *what: object) -> None:
    """Raises :exc:`Broken` where it is not so."""
    if not condition:
        raise Broken(*what)


def count(refs: list[weakref.ref[Any]]) -> Callable[[], int]:
    """Tells how many of these are still in memory, once that was tidied up."""
    return lambda: sum(ref() is not None for ref in refs)


class Others(Protocol):
    """Whom a line must know of.

    :ivar sides: who was ever named as the receiver, by owner and id.
    """

    house: House
    sides: dict[tuple[str, str], set[str]]
    accepted: int
    delivered: int

    def count(self) -> int:
        """One more message."""

    def voice(self, party: str | None) -> bytes:
        """A byte of what a party says."""


class Line(FakePeer):
    """One connection, and what the protocol says about where it stands.

    :ivar party: who is on it, once welcomed.
    :ivar upload: the id and the ref of the upload that is open.
    :ivar swallowing: the ids of which the rest is swallowed; None among them stands for any.
    :ivar bad: how many bad messages came in a row.
    :ivar waiting: the refs of fetches that were not answered yet.
    """

    def __init__(self, crowd: Others) -> None:
        super().__init__()
        self.crowd = crowd
        self.party: str | None = None
        self.upload: tuple[str, str | None] | None = None
        self.swallowing: set[str | None] | None = None
        self.bad = 0
        self.waiting: set[str] = set()
        self.lost = False
        self.session = Session(crowd.house.host, self)

    def send(self, payload: bytes) -> None:
        """Keep it; as a peer does, not once the connection is closing."""
        if self.closed is None and not self.lost:
            super().send(payload)

    # What is sent

    def text(self, payload: bytes, good: bool | None) -> None:
        """Send a text frame, and check what it leads to."""
        ref = f"r{self.crowd.count()}"
        payload = payload.replace(f'"{REF}"'.encode(), f'"{ref}"'.encode())
        request: wire.AnyRequest | wire.Unparsable
        try:
            request = wire.parse(payload)
        except wire.Unparsable as e:
            request = e
        must(not (good and isinstance(request, wire.Unparsable)), "a good request", payload)
        if isinstance(request, wire.Fetch) and request.wait:
            # What comes later must be told from what is answered then.
            request = msgspec.structs.replace(request, ref=ref)
            payload = msgspec.json.encode(request)
        closed = self.closed is not None
        self.session.text(payload)
        answers = self.direct()
        if not closed:
            self.expect(request, answers)
        self.settle()

    def audio(self, size: int, begins: bool) -> None:
        """Send some bytes of a binary frame, and check what they lead to."""
        self.crowd.count()
        closed = self.closed is not None
        self.session.audio(self.crowd.voice(self.party) * size, begins)
        answers = self.direct()
        if closed:
            return
        if self.party is None:
            self.one(answers, None, {"unauthenticated"})
        elif self.upload is not None:
            self.bad = 0
            if answers:
                id, ref = self.upload
                self.one(answers, ref, {"too-long", "busy"})
                self.upload, self.swallowing = None, {id}
        elif self.swallowing is not None or not begins:
            must(not answers, "audio was answered", answers)
        else:
            self.bad_message(answers, None)
        self.settle()

    # What must come

    def expect(self, request: wire.AnyRequest | wire.Unparsable, answers: list[Any]) -> None:
        """What a text frame must lead to."""
        if self.party is None:
            self.greet(request, answers)
            return
        match request:
            case wire.Submit():
                self.submit(request, answers)
            case wire.End():
                self.end(request, answers)
            case wire.Unparsable(type="submit"):
                opened = {self.upload[0]} if self.upload is not None else set()
                self.upload, self.swallowing = None, {request.id, *opened}
                self.bad_message(answers, request.ref)
            case wire.Unparsable(type="end"):
                if not self.swallow(request.id, answers):
                    self.upload = None
                    self.bad_message(answers, request.ref)
            case wire.Unparsable() | wire.Hello():
                self.bad_message(answers, request.ref)
            case _:
                self.ask(request, answers)

    def greet(self, request: wire.AnyRequest | wire.Unparsable, answers: list[Any]) -> None:
        if isinstance(request, wire.Hello) and request.party is not None:
            self.one(answers, request.ref, set(), {"welcome"})
            must(answers[0]["party"] == request.party, answers)
            self.party = request.party
        else:
            self.one(answers, request.ref, {"unauthenticated"})

    def submit(self, request: wire.Submit, answers: list[Any]) -> None:
        if self.upload is not None:
            opened, _ = self.upload
            self.upload, self.swallowing = None, {opened, request.id}
            self.bad_message(answers, request.ref)
            return
        self.bad = 0
        assert self.party is not None
        if answers:
            self.one(answers, request.ref, {"busy", "unsupported"})
            self.swallowing = {request.id}
        else:
            self.upload, self.swallowing = (request.id, request.ref), None
            # From now on it may be seen by these.
            self.crowd.sides[self.party, request.id].add(request.receiver or self.party)

    def end(self, request: wire.End, answers: list[Any]) -> None:
        if self.swallow(request.id, answers):
            return
        if self.upload is None or self.upload[0] != request.id:
            self.bad_message(answers, request.ref)
            return
        ref = self.upload[1] if request.ref is None else request.ref
        self.upload, self.bad = None, 0
        answer = self.one(answers, ref, {"bad-audio", "id-taken", "busy"}, {"accepted"})
        if answer["type"] == "accepted":
            self.crowd.accepted += 1

    def swallow(self, id: str | None, answers: list[Any]) -> bool:
        ids, self.swallowing = self.swallowing, None
        if ids is None or not (id is None or id in ids or None in ids):
            return False
        ids.discard(id if id in ids else None if None in ids else next(iter(ids)))
        self.swallowing = ids or None
        must(not answers, "a swallowed end was answered", answers)
        return True

    def ask(self, request: Any, answers: list[Any]) -> None:
        self.bad, self.swallowing = 0, None
        assert self.party is not None
        owner: str = getattr(request, "owner", None) or self.party
        id = getattr(request, "id", None)
        if isinstance(request, wire.Cancel) and self.upload and owner == self.party:
            self.upload = None if self.upload[0] == id else self.upload
        if isinstance(request, wire.Fetch) and request.wait and not answers:
            assert request.ref is not None
            self.waiting.add(request.ref)
            return
        answer = self.one(answers, request.ref, CODES - {"bad-message"}, ANSWERS[type(request)])
        if id is not None and self.party not in {owner, *self.crowd.sides[owner, id]}:
            must(answer.get("code") == "unknown-id", self.party, "saw", request, answer)

    def one(
        self,
        answers: list[Any],
        ref: str | None,
        codes: set[str],
        types: set[str] = frozenset(),  # type: ignore[assignment]
    ) -> dict[str, Any]:
        """The one answer, which must be of these."""
        must(len(answers) == 1, "not one answer", answers)
        answer: dict[str, Any] = answers[0]
        fits = answer["code"] in codes if answer["type"] == "error" else answer["type"] in types
        must(fits, "another answer", answer, codes, types)
        must(answer.get("ref") == ref, "another ref", answer, ref)
        return answer

    def bad_message(self, answers: list[Any], ref: str | None) -> None:
        self.one(answers, ref, {"bad-message"})
        self.bad += 1

    # What came

    def direct(self) -> list[Any]:
        """What came and answers what was sent just now; the rest is checked, and forgotten."""
        sent, self.sent = self.sent, []
        answers = []
        for message in sent:
            self.see(message)
            if message["type"] == "event":
                continue
            if message.get("ref") in self.waiting:
                must(message["type"] in ("transcript", "error"), message)
                self.waiting.remove(message["ref"])
            else:
                answers.append(message)
        return answers

    def settle(self) -> None:
        """What holds after each step."""
        if self.closed is None:
            must(self.bad < MAX_BAD, "so many bad messages", self.bad)
        else:
            must(self.closed[0] == 1008, self.closed)
            must(self.party is None or self.bad == MAX_BAD, "closed", self.closed, self.bad)

    def see(self, message: dict[str, Any]) -> None:
        """What may be in any message."""
        must(message.get("code", "busy") in CODES, message)
        for each in [message, *message.get("transcripts", [])]:
            if "receiver" in each:
                must(self.party in (each["owner"], each["receiver"]), self.party, "sees", each)
        if message["type"] == "transcript":
            words = {word["word"] for word in message["words"]}
            must(words <= {message["owner"]}, "another's words", message)
            self.crowd.delivered += 1

    def overheard(self) -> None:
        """Look at what came by others' doing: fetches that were waiting, and lost uploads."""
        for answer in self.direct():
            must(self.upload is not None, "it answers nothing", answer)
            assert self.upload is not None
            id, ref = self.upload
            self.one([answer], ref, {"gone", "busy"})
            self.upload, self.swallowing = None, {id}
        self.settle()
