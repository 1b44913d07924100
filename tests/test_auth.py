"""Who comes in, who is slowed, and who has to leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, eventAsText
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from transcribed import auth
from transcribed.addresses import source
from transcribed.auth import FIRST_WAIT, FORGIVEN, LONGEST_TIMER, LONGEST_WAIT, Doorkeeper
from transcribed.credentials import IBearerToken, Identity, IReloads, IRemembers
from transcribed.errors import Unauthenticated

HERE, THERE = "192.0.2.1", "198.51.100.1"
GOOD = "GOOD-TOKEN"


@implementer(IReloads, IRemembers)
class Checker:
    """Knows one token, of Anna; says when it was asked."""

    credentialInterfaces = (IBearerToken,)

    def __init__(self) -> None:
        self.asked = 0
        self.known = False
        self.good = True
        self.until: float | None = None
        self.broken: Exception | None = None
        self.answer: Callable[[Any], Deferred[Any]] = succeed

    def remembers(self, credentials: Any) -> bool:
        """Whether it was told to."""
        return self.known and credentials.token() == GOOD

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        """Whose it is."""
        self.asked += 1
        if credentials.token() != GOOD or credentials.claim() not in (None, "anna"):
            raise UnauthorizedLogin
        return self.answer(Identity("anna", self.until, lambda: self.good))

    def reload(self) -> None:
        """As it was told."""
        if self.broken is not None:
            raise self.broken


class Mind:
    """A client's side."""

    def __init__(self) -> None:
        self.dismissed: list[str] = []
        self.closed = False

    def dismiss(self, reason: str) -> None:
        """Remember it."""
        self.dismissed.append(reason)


class Case(SynchronousTestCase):
    """A doorkeeper with one checker."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_795_000_000.0)
        self.set_by = 0.0
        self.checker = Checker()
        self.keeper = Doorkeeper([self.checker], self.clock, self.now)
        self.mind = Mind()

    def tearDown(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.keeper._lines), 0)

    def now(self) -> float:
        return self.clock.seconds() + self.set_by

    def admit(
        self, token: str | None = GOOD, address: str | None = HERE, party: str | None = None
    ) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.keeper.admit(address, party, token, self.mind))

    def wrong(self, address: str | None = HERE, times: int = 1) -> None:
        """Wrong credentials come from there, and are refused in the end."""
        for _ in range(times):
            refused = self.admit("wrong", address)
            self.clock.advance(LONGEST_WAIT)
            self.failureResultOf(refused, Unauthenticated)

    def wait(self, address: str | None = HERE) -> float:
        """How long a try from there waits, in quarters of seconds; it gets in."""
        let_in: list[Any] = []
        self.admit(address=address).addBoth(let_in.append)
        waited = 0.0
        while not let_in:
            self.clock.advance(0.25)
            waited += 0.25
        let_in[0][1]()
        return waited


class SlowTests(Case):
    """Wrong credentials slow the address that they came from."""

    def test_doublingUpToABound(self) -> None:
        waits = []
        for _ in range(9):
            waits.append(self.wait())
            self.wrong()
        self.assertEqual(waits, [0, 0.25, 0.5, 1, 2, 4, 8, 8, 8])
        self.assertEqual((waits[1], waits[-1]), (FIRST_WAIT, LONGEST_WAIT))

    def test_theCheckerIsNotAskedBefore(self) -> None:
        self.wrong(times=3)
        asked = self.checker.asked
        self.admit("wrong").addErrback(lambda f: f.trap(Unauthenticated))
        self.clock.advance(0.99)
        self.assertEqual(self.checker.asked, asked)
        self.clock.advance(0.01)
        self.assertEqual(self.checker.asked, asked + 1)

    def test_othersAreNot(self) -> None:
        self.wrong(times=8)
        for address in (THERE, "2001:db8::/64", None):
            self.assertEqual(self.wait(address), 0)
        self.wrong(None, times=2)
        self.assertEqual((self.wait(None), self.wait(THERE)), (0.5, 0))

    def test_whoIsRightIsStillSlowed(self) -> None:
        """Or a party of ours could guess all day, getting in itself in between."""
        self.wrong(times=4)
        self.assertEqual([self.wait(), self.wait()], [2, 2])

    def test_whoIsRememberedIsNot(self) -> None:
        self.checker.known = True
        self.wrong(times=8)
        self.assertEqual(self.wait(), 0)
        self.assertGreater(self.clock.seconds(), 0)

    def test_forgiven(self) -> None:
        self.wrong(times=5)
        self.clock.advance(FORGIVEN - LONGEST_WAIT - 4)
        self.assertEqual(self.wait(), 4)
        self.wrong(times=5)
        self.clock.advance(FORGIVEN + 1)
        self.assertEqual(self.wait(), 0)
        self.wrong()
        self.assertEqual(self.wait(), FIRST_WAIT, "it begins anew")

    def test_oneAfterTheOther(self) -> None:
        """Many tries at once are no way round."""
        self.wrong(times=3)
        asked = self.checker.asked
        for _ in range(4):
            self.admit("wrong").addErrback(lambda f: f.trap(Unauthenticated))
        times = []
        for _ in range(16):
            self.clock.pump([0, 1])
            times.append(self.checker.asked - asked)
        self.assertEqual([times.index(number) + 1 for number in (1, 2, 3, 4)], [1, 3, 7, 15])

    def test_tooManyWaiting(self) -> None:
        self.patch(auth, "MOST_WAITING", 3)
        self.wrong(times=3)
        # One is at the front.
        waiting = [self.admit("wrong") for _ in range(4)]
        error = self.failureResultOf(self.admit(), Unauthenticated).value
        self.assertEqual(error.reason, "too many are coming in from your address")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.assertEqual(self.wait(THERE), 0)
        for _ in range(100):
            self.clock.advance(0.5)
        for each in waiting:
            self.failureResultOf(each, Unauthenticated)
        self.assertEqual(self.wait(), 8)

    def test_aBurstBeforeTheFirstIsFoundWrong(self) -> None:
        """All but the first of them wait all the same."""
        for _ in range(4):
            self.admit("wrong").addErrback(lambda f: f.trap(Unauthenticated))
        asked = []
        for _ in range(8):
            asked.append(self.checker.asked)
            self.clock.pump([0.125, 0.125])
        self.assertEqual(asked, [1, 2, 2, 3, 3, 3, 3, 4])

    def test_aCrowdWithTheSameToken(self) -> None:
        """As after a restart: the first one is found good, and the others are remembered."""
        slow: list[tuple[Any, Deferred[Any]]] = []

        def later(identity: Any) -> Deferred[Any]:
            slow.append((identity, Deferred()))
            return slow[-1][1]

        self.patch(auth, "MOST_WAITING", 1000)
        self.checker.answer = later
        crowd = [self.admit() for _ in range(400)]
        self.checker.answer = succeed
        identity, answer = slow.pop()
        answer.callback(identity)
        for _ in range(400):
            self.clock.advance(0)
        for each in crowd:
            self.successResultOf(each)[1]()
        self.assertEqual(len(self.keeper.parties), 0)

    def test_whoIsGoneIsPassedOver(self) -> None:
        """A crowd that says hello and hangs up costs nobody a hash."""
        self.wrong(times=2)
        asked = self.checker.asked
        self.mind.closed = True
        gone = [self.admit() for _ in range(100)]
        self.mind = Mind()
        here = self.admit()
        self.clock.advance(0)
        for each in gone:
            self.failureResultOf(each, Unauthenticated)
        self.clock.advance(0.5)
        self.successResultOf(here)[1]()
        self.assertEqual(self.checker.asked, asked + 1)

    def test_memoryIsBounded(self) -> None:
        self.patch(auth, "MOST_ADDRESSES", 100)
        self.patch(auth, "FORGIVEN", 1e9)
        for number in range(100):
            self.wrong(f"a{number}")
            self.wait(f"a{number}")
        suspects = self.keeper._suspects
        self.assertEqual(self.wait("a50"), FIRST_WAIT)
        # They are seen again, so that the first ones are not the oldest.
        self.wrong("a0")
        self.wrong("one more")
        self.assertEqual((len(suspects._wrong), "a1" in suspects._wrong), (100, False))
        self.assertEqual(self.wait("a0"), 2 * FIRST_WAIT)
        for number in range(1000):
            self.wrong(f"b{number}")
        self.assertEqual(len(suspects._wrong), 100)

    def test_nobodyWaitsForAnothersCrowd(self) -> None:
        """One try at a time is in work, and each address has one place in that line."""
        slow: list[tuple[Any, Deferred[Any]]] = []

        def later(identity: Any) -> Deferred[Any]:
            slow.append((identity, Deferred()))
            return slow[-1][1]

        self.checker.answer = later
        crowd = [self.admit() for _ in range(3)]
        other = self.admit(address=THERE)
        for done in (crowd[0], other, crowd[1], crowd[2]):
            self.assertEqual(len(slow), 1)
            identity, answer = slow.pop(0)
            self.assertNoResult(done)
            answer.callback(identity)
            self.successResultOf(done)[1]()
            self.clock.pump([0, 0])
        self.assertEqual(slow, [])

    def test_withoutCheckersNobodyIsSlowed(self) -> None:
        keeper = Doorkeeper([], self.clock, self.now)
        for _ in range(3):
            refused = Deferred.fromCoroutine(keeper.admit(HERE, None, GOOD, self.mind))
            self.failureResultOf(refused, Unauthenticated)
            avatar, leave = self.successResultOf(
                Deferred.fromCoroutine(keeper.admit(HERE, "anna", None, self.mind))
            )
            self.assertEqual((avatar.name, len(keeper.parties)), ("anna", 1))
            leave()
        self.assertEqual(len(keeper.parties), 0)


class AddressTests(SynchronousTestCase):
    """What counts as one address."""

    def test_addresses(self) -> None:
        for host, expected in (
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
            ("2001:db8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:1::/64"),
            ("2001:db8:0:2::1", "2001:db8:0:2::/64"),
            ("fe80::1%eth0", "fe80::/64"),
        ):
            kind = IPv6Address if ":" in host else IPv4Address
            self.assertEqual(source(kind("TCP", host, 5)), expected)
        self.assertEqual(source(UNIXAddress(b"/socket")), None)


class LeaveTests(Case):
    """Until when a party may stay."""

    def test_leaving(self) -> None:
        self.checker.until = self.now() + 10
        _, leave = self.successResultOf(self.admit())
        self.assertEqual(len(self.keeper.parties), 1)
        leave()
        self.assertEqual((len(self.keeper.parties), self.clock.getDelayedCalls()), (0, []))
        leave()
        self.assertEqual(self.mind.dismissed, [])

    def test_untilItsCredentialsEnd(self) -> None:
        self.checker.until = self.now() + 10
        avatar, _ = self.successResultOf(self.admit())
        self.assertEqual(avatar.name, "anna")
        self.clock.advance(9.9)
        self.assertEqual(self.mind.dismissed, [])
        self.clock.advance(0.1)
        self.assertEqual(self.mind.dismissed, ["the credentials have expired"])
        self.assertEqual(len(self.keeper.parties), 0)

    def test_veryLongCredentials(self) -> None:
        """The timer goes by seconds that pass, the end by the time of day, which may be set."""
        self.checker.until = 2.0**53
        _, leave = self.successResultOf(self.admit())
        (call,) = self.clock.getDelayedCalls()
        self.assertEqual(call.getTime() - self.clock.seconds(), LONGEST_TIMER)
        self.clock.advance(LONGEST_TIMER)
        self.assertEqual(self.mind.dismissed, [])
        self.set_by = 2.0**53
        self.clock.advance(LONGEST_TIMER)
        self.assertEqual(len(self.mind.dismissed), 1)
        leave()

    def test_review(self) -> None:
        other = Mind()
        self.successResultOf(self.admit())
        self.checker.good = False
        self.keeper.reload()
        self.assertEqual(self.mind.dismissed, ["the credentials were revoked"])
        self.checker.good, self.mind = True, other
        self.successResultOf(self.admit())
        self.keeper.reload()
        self.assertEqual((other.dismissed, len(self.keeper.parties)), ([], 1))

    def test_aBrokenFileOfOneCheckerHoldsUpNoOther(self) -> None:
        second = Checker()
        keeper = Doorkeeper([self.checker, second], self.clock, self.now)
        self.checker.broken = ValueError("line 3 was not made by transcribed token")
        reloaded: list[int] = []
        self.patch(second, "reload", lambda: reloaded.append(1))
        with capturedLogs() as events:
            keeper.reload()
        self.assertEqual(reloaded, [1])
        self.assertIn("line 3", "".join(map(eventAsText, events)))


class CheckersTests(Case):
    """Several checkers, others' checkers, and checkers that fail."""

    def test_whoIsKnownToOneIsKnown(self) -> None:
        none = Checker()
        self.patch(none, "requestAvatarId", lambda _: (_ for _ in ()).throw(UnauthorizedLogin()))
        for checkers in ([none, self.checker], [self.checker, none]):
            self.keeper = Doorkeeper(checkers, self.clock, self.now)
            avatar, _ = self.successResultOf(self.admit())
            self.assertEqual(avatar.name, "anna")
            self.failureResultOf(self.admit("wrong"), Unauthenticated)

    def test_twistedsOwn(self) -> None:
        known = InMemoryUsernamePasswordDatabaseDontUse()
        self.keeper = Doorkeeper([known, self.checker], self.clock, self.now)
        known.users = {"björn".encode(): b"secret"}
        avatar, _ = self.successResultOf(self.admit("secret", party="björn"))
        self.assertEqual(avatar.name, "björn")
        self.assertEqual(self.successResultOf(self.admit())[0].name, "anna")
        self.failureResultOf(self.admit("wrong", party="björn"), Unauthenticated)
        self.failureResultOf(self.admit("secret", THERE), Unauthenticated)

    def test_aFaultIsNotTakenForAWrongToken(self) -> None:
        self.patch(self.checker, "requestAvatarId", lambda _: 1 / 0)
        self.failureResultOf(self.admit(), ZeroDivisionError)
        self.assertEqual(self.keeper._suspects._wrong, {})

    def test_noToken(self) -> None:
        for token in (None, ""):
            self.failureResultOf(self.admit(token, party="anna"), Unauthenticated)
        self.assertEqual(self.checker.asked, 0)
