"""A house and its parties, for the tests of the session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import House

SECOND = b"\1\0" * 16000


class Case(SynchronousTestCase):
    """A house with Anna, Bjorn and Eva, who has no part in anything."""

    def setUp(self) -> None:
        self.house = House(Path(self.mktemp()))
        self.anna = self.house.party("anna")
        self.bjorn = self.house.party("bjorn")
        self.eva = self.house.party("eva")

    def tearDown(self) -> None:
        self.assertEqual(self.house.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def ready(self, id: str = "m1", *words: str) -> None:
        self.anna.submit(id, receiver="bjorn")
        self.house.pool.answer(*(words or ("hej", "då")))

    def assertError(self, answer: dict[str, Any], code: str) -> None:
        self.assertEqual((answer["type"], answer.get("code")), ("error", code), answer)
        self.assertTrue(answer["reason"])
