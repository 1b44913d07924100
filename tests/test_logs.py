"""The log: its JSON form, and what no call may hand to it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from io import StringIO
from string import Formatter
from typing import Any

from twisted.logger import ILogObserver, Logger, globalLogPublisher
from twisted.python import log
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.daemonprocess import ROOT
from transcribed import logs
from transcribed.transcript import State, Transcript


class Awkward:
    """What cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("not shown")


class Gone(StringIO):
    """A file that nobody reads any more."""

    def write(self, text: str) -> int:
        """Fail as a pipe does."""
        raise BrokenPipeError


class JSONTests(SynchronousTestCase):
    """The lines that an observer writes."""

    def setUp(self) -> None:
        self.file = StringIO()
        self.observer = logs.JSONObserver(self.file)
        self.log = Logger("some.room", observer=self.observer)

    def line(self) -> dict[str, Any]:
        """The only line that was written."""
        (line,) = self.file.getvalue().splitlines()
        self.assertTrue(self.file.getvalue().endswith("\n"))
        # Strictly: json.loads by itself takes what other readers do not.
        read: dict[str, Any] = json.loads(line, parse_constant=self.fail)
        return read

    def test_interface(self) -> None:
        verifyObject(ILogObserver, self.observer)
        verifyObject(ILogObserver, logs.json())

    def test_an_event(self) -> None:
        self.log.warn("{id} has {count} left", id="m1", count=3, ratio=0.5, note=None)
        line = self.line()
        self.assertRegex(line.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(
            line,
            {
                "level": "warn",
                "namespace": "some.room",
                "message": "m1 has 3 left",
                "id": "m1",
                "count": 3,
                "ratio": 0.5,
                "note": None,
            },
        )

    def test_its_time(self) -> None:
        self.observer({"log_time": 1795000000.25})
        self.assertEqual(self.line()["time"], "2026-11-18T11:06:40.250Z")

    def test_what_a_format_takes_out_of_objects(self) -> None:
        transcript = Transcript(
            "k", "anna", "m1", "bjorn", 16000, 1, 8000, "", "sv", State.READY, 0.0, 1.0
        )
        self.log.info("{t.owner}/{t.id}, {t.seconds} s, is {t.state}", t=transcript)
        line = self.line()
        self.assertEqual(line["message"], "anna/m1, 0.5 s, is ready")
        found = [line[key] for key in ("owner", "id", "seconds", "state")]
        self.assertEqual(found, ["anna", "m1", 0.5, "ready"])
        self.assertNotIn("t", line)

    def test_a_failure(self) -> None:
        try:
            raise ValueError("wrong\nin two lines")
        except ValueError:
            self.log.failure("{what} failed", what="it")
        line = self.line()
        self.assertEqual((line["level"], line["message"]), ("critical", "it failed"))
        self.assertIn("ValueError: wrong\nin two lines", line["traceback"])
        self.assertIn("test_a_failure", line["traceback"])

    def test_one_line_whatever_is_in_it(self) -> None:
        self.log.info("{x}", x="a\nb\r\u2028\x85\x00\ud800å")
        self.assertEqual(self.line()["x"], "a\nb\r\u2028\x85\x00\ud800å")

    def test_what_is_not_plain_is_left_out(self) -> None:
        self.log.info(
            "{a}", a=[1], b={"c": 1}, d=b"bytes", e=float("nan"), f=float("-inf"), g=Awkward()
        )
        self.assertEqual({*self.line()}, {"time", "level", "namespace", "message"})

    def test_its_own_keys_stay_its_own(self) -> None:
        self.observer({"log_format": "{level} {namespace}", "level": "x", "namespace": "y"})
        line = self.line()
        self.assertEqual((line["message"], line["level"]), ("x y", "info"))
        self.assertEqual(line["namespace"], "")

    def test_twisteds_older_events(self) -> None:
        globalLogPublisher.addObserver(self.observer)
        try:
            log.msg("a", "b", number=1)
            log.err(Failure(ValueError("wrong")), "it failed")
        finally:
            globalLogPublisher.removeObserver(self.observer)
        self.flushLoggedErrors(ValueError)
        first, second = map(json.loads, self.file.getvalue().splitlines())
        self.assertEqual((first["message"], first["number"]), ("a b", 1))
        self.assertIn("ValueError: wrong", second["traceback"])
        self.assertEqual(second["level"], "critical")

    def test_events_that_are_none(self) -> None:
        for event in ({}, {"log_format": "{"}, {"log_format": "{x.y}"}, {"log_time": "now"}):
            self.observer(event)
        self.assertEqual(len(self.file.getvalue().splitlines()), 4)

    def test_what_cannot_be_shown(self) -> None:
        self.log.info("{x}", x=Awkward())
        self.assertIn("message", self.line())
        self.observer({"log_failure": "not a failure"})
        self.assertIn("AttributeError", self.file.getvalue())

    def test_nobody_reads(self) -> None:
        closed = StringIO()
        closed.close()
        for file in (Gone(), closed):
            logs.JSONObserver(file)({"log_format": "hej"})


FORBIDDEN = {
    *("text", "texts", "word", "words", "transcription", "audio", "data", "payload", "samples"),
    *("token", "tokens", "secret", "password", "bearer", "credentials", "authorization", "header"),
}


class CallsTests(SynchronousTestCase):
    """Every call of a log in the daemon's code."""

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        for path in sorted((ROOT / "transcribed").rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    log = node.func.value
                    name = getattr(log, "id", getattr(log, "attr", ""))
                    if name in ("_log", "log"):
                        yield f"{path.name}:{node.lineno}", node

    def names(self, call: ast.Call) -> Iterator[str]:
        """What a call names: its fields, and what its format takes out of them."""
        for keyword in call.keywords:
            yield str(keyword.arg)
        for argument in call.args:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                for _, name, _, _ in Formatter().parse(argument.value):
                    yield from re.split(r"[.\[\]]", name or "")

    def test_no_field_is_what_must_not_be_told(self) -> None:
        found = list(self.calls())
        self.assertGreater(len(found), 30)
        for where, call in found:
            self.assertEqual({*self.names(call)} & FORBIDDEN, set(), where)

    def test_formats_are_written_down(self) -> None:
        # One that is put together could have anything in it.
        for where, call in self.calls():
            self.assertNotIn("None", self.names(call), f"{where}: ** is used")
            method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            format = call.args[1 if method == "emit" else 0]
            self.assertIsInstance(format, ast.Constant, where)
