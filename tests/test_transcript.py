"""The rules of one transcript's life, at their edges."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from transcribed.errors import Gone, NotFetched, UnknownId
from transcribed.transcript import (
    ENDED,
    FINISHED,
    MIN_MEMORY,
    UNFINISHED,
    Change,
    Sides,
    State,
    Transcript,
)

CREATED = 1000.0
TTL = 100.0
EXPIRES = CREATED + TTL
NOW = CREATED + 10


def transcript(**fields: Any) -> Transcript:
    """Anna's, for Björn, where `fields` say nothing else."""
    values: dict[str, Any] = {
        "key": "k1",
        "owner": "anna",
        "id": "m1",
        "receiver": "bjorn",
        "rate": 16000,
        "channels": 1,
        "frames": 32000,
        "sha256": "ab",
        "language": "sv",
        "state": State.READY,
        "created": CREATED,
        "expires": EXPIRES,
    }
    if fields.get("state") in ENDED:
        values["forget"] = EXPIRES
    return Transcript(**(values | fields))


def delivered(t: Transcript, *parties: str) -> Transcript:
    """Sent to and acked by `parties`."""
    for party in parties:
        t = t.send_to(party).acknowledge(party)
    return t


class StateTests(SynchronousTestCase):
    """The states' names and groups."""

    def test_namesOfTheProtocol(self) -> None:
        self.assertEqual(
            [state.value for state in State],
            [
                *("uploading", "queued", "transcribing", "ready", "failed"),
                *("purged", "cancelled", "expired"),
            ],
        )

    def test_everyStateIsInOneGroup(self) -> None:
        grouped = [State.UPLOADING, *UNFINISHED, *FINISHED, *ENDED]
        self.assertEqual(sorted(grouped), sorted(State))

    def test_frozen(self) -> None:
        t = transcript()
        with self.assertRaises(FrozenInstanceError):
            t.state = State.PURGED  # type: ignore[misc]


class SecondsTests(SynchronousTestCase):
    """The duration."""

    def test_framesByRate(self) -> None:
        self.assertEqual(transcript(frames=32000).seconds, 2.0)
        self.assertEqual(transcript(frames=32000, channels=2).seconds, 2.0)
        self.assertEqual(transcript(frames=1, rate=8000).seconds, 0.0)
        self.assertEqual(transcript(frames=44101, rate=44100).seconds, 1.0)
        self.assertEqual(transcript(frames=12345, rate=8000).seconds, 1.543)


class SameRecordingTests(SynchronousTestCase):
    """:meth:`Transcript.same_recording`."""

    def test_differsIn(self) -> None:
        for field, value in (
            ("owner", "cecilia"),
            ("id", "m2"),
            ("receiver", "cecilia"),
            ("rate", 8000),
            ("channels", 2),
            ("sha256", "cd"),
        ):
            other = transcript(**{field: value})
            self.assertFalse(transcript().same_recording(other), field)
            self.assertFalse(other.same_recording(transcript()), field)

    def test_doesNotDifferIn(self) -> None:
        other = transcript(
            key="k2",
            created=5000.0,
            expires=6000.0,
            language="en",
            state=State.QUEUED,
            sent=Sides(True, True),
            model="base",
        )
        self.assertTrue(transcript().same_recording(other))


class SeenByTests(SynchronousTestCase):
    """Who sees it, and until when."""

    def test_sides(self) -> None:
        t = transcript()
        self.assertIs(t.seen_by("anna", NOW), t)
        self.assertIs(t.seen_by("bjorn", NOW), t)

    def test_strangers(self) -> None:
        said = set()
        for state in State:
            for party in ("cecilia", "", "Anna", "anna ", "m1", "k1"):
                error = self.assertRaises(UnknownId, transcript(state=state).seen_by, party, NOW)
                said.add(error.reason)
        forgotten = transcript(state=State.PURGED)
        said.add(self.assertRaises(UnknownId, forgotten.seen_by, "anna", EXPIRES).reason)
        self.assertEqual(len(said), 1)

    def test_strangerToOneSide(self) -> None:
        t = transcript(receiver="anna")
        self.assertIs(t.seen_by("anna", NOW), t)
        self.assertRaises(UnknownId, t.seen_by, "bjorn", NOW)

    def test_expiresAtTheExactMoment(self) -> None:
        for state in (*UNFINISHED, *FINISHED):
            t = transcript(state=state)
            self.assertIs(t.seen_by("anna", EXPIRES - 0.001), t)
            for now in (EXPIRES, EXPIRES + 0.001, EXPIRES + 1e9):
                self.assertIs(t.seen_by("bjorn", now).state, State.EXPIRED)

    def test_purgedAndCancelledAreForgottenAtTheExactMoment(self) -> None:
        for t in (delivered(transcript(), "anna", "bjorn"), transcript().cancel()):
            self.assertIs(t.seen_by("anna", EXPIRES - 0.001), t)
            self.assertRaises(UnknownId, t.seen_by, "anna", EXPIRES)
            self.assertRaises(UnknownId, t.seen_by, "bjorn", EXPIRES + 1)

    def test_expiredIsForgottenAfterAsLongAgain(self) -> None:
        t = transcript().expire(EXPIRES)
        self.assertIs(t.seen_by("anna", EXPIRES + TTL - 0.001), t)
        self.assertRaises(UnknownId, t.seen_by, "anna", EXPIRES + TTL)


class PresentTests(SynchronousTestCase):
    """:meth:`Transcript.present`."""

    def test_inEachState(self) -> None:
        for state in State:
            t = transcript(state=state)
            if state in (State.PURGED, State.CANCELLED, State.EXPIRED):
                self.assertRaises(Gone, t.present)
            else:
                self.assertIs(t.present(), t)

    def test_reasonsTellApart(self) -> None:
        reasons = [
            self.assertRaises(Gone, transcript(state=state).present).reason for state in ENDED
        ]
        for reason, word in zip(reasons, ("given", "cancelled", "expired"), strict=True):
            self.assertIn(word, reason)


class SendTests(SynchronousTestCase):
    """:meth:`Transcript.send_to`."""

    def test_marksTheSide(self) -> None:
        for state in FINISHED:
            t = transcript(state=state)
            self.assertEqual(t.send_to("anna"), replace(t, sent=Sides(True, False)))
            self.assertEqual(t.send_to("bjorn"), replace(t, sent=Sides(False, True)))
            both = t.send_to("bjorn").send_to("anna")
            self.assertEqual(both, replace(t, sent=Sides(True, True)))

    def test_anyNumberOfTimes(self) -> None:
        t = transcript().send_to("anna")
        self.assertEqual(t.send_to("anna"), t)

    def test_oneSide(self) -> None:
        t = transcript(receiver="anna").send_to("anna")
        self.assertEqual(t.sent, Sides(True, True))

    def test_nothingToSendYet(self) -> None:
        for state in (State.UPLOADING, *UNFINISHED):
            t = transcript(state=state)
            self.assertEqual(t.send_to("anna"), t)

    def test_gone(self) -> None:
        for state in ENDED:
            self.assertRaises(Gone, transcript(state=state).send_to, "anna")

    def test_notAfterTheAck(self) -> None:
        t = delivered(transcript(), "anna")
        error = self.assertRaises(Gone, t.send_to, "anna")
        self.assertIn("acked", error.reason)
        self.assertEqual(t.send_to("bjorn").sent, Sides(True, True))


class AcknowledgeTests(SynchronousTestCase):
    """:meth:`Transcript.acknowledge`."""

    def test_oneOfTwo(self) -> None:
        for party, given in (("anna", Sides(True, False)), ("bjorn", Sides(False, True))):
            sent = transcript().send_to(party)
            self.assertEqual(sent.acknowledge(party), replace(sent, given=given))

    def test_bothInEitherOrder(self) -> None:
        for order in (("anna", "bjorn"), ("bjorn", "anna")):
            t = delivered(transcript(), *order)
            self.assertIs(t.state, State.PURGED)
            self.assertEqual(t.given, Sides(True, True))
            self.assertEqual(t.forget, EXPIRES)

    def test_bothSentBeforeEitherAcks(self) -> None:
        t = transcript().send_to("anna").send_to("bjorn").acknowledge("bjorn")
        self.assertIs(t.state, State.READY)
        self.assertIs(t.acknowledge("anna").state, State.PURGED)

    def test_oneSide(self) -> None:
        t = delivered(transcript(receiver="anna"), "anna")
        self.assertIs(t.state, State.PURGED)
        self.assertEqual((t.given, t.forget), (Sides(True, True), EXPIRES))

    def test_failedIsAckedAsReady(self) -> None:
        t = delivered(transcript(state=State.FAILED, reason="no"), "anna")
        self.assertIs(t.state, State.FAILED)
        self.assertIs(delivered(t, "bjorn").state, State.PURGED)

    def test_beforeAnythingWasSent(self) -> None:
        for state in (State.UPLOADING, *UNFINISHED, *FINISHED):
            self.assertRaises(NotFetched, transcript(state=state).acknowledge, "anna")

    def test_whatWasSentToTheOtherSideDoesNotCount(self) -> None:
        sent = transcript().send_to("anna")
        self.assertRaises(NotFetched, sent.acknowledge, "bjorn")
        acked = sent.acknowledge("anna")
        self.assertRaises(NotFetched, acked.acknowledge, "bjorn")

    def test_fetchWhileUnfinishedIsNotSent(self) -> None:
        asked = transcript(state=State.QUEUED).send_to("anna")
        ready = replace(asked, state=State.READY)
        self.assertRaises(NotFetched, ready.acknowledge, "anna")

    def test_repeated(self) -> None:
        half = delivered(transcript(), "anna")
        self.assertIs(half.acknowledge("anna"), half)
        done = delivered(half, "bjorn")
        for party in ("anna", "bjorn"):
            self.assertIs(done.acknowledge(party), done)

    def test_repeatedAfterTheOtherSideCancelledOrItExpired(self) -> None:
        half = delivered(transcript(), "anna")
        for ended in (half.cancel(), half.expire(EXPIRES)):
            self.assertIs(ended.acknowledge("anna"), ended)

    def test_lateAfterItExpired(self) -> None:
        expired = transcript().send_to("bjorn").expire(EXPIRES)
        acked = expired.acknowledge("bjorn")
        self.assertEqual(acked, replace(expired, given=Sides(False, True)))
        self.assertRaises(Gone, acked.acknowledge, "anna")

    def test_lateFromBothDoesNotChangeHowItEnded(self) -> None:
        expired = transcript().send_to("bjorn").send_to("anna").expire(EXPIRES)
        acked = expired.acknowledge("bjorn").acknowledge("anna")
        self.assertEqual(acked, replace(expired, given=Sides(True, True)))

    def test_lateWithoutHavingBeenSent(self) -> None:
        for state in (*UNFINISHED, *FINISHED):
            expired = transcript(state=state).expire(EXPIRES)
            self.assertRaises(Gone, expired.acknowledge, "anna")

    def test_afterCancelling(self) -> None:
        for t in (transcript(), transcript().send_to("bjorn")):
            self.assertRaises(Gone, t.cancel().acknowledge, "bjorn")

    def test_hasAcked(self) -> None:
        half = delivered(transcript(), "bjorn")
        self.assertFalse(half.has_acked("anna"))
        self.assertTrue(half.has_acked("bjorn"))


class CancelTests(SynchronousTestCase):
    """:meth:`Transcript.cancel`."""

    def test_inEachState(self) -> None:
        for state in State:
            t = transcript(state=state)
            if state in ENDED:
                self.assertIs(t.cancel(), t)
            else:
                self.assertEqual(
                    t.cancel(), replace(t, state=State.CANCELLED, forget=t.expires), state
                )

    def test_marksStay(self) -> None:
        t = delivered(transcript(), "anna").cancel()
        self.assertEqual((t.sent, t.given), (Sides(True, False), Sides(True, False)))


class ExpireTests(SynchronousTestCase):
    """:meth:`Transcript.expire`."""

    def test_inEachState(self) -> None:
        for state in State:
            t = transcript(state=state)
            if state in ENDED:
                self.assertIs(t.expire(EXPIRES), t)
            else:
                self.assertEqual(
                    t.expire(EXPIRES), replace(t, state=State.EXPIRED, forget=EXPIRES + TTL)
                )

    def test_nameIsKeptFromWhenItIsNoticed(self) -> None:
        self.assertEqual(transcript().expire(EXPIRES + 5000).forget, EXPIRES + 5000 + TTL)

    def test_nameIsKeptForAMinuteAtLeast(self) -> None:
        for ttl in (0.001, MIN_MEMORY - 1, MIN_MEMORY):
            t = transcript(expires=CREATED + ttl).expire(CREATED + ttl)
            self.assertEqual(t.forget, CREATED + ttl + MIN_MEMORY)
        longer = transcript(expires=CREATED + MIN_MEMORY + 1)
        self.assertEqual(longer.expire(2000.0).forget, 2000.0 + MIN_MEMORY + 1)


class ChangeTests(SynchronousTestCase):
    """:class:`Change`."""

    def test_moved(self) -> None:
        t = transcript()
        self.assertFalse(Change(t, t).moved)
        self.assertFalse(Change(t, t.send_to("anna")).moved)
        self.assertTrue(Change(t, t.cancel()).moved)
