"""Tokens in a file: what is stored, what is changed, who is found out, and the command for it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from transcribed import admin, tokens
from transcribed.credentials import Bearer, Identity, PartyAndToken
from transcribed.task import UNFORESEEN, UNREADABLE
from transcribed.tokens import TokenChecker


class Case(SynchronousTestCase):
    """A file of tokens, and how often the slow hash is computed."""

    def setUp(self) -> None:
        self.file = Path(self.mktemp())
        self.hashes = 0
        slow = hashlib.scrypt

        def counted(*args: Any, **more: Any) -> bytes:
            self.hashes += 1
            return slow(*args, **more)

        self.patch(hashlib, "scrypt", counted)
        self.cost_of_real_ones = tokens.LOG_N
        self.patch(tokens, "LOG_N", 5)

    def add(self, party: str = "anna") -> str:
        return tokens.add(self.file, party)[0]


class FileTests(Case):
    """What is in the file, and how it is changed."""

    def test_onlyASlowSaltedHashIsStored(self) -> None:
        token, again = self.add("anna"), self.add("bjorn")
        stored = self.file.read_text()
        for each in (token, again):
            self.assertNotIn(each, stored)
            self.assertNotIn(each.split(".")[1], stored)
            secret = each.split(".")[1].encode()
            for name in ("sha256", "sha1", "md5", "blake2b"):
                self.assertNotIn(hashlib.new(name, secret).hexdigest(), stored)
        one, other = tokens.read(self.file).values()
        self.assertNotEqual(one.salt, other.salt)
        self.assertEqual(len(one.salt), 16)
        self.assertEqual(one.cost, (5, 8, 1))
        self.assertGreaterEqual(self.cost_of_real_ones, 13)
        self.assertGreaterEqual(len(token.split(".")[1]), 43, "256 bits")
        self.assertNotEqual(token, again)

    def test_theFileIsItsUsersOnly(self) -> None:
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        self.add()
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o600)
        self.add()
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o600)
        self.assertEqual(list(self.file.parent.glob(f".{self.file.name}*")), [])

    def test_whoMayReadItStaysSo(self) -> None:
        self.add()
        self.file.chmod(0o640)
        self.add("bjorn")
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o640)

    def test_remarksAndLinksStay(self) -> None:
        self.add()
        self.file.write_text("# Whose these are\n" + self.file.read_text())
        link = self.file.with_name("link")
        link.symlink_to(self.file.absolute())
        tokens.add(link, "bjorn")
        self.assertTrue(link.is_symlink())
        self.assertEqual(self.file.read_text().split("\n", 1)[0], "# Whose these are")
        parties = [entry.party for entry in tokens.read(self.file).values()]
        self.assertEqual(parties, ["anna", "bjorn"])

    def test_addReplaces(self) -> None:
        self.assertEqual(tokens.add(self.file, "anna")[1], False)
        self.add("bjorn")
        (first,) = [e for e in tokens.read(self.file).values() if e.party == "anna"]
        token, had_one = tokens.add(self.file, "anna")
        self.assertEqual(had_one, True)
        entries = tokens.read(self.file)
        self.assertEqual(sorted(e.party for e in entries.values()), ["anna", "bjorn"])
        self.assertNotIn(first.id, entries)
        self.assertTrue(entries[token.split(".")[0]].matches(token.split(".")[1]))

    def test_revokeRemoves(self) -> None:
        self.add("anna")
        self.add("bjorn")
        self.assertEqual(tokens.revoke(self.file, "anna"), True)
        self.assertEqual([e.party for e in tokens.read(self.file).values()], ["bjorn"])
        self.assertEqual(tokens.revoke(self.file, "anna"), False)
        self.assertNotIn("anna", self.file.read_text())

    def test_twoChangesAtOnce(self) -> None:
        """None is lost: each sees what the one before has written."""
        parties = [f"party {i}" for i in range(8)]
        threads = [threading.Thread(target=self.add, args=[party]) for party in parties]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        found = sorted(e.party for e in tokens.read(self.file).values())
        self.assertEqual(found, sorted(parties))

    def test_aBrokenLineIsNamedButNotShown(self) -> None:
        self.add()
        good = self.file.read_text()
        for wrong in (
            "anna:TOPSECRET",
            "TOPSECRET",
            good.strip().replace("$8$1$", "$8$TOPSECRET$"),
            good.strip().replace("$5$", "$40$"),
            good.strip().replace("$5$", "$0$"),
            good.strip().replace("scrypt", "TOPSECRET"),
            good.strip() + "x" * 200,
        ):
            self.file.write_text(f"# ours\n\n{good}{wrong}\n")
            error = self.assertRaises(ValueError, tokens.read, self.file)
            self.assertEqual(str(error), "line 4 was not made by transcribed token")
            self.assertRaises(ValueError, tokens.add, self.file, "bjorn")
            self.assertIn(wrong, self.file.read_text(), "it is left as it is")
            self.assertEqual(list(self.file.parent.glob(f".{self.file.name}*")), [])

    def test_everyNameOfAPartyCanBeReadAgain(self) -> None:
        for party in ("å ä ö", "#1", "a\u2028b", "a\u2029b", "a\u00a0b", "$1$", "x" * 128, "🎤"):
            token = self.add(party)
            self.assertEqual(tokens.read(self.file)[token.split(".")[0]].party, party)
            self.assertTrue(tokens.revoke(self.file, party))

    def test_whatIsNoParty(self) -> None:
        for party in ("", "x" * 129, "a\nb", "a\tb", "a\x7f", "a\x85b", " a", "a ", "\u2028"):
            self.assertRaises(ValueError, tokens.add, self.file, party)
        self.assertFalse(self.file.exists())

    def test_windowsLineEnds(self) -> None:
        self.add()
        self.file.write_bytes(self.file.read_bytes().replace(b"\n", b"\r\n"))
        self.assertEqual([e.party for e in tokens.read(self.file).values()], ["anna"])

    def test_noDirectory(self) -> None:
        self.assertRaises(FileNotFoundError, tokens.add, self.file / "no" / "file", "anna")


class CheckerTests(Case):
    """Who is found out, at what cost, and what a change of the file makes of that."""

    def setUp(self) -> None:
        super().setUp()
        self.token = self.add("anna")
        self.other = self.add("bjorn")
        self.checker = TokenChecker(self.file, lambda work: succeed(work()))

    def ask(self, token: str, claim: str | None = None) -> str | None:
        """Who it is found to be."""
        shown = Bearer(token, None) if claim is None else PartyAndToken(token, claim)
        found: list[Any] = []
        self.checker.requestAvatarId(shown).addBoth(found.append)
        (identity,) = found
        if isinstance(identity, Failure):
            identity.trap(UnauthorizedLogin)
            return None
        assert isinstance(identity, Identity)
        self.assertEqual(identity.until, None)
        return identity.party

    def cost(self, token: str, claim: str | None = None) -> int:
        """How many hashes it takes to find out."""
        before = self.hashes
        self.ask(token, claim)
        return self.hashes - before

    def test_theTokenSaysWhoItIs(self) -> None:
        self.assertEqual(self.ask(self.token), "anna")
        self.assertEqual(self.ask(self.other), "bjorn")
        self.assertEqual(self.ask(self.token, "anna"), "anna")

    def test_wrongOnes(self) -> None:
        id, secret = self.token.split(".")
        wrong = ("", ".", id, id + ".", "." + secret, secret, self.token + "x", self.token[:-1])
        more = (f"{id}.{self.other.split('.')[1]}", "nobody." + secret, "å.\ud800", self.token * 40)
        for token in wrong + more:
            self.assertEqual(self.ask(token), None, token)
            self.assertFalse(self.checker.remembers(Bearer(token, None)))

    def test_aTokenOfAnotherParty(self) -> None:
        self.assertEqual(self.ask(self.token, "bjorn"), None)
        self.assertEqual(self.ask(self.token, "anna"), "anna")
        # Not when it is remembered either.
        self.assertEqual(self.ask(self.token, "bjorn"), None)
        self.assertFalse(self.checker.remembers(PartyAndToken(self.token, "bjorn")))
        self.assertEqual(self.ask(self.token, "\ud800"), None)

    def test_whatIsUnknownCostsTheSameHash(self) -> None:
        id, secret = self.token.split(".")
        wrong = (f"{id}.wrong", f"nobody.{secret}", f"nobody.{secret}x", "nobody.x")
        costs = []
        slow = hashlib.scrypt

        def seen(*args: Any, **more: Any) -> bytes:
            costs.append((more["n"], more["r"], more["p"], len(more["salt"]), more["dklen"]))
            return slow(*args, **more)

        self.patch(hashlib, "scrypt", seen)
        for token in wrong:
            self.assertEqual(self.cost(token), 1, token)
        self.assertEqual(self.cost(self.token, "bjorn"), 1)
        self.assertEqual(len(set(costs)), 1, costs)
        self.assertEqual(len(costs), 5)

    def test_tokensOfOtherKindsAreNotHashed(self) -> None:
        for longest in ("x" * 64 + "." + "y" * 128, "x.y"):
            self.assertEqual(self.cost(longest), 1)
        id = self.token.split(".")[0]
        others = ("", "x", ".", "x.", ".y", "a.b.c", f"{id}.y z", f"{id}.å", "x." + "y" * 129)
        for token in (*others, "x" * 65 + ".y", self.token + "\n", "\ud800.y", "y" * 100_000):
            self.assertEqual(self.cost(token), 0, token)

    def test_theSecondTimeThereIsNoHash(self) -> None:
        credentials = Bearer(self.token, None)
        self.assertFalse(self.checker.remembers(credentials))
        self.assertEqual(self.cost(self.token), 1)
        self.assertTrue(self.checker.remembers(credentials))
        self.assertEqual(self.cost(self.token), 0)
        self.assertEqual(self.cost(self.token, "anna"), 0)
        self.assertEqual(self.cost(self.token + "x"), 1)
        held = repr(vars(self.checker))
        self.assertNotIn(self.token.split(".")[1], held)

    def test_revokedWithAReload(self) -> None:
        identity = self.successResultOf(self.checker.requestAvatarId(Bearer(self.token, None)))
        stays = self.successResultOf(self.checker.requestAvatarId(Bearer(self.other, None)))
        tokens.revoke(self.file, "anna")
        self.assertTrue(identity.good(), "the file is read when it is said so")
        self.checker.reload()
        self.assertFalse(identity.good())
        self.assertTrue(stays.good())
        self.assertFalse(self.checker.remembers(Bearer(self.token, None)))
        self.assertEqual(self.ask(self.token), None)
        self.assertEqual(self.cost(self.other), 0, "it is still remembered")

    def test_replacedWithAReload(self) -> None:
        identity = self.successResultOf(self.checker.requestAvatarId(Bearer(self.token, None)))
        token = self.add("anna")
        self.checker.reload()
        self.assertFalse(identity.good())
        self.assertEqual(self.ask(self.token), None)
        self.assertEqual(self.ask(token), "anna")

    def test_anotherSecretWithTheSameId(self) -> None:
        """What is remembered of the one is not good for the other."""
        self.ask(self.token)
        entries = tokens.read(self.file)
        id, other = (each.split(".")[0] for each in (self.token, self.other))
        mixed = replace(entries[other], id=id, party="anna")
        self.file.write_text(f"{mixed.line()}\n")
        self.checker.reload()
        self.assertFalse(self.checker.remembers(Bearer(self.token, None)))
        self.assertEqual(self.ask(self.token), None)
        self.assertEqual(self.ask(f"{id}.{self.other.split('.')[1]}"), "anna")
        self.assertEqual(self.ask(self.other), None)

    def test_aBrokenFileKeepsWhatWas(self) -> None:
        self.ask(self.token)
        for spoil in (lambda: self.file.write_text("rubbish\n"), self.file.unlink):
            spoil()
            self.assertRaises((ValueError, OSError), self.checker.reload)
            self.assertEqual(self.cost(self.token), 0)
            self.assertEqual(self.ask(self.other), "bjorn")

    def test_aFileThatIsNotThereAtTheStart(self) -> None:
        self.file.unlink()
        self.assertRaises(FileNotFoundError, TokenChecker, self.file)


class ThreadTests(Case):
    """The slow hash is computed elsewhere, one at a time."""

    def setUp(self) -> None:
        super().setUp()
        self.token = self.add("anna")
        self.works: list[tuple[Callable[[], bool], Deferred[bool]]] = []
        self.checker = TokenChecker(self.file, self.later)

    def later(self, work: Callable[[], bool]) -> Deferred[bool]:
        done: Deferred[bool] = Deferred()
        self.works.append((work, done))
        return done

    def run_next(self) -> None:
        work, done = self.works.pop(0)
        done.callback(work())

    def test_oneAtATime(self) -> None:
        found: list[Any] = []
        for _ in range(3):
            self.checker.requestAvatarId(Bearer(self.token, None)).addBoth(found.append)
        for count in (1, 2, 3):
            self.assertEqual(len(self.works), 1)
            self.run_next()
            self.assertEqual([each.party for each in found], ["anna"] * count)
        self.assertEqual(self.works, [])

    def test_revokedWhileItIsChecked(self) -> None:
        asked = self.checker.requestAvatarId(Bearer(self.token, None))
        tokens.revoke(self.file, "anna")
        self.checker.reload()
        self.run_next()
        self.failureResultOf(asked, UnauthorizedLogin)
        self.assertFalse(self.checker.remembers(Bearer(self.token, None)))

    def test_aHashThatFailsHoldsUpNobody(self) -> None:
        first = self.checker.requestAvatarId(Bearer(self.token, None))
        second = self.checker.requestAvatarId(Bearer(self.token, None))
        self.works.pop(0)[1].errback(MemoryError())
        self.failureResultOf(first, MemoryError)
        self.run_next()
        self.assertEqual(self.successResultOf(second).party, "anna")


class CommandTests(Case):
    """``transcribed token``."""

    def run_token(self, *args: str, status: int = 0) -> tuple[str, str]:
        """Stdout and stderr."""
        done = CliRunner().invoke(admin.cli, ["token", *args, "--file", str(self.file)])
        self.assertEqual(done.exit_code, status, done.output)
        return done.stdout, done.stderr

    def test_theTokenIsAloneOnStdout(self) -> None:
        out, err = self.run_token("add", "anna")
        self.assertEqual((out.count("\n"), err), (1, ""))
        checker = TokenChecker(self.file, lambda work: succeed(work()))
        asked = checker.requestAvatarId(Bearer(out.strip(), None))
        self.assertEqual(self.successResultOf(asked).party, "anna")

    def test_anotherOneIsSaid(self) -> None:
        first, _ = self.run_token("add", "anna")
        second, err = self.run_token("add", "anna")
        self.assertNotEqual(first, second)
        self.assertEqual(err.count("\n"), 1)
        self.assertIn("the token that anna had is good no more", err)
        self.assertIn("SIGHUP", err)
        for token in (first, second):
            self.assertNotIn(token.strip(), err)

    def test_revoke(self) -> None:
        self.run_token("add", "anna")
        self.assertEqual(self.run_token("revoke", "anna"), ("", ""))
        out, err = self.run_token("revoke", "anna", status=UNFORESEEN)
        self.assertEqual((out, err), ("", f"transcribed: anna has no token in {self.file}\n"))

    def test_errorsAreOneLine(self) -> None:
        self.file.write_text("TOPSECRET\n")
        for command in ("add", "revoke"):
            out, err = self.run_token(command, "anna", status=UNREADABLE)
            self.assertEqual((out, err.count("\n")), ("", 1), err)
            self.assertIn(f"{self.file}: line 1 was not made by transcribed token", err)
            self.assertNotIn("TOPSECRET", err)
        self.file.unlink()
        _, err = self.run_token("add", "a\nb", status=UNREADABLE)
        self.assertEqual(err.count("\n"), 1)
        self.file = self.file / "no" / "file"
        _, err = self.run_token("add", "anna", status=UNREADABLE)
        self.assertEqual(err, f"transcribed: {self.file}: No such file or directory\n")
