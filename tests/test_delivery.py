"""The session: fetching, acknowledging, status and events, cancelling."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.fakes import Party
from tests.sessioncase import SECOND, Case
from transcribed import waits
from transcribed.transcript import Transcript


class FetchTests(Case):
    """fetch and ack: two-sided delivery."""

    def test_the_transcript(self) -> None:
        self.ready()
        answer = self.bjorn.ask(type="fetch", id="m1", owner="anna", ref="f")
        expires = answer.pop("expires")
        self.assertTrue(expires.endswith("Z"))
        self.assertEqual(
            answer,
            {
                "type": "transcript",
                "id": "m1",
                "owner": "anna",
                "receiver": "bjorn",
                "text": "hej då",
                "words": [
                    {"word": "hej", "start": 0.0, "end": 1.0, "confidence": 0.5},
                    {"word": "då", "start": 1.0, "end": 2.0, "confidence": 0.5},
                ],
                "seconds": 1.0,
                "language": "sv",
                "model": "fake",
                "given": {"owner": False, "receiver": False},
                "ref": "f",
            },
        )
        self.assertEqual(self.house.spool.names(), [".text"], "the audio is deleted")

    def test_waiting_lets_others_pass(self) -> None:
        self.anna.submit("m1", receiver="bjorn")
        self.bjorn.say(type="fetch", id="m1", owner="anna", ref="f")
        self.assertEqual(self.bjorn.ask(type="list")["type"], "listing")
        self.house.pool.answer("hej")
        self.assertEqual((answer := self.bjorn.heard())["type"], "transcript")
        self.assertEqual(answer["ref"], "f")
        self.assertEqual(self.bjorn.sent, [])

    def test_not_waiting(self) -> None:
        self.anna.submit("m1", receiver="bjorn")
        answer = self.bjorn.ask(type="fetch", id="m1", owner="anna", wait=False, ref="f")
        self.assertEqual(
            (answer["type"], answer["state"], answer["ref"]), ("status", "transcribing", "f")
        )

    def test_waiting_for_an_upload(self) -> None:
        self.anna.say(type="submit", id="m1", receiver="bjorn")
        self.bjorn.say(type="fetch", id="m1", owner="anna")
        self.eva.say(type="fetch", id="m1", owner="anna")
        self.assertError(self.eva.heard(), "unknown-id")
        self.anna.sound(SECOND)
        self.anna.say(type="end", id="m1")
        self.assertEqual(self.bjorn.sent, [])
        self.house.pool.answer("hej")
        self.assertEqual(self.bjorn.heard()["text"], "hej")

    def test_waiting_for_an_upload_that_breaks_off(self) -> None:
        self.anna.say(type="submit", id="m1", receiver="bjorn")
        self.bjorn.say(type="fetch", id="m1", owner="anna")
        self.anna.session.lost()
        self.assertError(self.bjorn.heard(), "unknown-id")

    def test_whoever_waits_and_leaves(self) -> None:
        self.anna.submit("m1", receiver="bjorn")
        self.bjorn.say(type="fetch", id="m1", owner="anna")
        self.bjorn.session.lost()
        self.house.pool.answer("hej")
        self.assertEqual(self.bjorn.sent, [])

    def test_any_number_until_the_side_acks(self) -> None:
        self.ready()
        for _ in range(3):
            self.assertEqual(self.anna.ask(type="fetch", id="m1")["text"], "hej då")
        answer = self.anna.ask(type="ack", id="m1", ref="a")
        self.assertEqual(
            answer,
            {
                "type": "acked",
                "id": "m1",
                "owner": "anna",
                "given": {"owner": True, "receiver": False},
                "purged": False,
                "ref": "a",
            },
        )
        self.assertError(self.anna.ask(type="fetch", id="m1"), "gone")
        self.assertEqual(
            self.bjorn.ask(type="fetch", id="m1", owner="anna")["given"],
            {"owner": True, "receiver": False},
        )

    def test_purged_when_both_have_acked(self) -> None:
        self.ready()
        for party in (self.bjorn, self.anna):
            party.ask(type="fetch", id="m1", owner="anna")
        self.assertFalse(self.bjorn.ask(type="ack", id="m1", owner="anna")["purged"])
        self.assertEqual(self.house.spool.names(), [".text"])
        self.assertTrue(self.anna.ask(type="ack", id="m1")["purged"])
        self.assertEqual(self.house.spool.names(), [])
        for party in (self.anna, self.bjorn):
            self.assertTrue(party.ask(type="ack", id="m1", owner="anna")["purged"])
            for type in ("fetch", "status"):
                self.assertError(party.ask(type=type, id="m1", owner="anna"), "gone")

    def test_ack_before_a_transcript_was_sent(self) -> None:
        self.anna.submit("m1", receiver="bjorn")
        self.assertError(self.anna.ask(type="ack", id="m1"), "not-fetched")
        self.anna.ask(type="fetch", id="m1", wait=False)
        self.assertError(self.anna.ask(type="ack", id="m1"), "not-fetched")
        self.house.pool.answer("hej")
        self.assertError(self.anna.ask(type="ack", id="m1"), "not-fetched")
        self.anna.ask(type="fetch", id="m1")
        self.assertError(self.bjorn.ask(type="ack", id="m1", owner="anna"), "not-fetched")

    def test_ack_on_another_connection_than_the_fetch(self) -> None:
        self.ready()
        self.anna.ask(type="fetch", id="m1")
        self.assertEqual(self.house.party("anna").ask(type="ack", id="m1")["type"], "acked")

    def test_a_stranger_is_told_the_same_as_of_nothing(self) -> None:
        self.ready()
        for type in ("fetch", "ack", "status", "cancel"):
            one = self.eva.ask(type=type, id="m1", owner="anna")
            other = self.eva.ask(type=type, id="m2", owner="anna")
            self.assertError(one, "unknown-id")
            self.assertEqual({**one, "id": ""}, {**other, "id": ""})
            self.assertEqual(self.anna.ask(type="status", id="m1")["state"], "ready")

    def test_expired(self) -> None:
        self.anna.submit("m1", receiver="bjorn", ttl=10)
        self.bjorn.say(type="fetch", id="m1", owner="anna")
        self.house.clock.advance(10)
        self.assertError(self.anna.ask(type="status", id="m1"), "gone")
        self.house.purge()
        self.assertError(self.bjorn.heard(), "gone")
        self.assertEqual(self.house.spool.names(), [])
        self.house.pool.answer("late")
        self.assertEqual(self.house.spool.names(), [])
        self.assertError(self.anna.ask(type="fetch", id="m1"), "gone")
        self.house.clock.advance(61)
        self.assertError(self.anna.ask(type="fetch", id="m1"), "unknown-id")

    def test_a_text_that_expires_unfetched(self) -> None:
        self.ready()
        self.bjorn.ask(type="fetch", id="m1", owner="anna")
        self.house.clock.advance(3600)
        self.house.purge()
        self.assertEqual(self.house.spool.names(), [])
        self.assertTrue(self.bjorn.ask(type="ack", id="m1", owner="anna")["purged"])
        self.assertError(self.anna.ask(type="ack", id="m1"), "gone")

    def test_an_ack_between_expiry_and_purge(self) -> None:
        self.ready()
        self.bjorn.ask(type="fetch", id="m1", owner="anna")
        self.house.clock.advance(3600)
        self.assertTrue(self.bjorn.ask(type="ack", id="m1", owner="anna")["purged"])
        self.assertEqual(self.house.spool.names(), [])

    def test_its_time_begins_when_it_is_accepted(self) -> None:
        self.anna.say(type="submit", id="m1", ttl=10)
        self.house.clock.advance(30)
        self.anna.sound(SECOND)
        self.assertEqual(self.anna.ask(type="end", id="m1")["type"], "accepted")
        self.house.clock.advance(9)
        self.assertEqual(self.anna.ask(type="status", id="m1")["type"], "status")

    def test_failed(self) -> None:
        self.anna.submit("m1", receiver="bjorn")
        self.bjorn.say(type="fetch", id="m1", owner="anna", ref="f")
        for _ in range(3):
            self.house.pool.fail("the worker died")
        self.assertError(answer := self.bjorn.heard(), "failed")
        self.assertEqual((answer["reason"], answer["ref"]), ("the worker died", "f"))
        self.assertEqual(self.house.spool.names(), [], "its audio is of no use any more")
        self.assertEqual(self.anna.ask(type="status", id="m1")["state"], "failed")
        self.assertError(self.anna.ask(type="fetch", id="m1"), "failed")
        self.assertFalse(self.anna.ask(type="ack", id="m1")["purged"])
        self.assertTrue(self.bjorn.ask(type="ack", id="m1", owner="anna")["purged"])

    def test_an_upload_that_ends_wakes_only_whoever_waits_for_it(self) -> None:
        self.anna.submit("m1", receiver="bjorn")
        self.anna.say(type="fetch", id="m1")
        self.bjorn.say(type="fetch", id="m1", owner="anna")
        asked = self.count_questions()
        other = self.house.party("anna")
        for _ in range(3):
            other.say(type="submit", id="m1", receiver="bjorn")
            self.assertError(other.ask(type="end", id="m1"), "bad-audio")
        self.assertEqual(asked, [])
        self.house.pool.answer("hej")
        self.assertEqual(asked, ["anna", "bjorn"])
        for party in (self.anna, self.bjorn):
            self.assertEqual(party.heard()["text"], "hej")

    def test_whoever_waits_for_an_upload_waits_for_the_last_of_its_name(self) -> None:
        """That is, of those of which the party is a side."""
        lines = [self.house.party("anna") for _ in range(3)]
        for line, receiver in zip(lines, ("bjorn", "bjorn", "eva"), strict=True):
            line.say(type="submit", id="m1", receiver=receiver)
        self.bjorn.say(type="fetch", id="m1", owner="anna")
        self.eva.say(type="fetch", id="m1", owner="anna")
        asked = self.count_questions()
        lines[0].session.lost()
        self.assertEqual((asked, self.bjorn.sent), ([], []))
        lines[1].session.lost()
        self.assertEqual(asked, ["bjorn"])
        self.assertError(self.bjorn.heard(), "unknown-id")
        lines[2].sound(SECOND)
        self.assertEqual(lines[2].ask(type="end", id="m1")["type"], "accepted")
        self.assertEqual(self.eva.sent, [])
        self.house.pool.answer("hej")
        self.assertEqual(self.eva.heard()["text"], "hej")

    def count_questions(self) -> list[str]:
        """Who looks for a text from now on."""
        asked: list[str] = []
        collect = self.house.store.collect

        def counted(owner: str, id: str, party: str, now: float) -> Deferred[Transcript]:
            asked.append(party)
            return collect(owner, id, party, now)

        self.patch(self.house.store, "collect", counted)
        return asked

    def test_too_many_waiting_of_a_party(self) -> None:
        self.patch(waits, "MAX_WAITING_OF_PARTY", 10)
        self.anna.submit("m1", receiver="bjorn")
        other = self.house.party("anna")
        for _ in range(5):
            self.anna.say(type="fetch", id="m1")
            other.say(type="fetch", id="m1")
        self.assertEqual((self.anna.sent, other.sent), ([], []))
        for party in (self.anna, other):
            self.assertError(answer := party.ask(type="fetch", id="m1"), "busy")
            self.assertEqual(answer["retry_after"], waits.RETRY_WAITING)
            self.assertEqual(party.ask(type="fetch", id="m1", wait=False)["type"], "status")
        self.bjorn.say(type="fetch", id="m1", owner="anna")
        self.assertEqual(self.bjorn.sent, [], "others may wait")
        other.session.lost()
        for _ in range(5):
            self.anna.say(type="fetch", id="m1")
        self.assertError(self.anna.ask(type="fetch", id="m1"), "busy")
        self.house.pool.answer("hej")
        self.assertEqual([answer["text"] for answer in self.anna.sent], ["hej"] * 10)
        self.assertEqual(len(self.house.desk._waiting), 0)

    def test_too_many_waiting(self) -> None:
        self.anna.submit("m1")
        for _ in range(1000):
            self.anna.say(type="fetch", id="m1")
        self.assertError(self.anna.ask(type="fetch", id="m1"), "busy")
        self.house.pool.answer("hej")
        self.assertEqual(len(self.anna.sent), 1000)


class StatusTests(Case):
    """status, list, subscribe."""

    def test_status(self) -> None:
        self.anna.submit("m1", SECOND * 60, receiver="bjorn")
        self.house.pool.answer("hej")
        answer = self.bjorn.ask(type="status", id="m1", owner="anna", ref="s")
        self.assertTrue(answer.pop("expires"))
        self.assertEqual(
            answer,
            {
                "type": "status",
                "id": "m1",
                "owner": "anna",
                "receiver": "bjorn",
                "state": "transcribing",
                "progress": 0.3333,
                "seconds": 60.0,
                "given": {"owner": False, "receiver": False},
                "ref": "s",
            },
        )

    def test_the_list_is_of_what_the_party_has_not_acked(self) -> None:
        for id in ("m1", "m2"):
            self.house.clock.advance(1)
            self.ready(id)
        self.house.clock.advance(1)
        self.bjorn.submit("b1")

        def ids(party: Party) -> list[str]:
            return [t["id"] for t in party.ask(type="list")["transcripts"]]

        self.assertEqual(ids(self.anna), ["m1", "m2"])
        self.assertEqual(ids(self.bjorn), ["m1", "m2", "b1"])
        self.assertEqual(ids(self.eva), [])
        self.anna.ask(type="fetch", id="m1")
        self.anna.ask(type="ack", id="m1")
        self.assertEqual(ids(self.anna), ["m2"])
        self.assertEqual(ids(self.bjorn), ["m1", "m2", "b1"])
        listed = self.anna.ask(type="list")["transcripts"][0]
        status = self.anna.ask(type="status", id="m2")
        del status["type"]
        self.assertEqual(listed, status)

    def test_events(self) -> None:
        for party in (self.anna, self.bjorn, self.eva):
            answer = party.ask(type="subscribe", ref="s")
            self.assertEqual(answer, {"type": "subscribed", "ref": "s"})
        other = self.house.party("anna")
        other.submit("m1", SECOND * 40, receiver="bjorn")
        self.house.pool.answer("hej")
        self.house.pool.answer("då")
        self.assertEqual(
            self.bjorn.sent[0],
            {
                "type": "event",
                "id": "m1",
                "owner": "anna",
                "receiver": "bjorn",
                "state": "queued",
                "progress": 0.0,
            },
        )
        for party in (self.anna, self.bjorn):
            self.assertEqual(
                [(e["state"], e["progress"]) for e in party.sent],
                [("queued", 0), ("transcribing", 0), ("transcribing", 0.5), ("ready", 1)],
            )
            party.sent.clear()
        other.ask(type="cancel", id="m1")
        self.assertEqual(self.bjorn.heard()["state"], "cancelled")
        self.assertEqual(self.eva.sent, [])

    def test_events_come_after_the_answer(self) -> None:
        self.anna.ask(type="subscribe")
        self.anna.say(type="submit", id="m1")
        self.anna.sound(SECOND)
        self.anna.say(type="end", id="m1")
        self.assertEqual(
            [a.get("state") if a["type"] == "event" else a["type"] for a in self.anna.sent],
            ["accepted", "queued", "transcribing"],
        )

    def test_an_event_once_only(self) -> None:
        self.anna.ask(type="subscribe")
        self.anna.ask(type="subscribe")
        self.house.party("anna").submit("m1")
        self.assertEqual([e["state"] for e in self.anna.sent], ["queued", "transcribing"])
        self.anna.session.lost()
        self.house.pool.answer("hej")
        self.assertEqual(len(self.anna.sent), 2)


class CancelTests(Case):
    """cancel: in any state, by the owner only."""

    def cancel(self, id: str = "m1") -> None:
        answer = self.anna.ask(type="cancel", id=id, ref="c")
        self.assertEqual(answer, {"type": "cancelled", "id": id, "owner": "anna", "ref": "c"})
        self.assertEqual(self.house.spool.names(), [])

    def test_ready(self) -> None:
        self.ready()
        self.cancel()
        for party in (self.anna, self.bjorn):
            for type in ("fetch", "status", "ack"):
                self.assertError(party.ask(type=type, id="m1", owner="anna"), "gone")
        self.cancel()

    def test_in_work(self) -> None:
        self.anna.submit("m1", SECOND * 60, receiver="bjorn")
        self.bjorn.say(type="fetch", id="m1", owner="anna")
        self.cancel()
        self.assertError(self.bjorn.heard(), "gone")
        self.house.pool.answer("hej")
        self.assertEqual(self.house.pool.work, [], "its other windows are not transcribed")
        self.assertEqual(self.house.spool.names(), [])

    def test_failed_and_purged(self) -> None:
        self.anna.submit("m1")
        for _ in range(3):
            self.house.pool.fail()
        self.cancel()
        self.anna.submit("m2")
        self.house.pool.answer("hej")
        self.anna.ask(type="fetch", id="m2")
        self.anna.ask(type="ack", id="m2")
        self.cancel("m2")
        self.assertTrue(self.anna.ask(type="ack", id="m2")["purged"], "it stays as it ended")

    def test_the_open_upload(self) -> None:
        self.anna.say(type="submit", id="m1", ref="s")
        self.anna.sound(SECOND)
        self.cancel()
        self.anna.sound(SECOND)
        self.assertError(self.anna.heard(), "bad-message")
        self.assertError(self.anna.ask(type="status", id="m1"), "unknown-id")
        self.assertEqual(self.anna.submit("m1")["type"], "accepted")

    def test_an_upload_on_another_connection(self) -> None:
        other = self.house.party("anna")
        other.say(type="submit", id="m1", ref="s")
        other.sound(SECOND)
        self.cancel()
        self.assertError(answer := other.heard(), "gone")
        self.assertEqual(answer["ref"], "s")
        other.sound(SECOND)
        other.say(type="end", id="m1")
        self.assertEqual(other.sent, [])

    def test_by_the_receiver(self) -> None:
        self.ready()
        self.assertError(self.bjorn.ask(type="cancel", id="m1", owner="anna"), "unknown-id")
        self.assertError(self.bjorn.ask(type="cancel", id="m1"), "unknown-id")
        self.assertEqual(self.anna.ask(type="status", id="m1")["state"], "ready")
