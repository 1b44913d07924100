"""No answer tells a stranger whether an id exists: the same words, after the same work."""

from __future__ import annotations

from typing import Any

from tests.sessioncase import SECOND, Case

REQUESTS: tuple[dict[str, Any], ...] = (
    {"type": "fetch"},
    {"type": "fetch", "wait": False},
    {"type": "status"},
    {"type": "ack"},
    {"type": "cancel"},
)


class Listening:
    """Stands before something, and notes what it is asked."""

    def __init__(self, inner: Any, calls: list[str]) -> None:
        self._inner = inner
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if callable(found):
            self._calls.append(name)
        return found


class StrangerTests(Case):
    """Eva asks for what is Anna's and Bjorn's, and for what is not there."""

    def setUp(self) -> None:
        super().setUp()
        self.calls: list[str] = []
        self.house.desk.store = Listening(self.house.store, self.calls)
        self.house.desk._spool = Listening(self.house.spool, self.calls)
        self.house.desk._uploads._store = self.house.desk.store
        self.house.desk._uploads._spool = self.house.desk._spool

    def asked(self, id: str, request: dict[str, Any], owner: str | None) -> tuple[Any, list[str]]:
        """What Eva is told, and what was done for it."""
        self.calls.clear()
        more = {} if owner is None else {"owner": owner}
        answer = self.eva.ask(**request, id=id, **more)
        self.assertEqual(answer.pop("id"), id)
        return answer, list(self.calls)

    def assertUnknown(self, id: str) -> None:
        """It is, to Eva, as what never was."""
        for request in REQUESTS:
            found, work = self.asked(id, request, "anna")
            self.assertEqual(found["code"], "unknown-id")
            self.assertEqual((found, work), self.asked("never", request, "anna"))
            if request["type"] != "cancel":
                self.assertEqual(len(work), 1, "the store is asked, once")
        listed = self.eva.ask(type="list")["transcripts"]
        self.assertNotIn("anna", [each["owner"] for each in listed])

    def test_inEveryState(self) -> None:
        self.anna.say(type="submit", id="m1", receiver="bjorn")
        self.anna.sound(SECOND)
        self.assertUnknown("m1")
        self.anna.ask(type="end", id="m1")
        self.assertUnknown("m1")
        self.house.pool.answer("hej")
        self.assertUnknown("m1")
        for party in (self.anna, self.bjorn):
            self.assertEqual(party.ask(type="fetch", id="m1", owner="anna")["text"], "hej")
            party.ask(type="ack", id="m1", owner="anna")
        self.assertEqual(self.bjorn.ask(type="fetch", id="m1", owner="anna")["code"], "gone")
        self.assertUnknown("m1")

    def test_failedAndCancelled(self) -> None:
        self.anna.submit("m1", receiver="bjorn")
        self.successResultOf(self.house.store.fail(next(iter(self.house.scheduler._jobs)), "no"))
        self.assertUnknown("m1")
        self.anna.ask(type="cancel", id="m1")
        self.assertUnknown("m1")
        self.house.pool.answer("hej")

    def test_oneOfOnesOwnWithTheSameName(self) -> None:
        """Ids of different owners never collide, nor tell of each other."""
        self.anna.submit("m1", receiver="bjorn")
        answer = self.eva.submit("m1", b"\2\0" * 100)
        self.assertEqual((answer["type"], answer["owner"]), ("accepted", "eva"))
        self.assertUnknown("m1")
        self.assertEqual(self.eva.ask(type="cancel", id="m1")["type"], "cancelled")
        self.assertEqual(self.anna.ask(type="status", id="m1")["state"], "transcribing")
        self.house.pool.answer("hej")

    def test_theReceiverMayNotCancel(self) -> None:
        """To the receiver, too, it is in the same words."""
        self.ready()
        refused = self.bjorn.ask(type="cancel", id="m1", owner="anna")
        never = self.bjorn.ask(type="cancel", id="never", owner="anna")
        self.assertEqual(refused | {"id": ""}, never | {"id": ""})
        self.assertEqual(refused["code"], "unknown-id")

    def test_aFetchThatWaitsIsNotHeldForStrangers(self) -> None:
        self.anna.submit("m1", receiver="bjorn")
        self.eva.say(type="fetch", id="m1", owner="anna")
        self.assertEqual(self.eva.heard()["code"], "unknown-id")
        self.house.pool.answer("hej")
        self.assertEqual((self.eva.sent, len(self.house.desk._waiting)), ([], 0))

    def test_eventsAreNotTold(self) -> None:
        self.eva.ask(type="subscribe")
        self.ready()
        self.anna.ask(type="cancel", id="m1")
        self.assertEqual(self.eva.sent, [])
