"""Hello and its token, with a file of tokens; and no token in the log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jwt
from twisted.internet.defer import succeed
from twisted.logger import capturedLogs, eventAsText
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import House, Party
from transcribed import tokens
from transcribed.auth import FIRST_WAIT, FORGIVEN, LONGEST_WAIT
from transcribed.tokens import TokenChecker
from transcribed.webtokens import WebTokenChecker


class HelloTests(SynchronousTestCase):
    """A whole house, and a file with the tokens of two parties."""

    def setUp(self) -> None:
        self.patch(tokens, "LOG_N", 5)
        self.file = Path(self.mktemp())
        self.token = tokens.add(self.file, "anna")[0]
        self.other = tokens.add(self.file, "bjorn")[0]
        self.house = House(Path(self.mktemp()))
        self.house.checkers = [TokenChecker(self.file, lambda work: succeed(work()))]
        self.house.open()
        captured = capturedLogs()
        self.events = captured.__enter__()
        self.addCleanup(captured.__exit__, None, None, None)

    def tearDown(self) -> None:
        self.assertEqual(self.house.clock.getDelayedCalls(), [])
        told = "".join(repr(event) + eventAsText(event) for event in self.events)
        for token in (self.token, self.other, "WRONG"):
            self.assertNotIn(token.split(".")[-1], told)

    def hello(self, bearer: str | None = None, **more: object) -> tuple[Party, dict[str, Any]]:
        client = self.house.party(None)
        client.bearer = bearer
        return client, client.ask(type="hello", **more)

    def assertRefused(self, bearer: str | None = None, **more: object) -> None:
        client, answer = self.hello(bearer, **more)
        self.assertEqual((answer["type"], answer["code"]), ("error", "unauthenticated"))
        self.assertEqual(client.closed, (1008, answer["reason"]))
        self.house.clock.advance(FORGIVEN + 1)

    def test_tokensInHello(self) -> None:
        client, answer = self.hello(party="anna", token=self.token, ref="r")
        self.assertEqual((answer["type"], answer["party"], answer["ref"]), ("welcome", "anna", "r"))
        self.assertEqual(client.ask(type="list")["type"], "listing")
        client.session.lost()
        self.assertEqual(len(self.house.doorkeeper.parties), 0)
        _, answer = self.hello(token=self.other)
        self.assertEqual(answer["party"], "bjorn")

    def test_tokensInTheHandshake(self) -> None:
        self.assertEqual(self.hello(self.token)[1]["party"], "anna")
        self.assertEqual(self.hello(self.token, party="anna")[1]["party"], "anna")
        self.assertEqual(self.hello("WRONG", token=self.token)[1]["party"], "anna")

    def test_refused(self) -> None:
        self.assertRefused(party="anna")
        self.assertRefused()
        self.assertRefused(party="anna", token="WRONG")
        self.assertRefused(party="bjorn", token=self.token)
        self.assertRefused(self.token, party="bjorn")
        self.assertRefused("WRONG")
        self.assertRefused(self.token, token="WRONG")
        self.assertRefused("", party="anna")
        self.assertEqual({*self.house.refusals}, {"unauthenticated"})
        self.assertEqual(len(self.house.doorkeeper.parties), 0)

    def test_theSameWordsForAllThatIsWrong(self) -> None:
        id, secret = self.token.split(".")
        reasons = set()
        for token in ("WRONG", f"{id}.WRONG", f"nobody.{secret}"):
            reasons.add(self.hello(party="anna", token=token)[1]["reason"])
            self.house.clock.advance(FORGIVEN + 1)
        self.assertEqual(reasons, {"the credentials are wrong"})

    def test_revoked(self) -> None:
        anna, _ = self.hello(token=self.token)
        bjorn, _ = self.hello(token=self.other)
        anna.say(type="submit", id="m1")
        tokens.revoke(self.file, "anna")
        self.house.doorkeeper.reload()
        self.assertEqual(anna.heard()["code"], "unauthenticated")
        self.assertEqual(anna.closed, (1008, "the credentials were revoked"))
        self.assertEqual(bjorn.closed, None)
        self.assertEqual(bjorn.ask(type="list")["type"], "listing")
        anna.session.lost()
        self.assertEqual(self.house.spool.names(), [])
        self.assertEqual(len(self.house.doorkeeper.parties), 1)
        self.assertRefused(token=self.token)

    def test_goneWhileItWaits(self) -> None:
        self.hello(token="WRONG")
        client = self.house.party(None)
        client.say(type="hello", token=self.token)
        self.assertEqual(len(self.house.clock.getDelayedCalls()), 1)
        client.session.lost()
        self.house.clock.advance(FIRST_WAIT)
        self.assertEqual((client.sent, len(self.house.doorkeeper.parties)), ([], 0))

    def test_slowIsNotLate(self) -> None:
        """The time for hello ends with hello, however long the doorkeeper takes."""
        for _ in range(8):
            wrong = self.house.party(None)
            wrong.say(type="hello", token="WRONG")
            self.house.clock.advance(LONGEST_WAIT)
            self.assertEqual(wrong.heard()["code"], "unauthenticated")
        clients = [self.house.party(None) for _ in range(2)]
        for client in clients:
            client.say(type="hello", token=self.token)
        self.house.clock.advance(2 * LONGEST_WAIT)
        self.assertGreater(2 * LONGEST_WAIT, self.house.host.hello_seconds)
        for client in clients:
            self.assertEqual((client.heard()["type"], client.closed), ("welcome", None))

    def test_aTokenThatEnds(self) -> None:
        """In the middle of a connection, too, and nothing of its upload is left."""
        secret = "s" * 32
        self.file.write_text(secret)
        exp = int(time.time()) + 3600
        self.house.checkers = [WebTokenChecker(self.file)]
        self.house.open()
        self.house.clock.advance(exp - 60 - self.house.clock.seconds())
        anna, _ = self.hello(jwt.encode({"sub": "anna", "exp": exp}, secret))
        bjorn, _ = self.hello(jwt.encode({"sub": "bjorn", "exp": exp + 3600}, secret))
        eva, _ = self.hello(jwt.encode({"sub": "eva", "exp": exp}, secret))
        eva.session.lost()
        anna.say(type="submit", id="m1")
        self.house.clock.advance(59)
        self.assertEqual(anna.ask(type="list")["type"], "listing")
        self.house.clock.advance(1)
        self.assertEqual(anna.heard()["reason"], "the credentials have expired")
        self.assertEqual(anna.closed, (1008, "the credentials have expired"))
        anna.session.lost()
        self.assertEqual(self.house.spool.names(), [])
        self.assertEqual(bjorn.ask(type="list")["type"], "listing")
        self.assertEqual(eva.closed, None)
        bjorn.session.lost()
        self.assertEqual(len(self.house.doorkeeper.parties), 0)
