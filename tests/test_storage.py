"""What the store answers and refuses, on a database in memory."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import ImmediateStore
from tests.storagecase import CREATED, EXPIRES, NOW, TTL, transcript
from transcribed.clock import Reading
from transcribed.errors import Gone, IdTaken, NotFetched, UnknownId
from transcribed.storage._base import COLUMNS, SQLStore
from transcribed.transcript import ENDED, FINISHED, Change, Sides, State, Transcript


class StoreTestCase(SynchronousTestCase):
    """Has a store in memory."""

    def setUp(self) -> None:
        self.store = ImmediateStore()
        self.addCleanup(self.store.close)

    def accept(self, key: str = "k1", **fields: Any) -> Transcript:
        return self.successResultOf(self.store.accept(transcript(key, **fields)))

    def ready(self, key: str = "k1", **fields: Any) -> Transcript:
        """One whose text is there."""
        self.accept(key, **fields)
        ready = self.successResultOf(self.store.finish(key, "base"))
        assert ready is not None
        return ready.after

    def take(self, party: str, owner: str = "anna", id: str = "m1", now: float = NOW) -> Transcript:
        """Fetch and ack."""
        self.successResultOf(self.store.collect(owner, id, party, now))
        return self.successResultOf(self.store.acknowledge(owner, id, party, now)).after

    def rows(self) -> list[tuple[Any, ...]]:
        """All that is stored."""
        return self.store.pool.connection.execute(
            f"SELECT {', '.join(COLUMNS)} FROM transcripts ORDER BY key"
        ).fetchall()

    def stored(self, key: str = "k1") -> Transcript:
        """What is stored of one, whoever may see it."""
        row = SQLStore._one(self.store.pool.connection.cursor(), "key = ?", key)  # type: ignore[arg-type]
        assert row is not None
        return row

    def assertRefuses(self, kind: type[Exception], answer: Deferred[Any]) -> None:
        """It fails with `kind`."""
        self.failureResultOf(answer, kind)


class AcceptTests(StoreTestCase):
    """:meth:`SQLStore.accept`."""

    def test_allFieldsComeBack(self) -> None:
        full = transcript(
            rate=44100,
            channels=2,
            frames=7,
            state=State.EXPIRED,
            created=1000.125,
            expires=1100.5,
            forget=2000.75,
            sent=Sides(True, False),
            given=Sides(False, True),
            model="base",
            reason="why",
            owner="Åsa \U0001f600",
            receiver="'; DROP TABLE transcripts; --",
        )
        self.assertEqual(self.successResultOf(self.store.accept(full)), full)
        self.assertEqual(self.stored(), full)

    def test_sameSubmissionTwice(self) -> None:
        first = self.accept("k1")
        rows = self.rows()
        again = self.accept("k2", created=NOW, expires=NOW + 500, language="en")
        self.assertEqual(again, first)
        self.assertEqual(self.rows(), rows)

    def test_sameSubmissionAnswersThePresentState(self) -> None:
        ready = self.ready()
        self.assertEqual(self.accept("k2", created=NOW), ready)
        self.take("anna")
        purged = self.take("bjorn")
        self.assertEqual(self.accept("k3", created=NOW), purged)
        self.assertIs(purged.state, State.PURGED)

    def test_sameSubmissionAfterExpiryThatNobodyNoticed(self) -> None:
        self.ready()
        again = self.accept("k2", created=EXPIRES)
        self.assertEqual((again.key, again.state), ("k1", State.EXPIRED))

    def test_idTaken(self) -> None:
        self.accept("k1")
        rows = self.rows()
        for field, value in (
            ("receiver", "cecilia"),
            ("receiver", "anna"),
            ("rate", 8000),
            ("channels", 2),
            ("sha256", "cd"),
        ):
            other = transcript("k2", **{field: value})
            self.assertRefuses(IdTaken, self.store.accept(other))
        self.assertEqual(self.rows(), rows)

    def test_idTakenByWhatHasEnded(self) -> None:
        self.accept("k1")
        self.successResultOf(self.store.cancel("anna", "m1", NOW))
        self.assertRefuses(
            IdTaken, self.store.accept(transcript("k2", sha256="cd", created=EXPIRES - 0.001))
        )

    def test_ownersDoNotCollide(self) -> None:
        self.accept("k1")
        self.accept("k2", owner="bjorn", sha256="cd")
        self.assertEqual(len(self.rows()), 2)

    def test_idIsFreeOnceItsNameIsForgotten(self) -> None:
        self.accept("k1")
        self.successResultOf(self.store.cancel("anna", "m1", NOW))
        new = self.accept("k2", sha256="cd", created=EXPIRES, expires=EXPIRES + TTL)
        self.assertEqual(new.key, "k2")
        self.assertEqual([row[0] for row in self.rows()], ["k2"])

    def test_freeIdIsNotTheSameSubmission(self) -> None:
        self.accept("k1")
        self.successResultOf(self.store.cancel("anna", "m1", NOW))
        new = self.accept("k2", created=EXPIRES, expires=EXPIRES + TTL)
        self.assertEqual((new.key, new.state), ("k2", State.QUEUED))

    def test_whatIsNotInTheDatabaseIsRefusedByIt(self) -> None:
        self.accept("k1")
        self.assertRefuses(sqlite3.IntegrityError, self.store.accept(transcript("k1", id="m2")))
        self.assertEqual(len(self.rows()), 1)


class LookTests(StoreTestCase):
    """:meth:`SQLStore.look` and :meth:`SQLStore.collect`."""

    def test_sides(self) -> None:
        t = self.accept()
        for party in ("anna", "bjorn"):
            self.assertEqual(self.successResultOf(self.store.look("anna", "m1", party, NOW)), t)
            self.assertEqual(self.successResultOf(self.store.collect("anna", "m1", party, NOW)), t)

    def test_unknown(self) -> None:
        self.ready()
        rows = self.rows()
        for owner, id, party in (
            ("anna", "m2", "anna"),
            ("bjorn", "m1", "bjorn"),
            ("anna", "m1", "cecilia"),
            ("anna", "M1", "anna"),
            ("Anna", "m1", "Anna"),
        ):
            self.assertRefuses(UnknownId, self.store.look(owner, id, party, NOW))
            self.assertRefuses(UnknownId, self.store.collect(owner, id, party, NOW))
            self.assertRefuses(UnknownId, self.store.acknowledge(owner, id, party, NOW))
        self.assertEqual(self.rows(), rows)

    def test_looksChangeNothing(self) -> None:
        self.ready()
        rows = self.rows()
        self.successResultOf(self.store.look("anna", "m1", "anna", NOW))
        self.assertRefuses(Gone, self.store.look("anna", "m1", "anna", EXPIRES))
        self.assertEqual(self.rows(), rows)

    def test_collectMarksAsSent(self) -> None:
        ready = self.ready()
        collected = self.successResultOf(self.store.collect("anna", "m1", "bjorn", NOW))
        self.assertEqual(collected, replace(ready, sent=Sides(False, True)))
        self.assertEqual(self.stored(), collected)

    def test_collectOfTheUnfinishedMarksNothing(self) -> None:
        self.accept()
        self.successResultOf(self.store.collect("anna", "m1", "bjorn", NOW))
        self.assertEqual(self.stored().sent, Sides())

    def test_gone(self) -> None:
        self.ready()
        self.assertRefuses(Gone, self.store.collect("anna", "m1", "anna", EXPIRES))
        self.take("anna")
        self.assertRefuses(Gone, self.store.collect("anna", "m1", "anna", NOW))
        self.successResultOf(self.store.look("anna", "m1", "anna", NOW))
        self.take("bjorn")
        self.assertRefuses(Gone, self.store.look("anna", "m1", "anna", NOW))
        self.assertRefuses(UnknownId, self.store.look("anna", "m1", "anna", EXPIRES))


class StrangerTests(StoreTestCase):
    """A stranger's request costs the same, whether there is such a transcript or not."""

    def cost(self, owner: str, id: str) -> tuple[list[str], int]:
        """The statements that are run for Cecilia, who gets nothing, and in how many steps."""
        statements: list[str] = []
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        connection = self.store.pool.connection
        connection.set_trace_callback(statements.append)
        connection.set_progress_handler(step, 1)
        try:
            self.assertRefuses(UnknownId, self.store.look(owner, id, "cecilia", NOW))
            self.assertRefuses(UnknownId, self.store.collect(owner, id, "cecilia", NOW))
            self.assertRefuses(UnknownId, self.store.acknowledge(owner, id, "cecilia", NOW))
        finally:
            connection.set_progress_handler(None, 0)
            connection.set_trace_callback(None)
        return statements, steps

    def test_sameWorkForBoth(self) -> None:
        # Neighbours on both sides, so that neither search ends at the end of the index.
        for number, id in enumerate(("a", "m1", "z")):
            self.ready(f"k{number}", id=id)
        self.accept("k8", owner="cecilia", receiver="cecilia")
        self.accept("k9", owner="david", receiver="cecilia", id="to-cecilia")
        statements, steps = self.cost("anna", "m1")
        self.assertEqual(len(statements), 3)
        self.assertGreater(steps, 3)
        for owner, id in (("anna", "m2"), ("anna", "m0"), ("boris", "m1")):
            others, more = self.cost(owner, id)
            self.assertEqual([self.shape(s) for s in others], [self.shape(s) for s in statements])
            self.assertEqual(more, steps)

    def test_noRowIsRead(self) -> None:
        """All that a stranger's request is compared with is in one index."""
        self.ready()
        statements, _ = self.cost("anna", "m1")
        for statement in statements:
            explain = f"EXPLAIN QUERY PLAN {statement}"
            self.assertEqual(
                [row[3] for row in self.store.pool.connection.execute(explain)],
                [
                    "SEARCH transcripts USING INDEX transcripts_by_sides"
                    " (owner=? AND id=? AND receiver=?)"
                ],
            )

    @staticmethod
    def shape(statement: str) -> str:
        """A statement without its values."""
        return re.sub(r"'\w*'", "?", statement)

    def test_theirSidesStillFindIt(self) -> None:
        ready = self.ready()
        self.ready("k2", id="m2", receiver="anna")
        for party in ("anna", "bjorn"):
            seen = self.successResultOf(self.store.look("anna", "m1", party, NOW))
            self.assertEqual(seen, ready)
        self.successResultOf(self.store.look("anna", "m2", "anna", NOW))
        self.assertRefuses(UnknownId, self.store.look("anna", "m2", "bjorn", NOW))


class ClockTests(StoreTestCase):
    """:meth:`SQLStore.follow`."""

    def setUp(self) -> None:
        super().setUp()
        self.offset = 1e9
        self.assertEqual(self.follow(), 0.0, "the first time")

    def follow(self, moved: float = 0.0, boot: str = "this") -> float:
        self.offset += moved
        return self.successResultOf(self.store.follow(Reading(boot, self.offset)))

    def test_allTimesOfAll(self) -> None:
        waiting, ready = self.accept(), self.ready("k2", id="m2")
        ended = self.accept("k3", id="m3", state=State.CANCELLED, forget=EXPIRES + 7)
        for by in (3600.25, -7200.5):
            self.assertEqual(self.follow(by), by)
        moved = -3600.25
        for before in (waiting, ready, ended):
            after = self.stored(before.key)
            forget = None if before.forget is None else before.forget + moved
            times = (before.created + moved, before.expires + moved, forget)
            self.assertEqual((after.created, after.expires, after.forget), times)
            same = replace(
                after, created=before.created, expires=before.expires, forget=before.forget
            )
            self.assertEqual(same, before)

    def test_livesAsLongAsPromised(self) -> None:
        self.ready()
        self.follow(1e6)
        self.assertEqual(self.successResultOf(self.store.expire(EXPIRES + 1e6 - 0.001)), [])
        expired = self.successResultOf(self.store.expire(EXPIRES + 1e6))
        self.assertEqual([t.forget for t in expired], [EXPIRES + TTL + 1e6])

    def test_onceForEachTime(self) -> None:
        self.accept()
        self.assertEqual([self.follow(50.0), self.follow(), self.follow()], [50.0, 0.0, 0.0])
        self.assertEqual(self.stored().expires, EXPIRES + 50.0)

    def test_littleIsNoSettingOfAClock(self) -> None:
        self.accept()
        self.assertEqual([self.follow(1.5), self.follow(-1.5)], [0.0, 0.0])
        self.assertEqual(self.stored().expires, EXPIRES)

    def test_anotherStartOfTheMachine(self) -> None:
        """Nothing is known of what its clock did meanwhile."""
        self.accept()
        self.assertEqual(self.follow(1e6, boot="next"), 0.0)
        self.assertEqual(self.stored().expires, EXPIRES)
        self.assertEqual(self.follow(10.0, boot="next"), 10.0, "from then on it is")
        self.assertEqual(self.stored().expires, EXPIRES + 10.0)


class AcknowledgeTests(StoreTestCase):
    """:meth:`SQLStore.acknowledge`."""

    def test_twoSides(self) -> None:
        ready = self.ready()
        self.successResultOf(self.store.collect("anna", "m1", "bjorn", NOW))
        change = self.successResultOf(self.store.acknowledge("anna", "m1", "bjorn", NOW))
        sent = replace(ready, sent=Sides(False, True))
        self.assertEqual(change.before, sent)
        self.assertEqual(change.after, replace(sent, given=Sides(False, True)))
        self.assertFalse(change.moved)
        self.successResultOf(self.store.collect("anna", "m1", "anna", NOW))
        change = self.successResultOf(self.store.acknowledge("anna", "m1", "anna", NOW))
        self.assertTrue(change.moved)
        self.assertIs(change.after.state, State.PURGED)
        self.assertEqual(self.stored(), change.after)

    def test_idempotent(self) -> None:
        self.ready(receiver="anna")
        purged = self.take("anna")
        rows = self.rows()
        change = self.successResultOf(self.store.acknowledge("anna", "m1", "anna", NOW))
        self.assertEqual((change.before, change.after), (purged, purged))
        self.assertEqual(self.rows(), rows)

    def test_refusalsChangeNothing(self) -> None:
        self.ready()
        rows = self.rows()
        self.assertRefuses(NotFetched, self.store.acknowledge("anna", "m1", "anna", NOW))
        self.assertRefuses(Gone, self.store.acknowledge("anna", "m1", "anna", EXPIRES))
        self.assertEqual(self.rows(), rows)

    def test_lateOnes(self) -> None:
        self.ready()
        self.successResultOf(self.store.collect("anna", "m1", "bjorn", NOW))
        self.successResultOf(self.store.expire(EXPIRES))
        late = self.successResultOf(self.store.acknowledge("anna", "m1", "bjorn", EXPIRES + 1))
        self.assertIs(late.after.state, State.EXPIRED)
        self.assertEqual(late.after.given, Sides(False, True))
        self.assertFalse(late.moved)
        forgotten = self.store.acknowledge("anna", "m1", "bjorn", EXPIRES + TTL)
        self.assertRefuses(UnknownId, forgotten)

    def test_whatNobodyNoticedToHaveExpiredIsSaidToHaveMoved(self) -> None:
        # The caller has to delete its files: expire() does not tell of it again.
        self.ready()
        self.successResultOf(self.store.collect("anna", "m1", "bjorn", NOW))
        late = self.successResultOf(self.store.acknowledge("anna", "m1", "bjorn", EXPIRES))
        self.assertTrue(late.moved)
        self.assertIs(late.after.state, State.EXPIRED)
        self.assertEqual(self.successResultOf(self.store.expire(EXPIRES)), [])


class CancelTests(StoreTestCase):
    """:meth:`SQLStore.cancel`."""

    def test_inEachState(self) -> None:
        for number, state in enumerate(State):
            if state is State.UPLOADING:
                continue
            id = f"m{number}"
            ended = state in ENDED
            before = self.accept(
                f"k{number}", id=id, state=state, forget=EXPIRES if ended else None
            )
            change = self.successResultOf(self.store.cancel("anna", id, NOW))
            self.assertEqual(change.before, before)
            self.assertEqual(change.moved, not ended)
            self.assertIs(change.after.state, state if ended else State.CANCELLED)
            again = self.successResultOf(self.store.cancel("anna", id, NOW))
            self.assertEqual((again.before, again.after), (change.after, change.after))

    def test_unknown(self) -> None:
        self.accept()
        self.assertRefuses(UnknownId, self.store.cancel("anna", "m2", NOW))
        self.assertRefuses(UnknownId, self.store.cancel("bjorn", "m1", NOW))
        self.assertIs(self.stored().state, State.QUEUED)


class AdvanceTests(StoreTestCase):
    """:meth:`SQLStore.begin`, :meth:`SQLStore.finish`, :meth:`SQLStore.fail`."""

    def test_onTheWay(self) -> None:
        t = self.accept()
        begun = replace(t, state=State.TRANSCRIBING)
        self.assertEqual(self.successResultOf(self.store.begin("k1")), Change(t, begun))
        self.assertEqual(self.successResultOf(self.store.begin("k1")), Change(begun, begun))
        finished = replace(t, state=State.READY, model="base")
        change = self.successResultOf(self.store.finish("k1", "base"))
        self.assertEqual(change, Change(begun, finished))
        self.assertEqual(self.stored(), finished)

    def test_fail(self) -> None:
        t = self.accept()
        failed = replace(t, state=State.FAILED, reason="the worker died")
        change = self.successResultOf(self.store.fail("k1", "the worker died"))
        self.assertEqual(change, Change(t, failed))
        self.assertEqual(self.stored(), failed)

    def test_notWantedAnyMore(self) -> None:
        for number, state in enumerate((*FINISHED, *ENDED)):
            key = f"k{number}"
            t = self.accept(key, id=key, state=state)
            for answer in (
                self.store.begin(key),
                self.store.finish(key, "other"),
                self.store.fail(key, "late"),
            ):
                expected = None if state in ENDED else Change(t, t)
                self.assertEqual(self.successResultOf(answer), expected)
            self.assertEqual(self.stored(key), t)
        self.assertIs(self.successResultOf(self.store.finish("nothing", "base")), None)


class ListingTests(StoreTestCase):
    """:meth:`SQLStore.listing`."""

    def ids(self, party: str, now: float = NOW) -> list[str]:
        listed = self.successResultOf(self.store.listing(party, now))
        return [t.id for t in listed]

    def test_oldestFirst(self) -> None:
        self.accept("k9", id="b", created=CREATED + 1)
        self.accept("k2", id="c", created=CREATED + 2)
        self.accept("k5", id="a", created=CREATED)
        self.accept("k1", id="d", created=CREATED + 1)
        self.assertEqual(self.ids("anna"), ["a", "d", "b", "c"])

    def test_bothSides(self) -> None:
        t = self.accept("k1", id="a")
        self.accept("k2", owner="bjorn", receiver="bjorn", id="b", created=CREATED + 1)
        self.accept("k3", owner="cecilia", receiver="cecilia", id="c")
        self.assertEqual(self.ids("anna"), ["a"])
        self.assertEqual(self.ids("bjorn"), ["a", "b"])
        self.assertEqual(self.ids("d"), [])
        self.assertEqual(self.successResultOf(self.store.listing("anna", NOW)), [t])

    def test_notWhatThePartyHasAcked(self) -> None:
        self.ready()
        self.take("bjorn")
        self.assertEqual((self.ids("bjorn"), self.ids("anna")), ([], ["m1"]))

    def test_notWhatIsGone(self) -> None:
        for state in State:
            forget = EXPIRES if state in ENDED else None
            self.accept(state.value, id=state.value, state=state, forget=forget)
        listed = {*State} - {*ENDED}
        self.assertEqual(sorted(self.ids("anna")), sorted(listed))

    def test_notWhatHasExpired(self) -> None:
        self.accept()
        self.assertEqual(self.ids("anna", EXPIRES - 0.001), ["m1"])
        self.assertEqual(self.ids("anna", EXPIRES), [])


class HousekeepingTests(StoreTestCase):
    """:meth:`SQLStore.expire`, :meth:`SQLStore.unfinished`, :meth:`SQLStore.live`."""

    def test_expireAtTheExactMoment(self) -> None:
        t = self.accept()
        self.assertEqual(self.successResultOf(self.store.expire(EXPIRES - 0.001)), [])
        expired = self.successResultOf(self.store.expire(EXPIRES))
        self.assertEqual(expired, [replace(t, state=State.EXPIRED, forget=EXPIRES + TTL)])
        self.assertEqual([self.stored()], expired)
        self.assertEqual(self.successResultOf(self.store.expire(EXPIRES)), [])

    def test_expireForgetsAtTheExactMoment(self) -> None:
        self.accept()
        self.successResultOf(self.store.expire(EXPIRES))
        self.successResultOf(self.store.expire(EXPIRES + TTL - 0.001))
        self.assertEqual(len(self.rows()), 1)
        self.successResultOf(self.store.expire(EXPIRES + TTL))
        self.assertEqual(self.rows(), [])

    def test_expireLeavesTheRest(self) -> None:
        self.accept("k1", id="a")
        self.accept("k2", id="b", expires=EXPIRES + 1)
        self.accept("k3", id="c")
        self.successResultOf(self.store.cancel("anna", "c", NOW))
        expired = self.successResultOf(self.store.expire(EXPIRES))
        self.assertEqual([t.id for t in expired], ["a"])
        self.assertEqual([row[0] for row in self.rows()], ["k1", "k2"])

    def test_unfinished(self) -> None:
        for number, state in enumerate(State):
            forget = EXPIRES if state in ENDED else None
            self.accept(
                state.value,
                id=state.value,
                state=state,
                forget=forget,
                created=CREATED - number,
                expires=EXPIRES,
            )
        unfinished = self.successResultOf(self.store.unfinished())
        self.assertEqual([t.state for t in unfinished], [State.TRANSCRIBING, State.QUEUED])

    def test_live(self) -> None:
        for state in State:
            forget = EXPIRES if state in ENDED else None
            self.accept(state.value, id=state.value, state=state, forget=forget)
        self.assertEqual(
            self.successResultOf(self.store.live()),
            {state.value: state for state in State if state not in ENDED},
        )
