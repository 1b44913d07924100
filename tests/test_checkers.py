"""What ``--auth`` may name, and what is said where it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.cred.strcred import InvalidAuthArgumentString, makeChecker
from twisted.trial.unittest import SynchronousTestCase

from transcribed import tokens
from transcribed.checkers import TokenCheckerFactory, WebTokenCheckerFactory
from transcribed.service import _make_checker
from transcribed.tokens import TokenChecker
from transcribed.webtokens import WebTokenChecker


class CheckersTests(SynchronousTestCase):
    """Descriptions, as on the command line."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.tokens = self.folder / "with:colon"
        tokens.add(self.tokens, "anna")
        self.secret = self.folder / "secret"
        self.secret.write_text("s" * 32)

    def test_theyArePlugins(self) -> None:
        path = str(self.tokens).replace(":", "\\:")
        self.assertIsInstance(makeChecker(f"tokens:{path}"), TokenChecker)
        plain: Any = makeChecker(f"jwt:{self.secret}")
        self.assertIsInstance(plain, WebTokenChecker)
        self.assertEqual((plain._audience, plain._issuer), (None, None))
        url = "https\\://shop.example"
        full: Any = makeChecker(f"jwt:{self.secret}:audience=voice:issuer={url}")
        self.assertEqual((full._audience, full._issuer), ("voice", "https://shop.example"))

    def test_aFileInOnesHome(self) -> None:
        self.patch(Path, "expanduser", lambda path: self.folder / path.name)
        self.assertTrue(TokenCheckerFactory().generateChecker("~/with\\:colon"))
        self.assertTrue(WebTokenCheckerFactory().generateChecker("~/secret"))

    def test_arguments(self) -> None:
        for factory in (TokenCheckerFactory(), WebTokenCheckerFactory()):
            for wrong in ("", "a:b", "a:mode=5", "audience=x", ":"):
                error = self.assertRaises(InvalidAuthArgumentString, factory.generateChecker, wrong)
                self.assertIn("a file is needed", str(error))
        self.assertIn("audience=…", str(error))

    def test_theDaemonSaysItInOneLine(self) -> None:
        broken = self.folder / "broken"
        broken.write_text("TOPSECRET\n")
        none = self.folder / "none"
        for wrong, says in (
            (f"tokens:{none}", "No such file or directory"),
            (f"jwt:{none}", "No such file or directory"),
            (f"tokens:{self.folder}", "Is a directory"),
            (f"tokens:{broken}", "line 1 was not made by transcribed token"),
            (f"jwt:{broken}", "a shared secret must have 32 bytes"),
            ("tokens:", "a file is needed"),
            ("jwt:", "a file is needed"),
            ("nonsense:x", "nonsense"),
            ("", ""),
        ):
            error = self.assertRaises(SystemExit, _make_checker, wrong)
            line = str(error)
            self.assertTrue(line.startswith(f"transcribed: cannot use --auth {wrong}: "), line)
            self.assertIn(says, line.partition(": cannot use")[2])
            self.assertNotIn("\n", line)
            self.assertNotIn("TOPSECRET", line)
