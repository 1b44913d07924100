"""Frames to requests and answers to frames, at every limit that the protocol names."""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from transcribed import wire
from transcribed.recognition import Word
from transcribed.wire import Given, Limits, Unparsable, parse, render, timestamp, with_ref


def frame(**message: object) -> bytes:
    return msgspec.json.encode(message)


class WireTestCase(SynchronousTestCase):
    """What is asked of frames."""

    def assertBad(self, data: bytes, ref: str | None = None, says: str = "") -> str:
        """It is refused with `ref`, and with a reason that contains `says`; answers the reason."""
        error = self.assertRaises(Unparsable, parse, data)
        self.assertEqual(error.error.code, "bad-message")
        self.assertEqual(error.ref, ref)
        self.assertIn(says, error.error.reason)
        self.assertTrue(error.error.reason)
        self.assertLess(len(error.error.reason), 200)
        return str(error.error.reason)

    def assertParses(self, request: wire.AnyRequest, **message: object) -> None:
        self.assertEqual(parse(frame(**message)), request)


class RequestTests(WireTestCase):
    """Each request, with its defaults and with everything."""

    def test_defaults(self) -> None:
        self.assertParses(wire.Hello(party=None, token=None, ref=None), type="hello")
        submit = wire.Submit(
            id="m1", receiver=None, rate=16000, channels=1, ttl=None, language=None, ref=None
        )
        self.assertParses(submit, type="submit", id="m1")
        self.assertParses(wire.End(id="m1", sha256=None, ref=None), type="end", id="m1")
        self.assertParses(
            wire.Fetch(id="m1", owner=None, wait=True, ref=None), type="fetch", id="m1"
        )
        self.assertParses(wire.Ack(id="m1", owner=None, ref=None), type="ack", id="m1")
        self.assertParses(wire.AskStatus(id="m1", owner=None, ref=None), type="status", id="m1")
        self.assertParses(wire.Cancel(id="m1", owner=None, ref=None), type="cancel", id="m1")
        self.assertParses(wire.AskList(ref=None), type="list")
        self.assertParses(wire.Subscribe(ref=None), type="subscribe")

    def test_everything(self) -> None:
        hello = parse(b'{"type":"hello","party":"anna","token":"t","ref":"r"}')
        self.assertEqual(hello, wire.Hello(party="anna", token="t", ref="r"))
        submit = parse(
            b'{"ref":"r","language":"sv","ttl":3600,"channels":2,"rate":8000,'
            b'"receiver":"bj\xc3\xb6rn","id":"m1","type":"submit"}'
        )
        self.assertEqual(
            submit,
            wire.Submit(
                id="m1",
                receiver="björn",
                rate=8000,
                channels=2,
                ttl=3600.0,
                language="sv",
                ref="r",
            ),
        )
        end = wire.End(id="m1", sha256="ab", ref="r")
        self.assertParses(end, type="end", id="m1", sha256="ab", ref="r")
        fetch = wire.Fetch(id="m1", owner="anna", wait=False, ref="r")
        self.assertParses(fetch, type="fetch", id="m1", owner="anna", wait=False, ref="r")
        for type_, kind in (("ack", wire.Ack), ("status", wire.AskStatus), ("cancel", wire.Cancel)):
            request = kind(id="m1", owner="anna", ref="r")
            self.assertParses(request, type=type_, id="m1", owner="anna", ref="r")
        self.assertParses(wire.AskList(ref="r"), type="list", ref="r")
        self.assertParses(wire.Subscribe(ref="r"), type="subscribe", ref="r")

    def test_idIsNeeded(self) -> None:
        for type_ in ("submit", "end", "fetch", "ack", "status", "cancel"):
            self.assertBad(frame(type=type_), says="`id`")
            self.assertBad(frame(type=type_, id=None), says="`$.id`")

    def test_nullIsAsLeftOut(self) -> None:
        for field in ("party", "token", "ref"):
            self.assertParses(wire.Hello(), type="hello", **{field: None})
        for field in ("receiver", "ttl", "language", "ref"):
            self.assertParses(wire.Submit(id="m"), type="submit", id="m", **{field: None})
        self.assertParses(wire.End(id="m"), type="end", id="m", sha256=None)
        self.assertParses(wire.Fetch(id="m"), type="fetch", id="m", owner=None)

    def test_nullWhereThereIsADefaultValue(self) -> None:
        for field in ("rate", "channels"):
            self.assertBad(frame(type="submit", id="m", **{field: None}), says=f"`$.{field}`")
        self.assertBad(frame(type="fetch", id="m", wait=None), says="`$.wait`")

    def test_unknownFieldsAreIgnored(self) -> None:
        self.assertParses(wire.AskList(), type="list", colour="red", nested={"a": [1, {}]})

    def test_lastOfTwoEqualKeysCounts(self) -> None:
        self.assertEqual(parse(b'{"type":"ack","id":"a","id":"b"}'), wire.Ack(id="b"))
        self.assertEqual(parse(b'{"type":"list","ref":"a","ref":"b"}'), wire.AskList(ref="b"))

    def test_twoTypes(self) -> None:
        self.assertBad(b'{"type":"list","type":"ack","id":"a","ref":"r"}', "r")

    def test_whitespace(self) -> None:
        self.assertEqual(parse(b' \r\n\t{ "type" : "list" }\n'), wire.AskList())


class LimitTests(WireTestCase):
    """Fields at their edges."""

    def test_lengths(self) -> None:
        for field, message in (
            ("ref", {"type": "list"}),
            ("party", {"type": "hello"}),
            ("id", {"type": "submit"}),
            ("id", {"type": "fetch"}),
            ("receiver", {"type": "submit", "id": "m"}),
            ("owner", {"type": "ack", "id": "m"}),
        ):
            parsed = parse(frame(**message, **{field: "x" * 128}))
            self.assertEqual(getattr(parsed, field), "x" * 128)
            self.assertBad(frame(**message, **{field: "x" * 129}), says=f"`$.{field}`")
        for field, message in (
            ("party", {"type": "hello"}),
            ("id", {"type": "end"}),
            ("receiver", {"type": "submit", "id": "m"}),
            ("owner", {"type": "status", "id": "m"}),
            ("language", {"type": "submit", "id": "m"}),
        ):
            parsed = parse(frame(**message, **{field: "x"}))
            self.assertEqual(getattr(parsed, field), "x")
            self.assertBad(frame(**message, **{field: ""}), says=f"`$.{field}`")
        self.assertEqual(parse(frame(type="list", ref="")), wire.AskList(ref=""))

    def test_lengthsAreInCharacters(self) -> None:
        for character in ("å", "\U0001f600"):
            party = character * 128
            self.assertParses(wire.Hello(party=party), type="hello", party=party)
            self.assertBad(frame(type="hello", party=party + character), says="128")
        escaped = b'{"type":"hello","party":"%s"}' % (rb"\ud83d\ude00" * 128)
        self.assertEqual(parse(escaped), wire.Hello(party="\U0001f600" * 128))

    def test_idCharacters(self) -> None:
        all_ = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~:@-"
        self.assertParses(wire.Ack(id=all_), type="ack", id=all_)
        for character in " /\\%+*?#\"'\n\r\t\0\x7f\u00e5\u0661\uff21,;=()[]{}<>|!$&^`\u200b":
            for id in (character, "m" + character, character + "m", "m" + character + "m"):
                for type_ in ("submit", "end", "fetch", "ack", "status", "cancel"):
                    self.assertBad(frame(type=type_, id=id), says="`$.id`")

    def test_controlCharactersInAParty(self) -> None:
        controls = [chr(c) for c in (*range(0x20), *range(0x7F, 0xA0))]
        for character in controls:
            for party in (character, "anna" + character, character + "anna", f"an{character}na"):
                self.assertBad(frame(type="hello", party=party), says="`$.party`")
        self.assertBad(frame(type="submit", id="m", receiver="b\n"), says="`$.receiver`")
        self.assertBad(frame(type="ack", id="m", owner="b\n"), says="`$.owner`")
        for party in (" ", "Åsa Ö", "~", "\u00a0", "a/b\\c", '"', "名前"):
            self.assertParses(wire.Hello(party=party), type="hello", party=party)

    def test_rate(self) -> None:
        for rate in (8000, 11025, 48000):
            self.assertParses(wire.Submit(id="m", rate=rate), type="submit", id="m", rate=rate)
        wrongs: tuple[Any, ...] = (
            7999,
            48001,
            0,
            -16000,
            2**63,
            2**64,
            10**30,
            "16000",
            True,
            [],
            {},
        )
        for wrong in wrongs:
            data = msgspec.json.encode({"type": "submit", "id": "m", "rate": wrong})
            self.assertBad(data, says="`$.rate`")

    def test_channels(self) -> None:
        for channels in (1, 2, 8):
            submit = wire.Submit(id="m", channels=channels)
            self.assertParses(submit, type="submit", id="m", channels=channels)
        wrongs: tuple[Any, ...] = (0, 9, -1, "1", True, False, [1])
        for wrong in wrongs:
            self.assertBad(frame(type="submit", id="m", channels=wrong), says="`$.channels`")

    def test_floatsAreNoWholeNumbers(self) -> None:
        for literal in (b"16000.0", b"16000.5", b"1.6e4", b"-0.0"):
            self.assertBad(b'{"type":"submit","id":"m","rate":%s}' % literal, says="`$.rate`")
            self.assertBad(
                b'{"type":"submit","id":"m","channels":%s}' % literal, says="`$.channels`"
            )

    def test_ttl(self) -> None:
        for ttl in (1, 0.001, 3600, wire.MAX_TTL):
            self.assertParses(wire.Submit(id="m", ttl=ttl), type="submit", id="m", ttl=ttl)
        wrongs: tuple[Any, ...] = (
            0,
            0.0,
            -0.0,
            -1,
            -0.001,
            wire.MAX_TTL + 1,
            10**400,
            True,
            False,
            "60",
            [],
        )
        for wrong in wrongs:
            data = b'{"type":"submit","id":"m","ttl":%s}' % (
                str(wrong).encode() if wrong == 10**400 else msgspec.json.encode(wrong)
            )
            self.assertBad(data, says="`$.ttl`")
        self.assertBad(b'{"type":"submit","id":"m","ttl":1e400}', says="`$.ttl`")

    def test_language(self) -> None:
        for language in ("sv", "x" * 32):
            submit = wire.Submit(id="m", language=language)
            self.assertParses(submit, type="submit", id="m", language=language)
        wrongs: tuple[Any, ...] = ("x" * 33, "", 5, ["sv"])
        for wrong in wrongs:
            self.assertBad(frame(type="submit", id="m", language=wrong), says="`$.language`")

    def test_wait(self) -> None:
        wrongs: tuple[Any, ...] = (0, 1, "true", "false", [])
        for wrong in wrongs:
            self.assertBad(frame(type="fetch", id="m", wait=wrong), says="`$.wait`")

    def test_strings(self) -> None:
        wrongs: tuple[Any, ...] = (1, 1.5, True, [], {})
        for wrong in wrongs:
            self.assertBad(frame(type="hello", party=wrong), says="`$.party`")
            self.assertBad(frame(type="hello", token=wrong), says="`$.token`")
            self.assertBad(frame(type="end", id="m", sha256=wrong), says="`$.sha256`")
            self.assertBad(frame(type="ack", id=wrong), says="`$.id`")


class GarbageTests(WireTestCase):
    """What is no request at all."""

    def test_notAnObject(self) -> None:
        for data in (b"[]", b'[{"type":"list"}]', b"5", b"-1.5", b"null", b"true", b'"list"'):
            self.assertBad(data, says="`object`")

    def test_notJSON(self) -> None:
        for data in (
            b"",
            b" \n",
            b"{",
            b'{"type":"list"',
            b'{"type":"list",}',
            b'{"type":"list"} {}',
            b"{'type':'list'}",
            b"{type:list}",
            b'\xef\xbb\xbf{"type":"list"}',
            b'{"type":"list"/**/}',
            b"\0\1\2\3",
            '{"type":"list"}'.encode("utf-16"),
            b'{"type":"hello","token":"a\nb"}',
        ):
            self.assertBad(data, says="not a JSON object")

    def test_notUTF8(self) -> None:
        for bad in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf"):
            self.assertBad(b'{"type":"hello","party":"%s"}' % bad)
            self.assertBad(b'{"type":"%s"}' % bad)
            self.assertBad(b'{"type":"list","ref":"%s"}' % bad)

    def test_loneSurrogates(self) -> None:
        for bad in (rb"\ud800", rb"\udc00", rb"a\ud83d", rb"\ude00\ud83d"):
            self.assertBad(b'{"type":"hello","party":"%s"}' % bad)
            self.assertBad(b'{"type":"list","ref":"%s"}' % bad)
            self.assertBad(b'{"type":"ack","id":"%s"}' % bad)

    def test_numbersThatAreNone(self) -> None:
        for literal in (b"NaN", b"Infinity", b"-Infinity", b"01", b"+1", b"0x10", b"1.", b".5"):
            for field in (b"ttl", b"rate"):
                self.assertBad(b'{"type":"submit","id":"m","%s":%s}' % (field, literal))

    def test_deepNesting(self) -> None:
        for open_, close in ((b"[", b"]"), (b'{"a":', b"}")):
            deep = open_ * 9000 + b"1" + close * 9000
            self.assertBad(deep)
            self.assertBad(b'{"type":"list","x":%s}' % deep)
            self.assertBad(b'{"type":"hello","party":%s}' % deep)
            self.assertBad(b'{"x":%s,"type":"nothing"}' % deep)

    def test_type(self) -> None:
        self.assertBad(b"{}", says="`type`")
        self.assertBad(frame(id="m"), says="`type`")
        wrongs: tuple[Any, ...] = (5, None, True, ["list"], {"a": "list"}, 1.5)
        for wrong in wrongs:
            self.assertBad(frame(type=wrong), says="`$.type`")
        for unknown in ("", "List", "list ", "welcome", "transcript", "error", "accepted"):
            self.assertBad(frame(type=unknown), says="unknown type")


class RefTests(WireTestCase):
    """The `ref` of a bad message."""

    def test_kept(self) -> None:
        self.assertBad(frame(type="nothing", ref="r1"), "r1")
        self.assertBad(frame(ref="r1"), "r1")
        self.assertBad(frame(ref="r1", type=5), "r1")
        self.assertBad(frame(ref="r1", type="submit", id="m", rate=1), "r1")
        self.assertBad(frame(type="submit", ref="r1"), "r1")
        self.assertBad(frame(type="ack", id="å", ref=""), "")
        self.assertBad(frame(type="nothing", ref="å" * 128), "å" * 128)

    def test_keptWhereAnotherFieldIsUnreadable(self) -> None:
        self.assertBad(rb'{"type":"hello","party":"an\ud83d","ref":"r1"}', "r1")
        self.assertBad(rb'{"type":"list","x":"\udc00","ref":"r1"}', "r1")
        self.assertBad(b'{"type":"submit","id":"m","ttl":1e400,"ref":"r1"}', "r1")

    def test_noneWhereItIsBadItself(self) -> None:
        wrongs: tuple[Any, ...] = (5, ["r"], {"r": "r"}, True, 1.5, "r" * 129)
        for wrong in wrongs:
            self.assertBad(frame(type="list", ref=wrong), None, says="`$.ref`")
            self.assertBad(frame(type="nothing", ref=wrong), None)
        self.assertBad(frame(type="nothing", ref=None), None)
        self.assertBad(rb'{"type":"list","ref":"r\ud800"}', None)
        self.assertBad(rb'{"type":"nothing","ref":"r\ud800"}', None)

    def test_noneWhereThereIsNoObject(self) -> None:
        for data in (b'["ref","r"]', b'"ref"', b'{"ref":"r"', b'{"ref":"r","type":"\xff"}'):
            self.assertBad(data, None)
        self.assertBad(b'{"x":{"ref":"r"},"type":"nothing"}', None)
        self.assertBad(b'{"type":"nothing","x":%s}' % (b"9" * 60000), None)


class SecrecyTests(WireTestCase):
    """Reasons say what is allowed, and never what was sent."""

    def test_reasonsDoNotRepeatWhatWasSent(self) -> None:
        secret = "hunter2"
        fields: dict[str, tuple[str, ...]] = {
            "hello": ("party", "token"),
            "submit": ("id", "receiver", "rate", "channels", "ttl", "language"),
            "end": ("id", "sha256"),
            "fetch": ("id", "owner", "wait"),
            "ack": ("id", "owner"),
        }
        values: list[Any] = [f"{secret}\n" + "x" * 200, [secret], {secret: secret}]
        refused = 0
        for type_, names in fields.items():
            for name in names:
                for value in values:
                    message = {"id": "m"} if type_ != "hello" else {}
                    data = frame(**(message | {"type": type_, name: value}))
                    if name in ("token", "sha256") and isinstance(value, str):
                        continue
                    self.assertNotIn(secret, self.assertBad(data))
                    refused += 1
        self.assertGreater(refused, 40)

    def test_noReasonRepeatsTheTypeOrTheFrame(self) -> None:
        for data in (
            frame(type="hunter2"),
            frame(type=["hunter2"]),
            frame(type="list", ref={"hunter2": 1}),
            b'{"type":"hello","token":"hunter2\n"}',
            b'{"type":"hello","token":"hunter2',
            b"hunter2",
            b'"hunter2"',
            b'["hunter2"]',
            b'{"hunter2":1}',
        ):
            self.assertNotIn("hunter2", self.assertBad(data))

    def test_numbersAreNotRepeated(self) -> None:
        self.assertNotIn("4711", self.assertBad(frame(type="submit", id="m", rate=4711)))
        self.assertNotIn("4711", self.assertBad(frame(type="submit", id="m", ttl=-4711)))


class RenderTests(SynchronousTestCase):
    """Answers have the fields of the protocol's table, and no other."""

    GIVEN = Given(owner=False, receiver=True)
    NAME = {"id": "m1", "owner": "anna", "receiver": "bjorn"}
    EXPIRES = "2026-11-23T12:00:00.000Z"

    def assertRenders(self, answer: wire.Answer, **expected: object) -> None:
        self.assertEqual(msgspec.json.decode(render(answer)), expected)
        self.assertNotIn(b"\n", render(answer))
        with_it = msgspec.json.decode(render(with_ref(answer, "r")))
        self.assertEqual(with_it, {**expected, "ref": "r"})
        self.assertIs(with_ref(answer, None), answer)

    def test_welcome(self) -> None:
        fields = {"party": "anna", "server": "transcribed/1.2.3", "model": "base"}
        expected = {"type": "welcome", **fields, "limits": {"seconds": 60.0, "bytes": 640}}
        self.assertRenders(wire.Welcome(**fields, limits=Limits(60.0, 640)), **expected)
        warned = wire.Welcome(**fields, limits=Limits(60.0, 640), warning="a fallback")
        self.assertRenders(warned, **expected, warning="a fallback")

    def test_accepted(self) -> None:
        answer = wire.Accepted(**self.NAME, state="queued", seconds=12.3, expires=self.EXPIRES)
        self.assertRenders(
            answer,
            type="accepted",
            **self.NAME,
            state="queued",
            seconds=12.3,
            expires=self.EXPIRES,
        )

    def test_transcript(self) -> None:
        answer = wire.Delivered(
            **self.NAME,
            text="hej då",
            words=[Word("hej", 0.5, 0.75, 0.875), Word("då", 1.0, 1.5, 1.0)],
            seconds=2.0,
            language="sv",
            model="base",
            given=self.GIVEN,
            expires=self.EXPIRES,
        )
        self.assertRenders(
            answer,
            type="transcript",
            **self.NAME,
            text="hej då",
            words=[
                {"word": "hej", "start": 0.5, "end": 0.75, "confidence": 0.875},
                {"word": "då", "start": 1.0, "end": 1.5, "confidence": 1.0},
            ],
            seconds=2.0,
            language="sv",
            model="base",
            given={"owner": False, "receiver": True},
            expires=self.EXPIRES,
        )

    def test_emptyFieldsAreThere(self) -> None:
        answer = wire.Delivered(
            **self.NAME,
            text="",
            words=[],
            seconds=0.0,
            language="",
            model="",
            given=Given(False, False),
            expires="",
        )
        self.assertRenders(
            answer,
            type="transcript",
            **self.NAME,
            text="",
            words=[],
            seconds=0.0,
            language="",
            model="",
            given={"owner": False, "receiver": False},
            expires="",
        )

    def test_acked(self) -> None:
        answer = wire.Acked(id="m1", owner="anna", given=self.GIVEN, purged=False)
        self.assertRenders(
            answer,
            type="acked",
            id="m1",
            owner="anna",
            given={"owner": False, "receiver": True},
            purged=False,
        )

    def test_statusAndListing(self) -> None:
        values: dict[str, Any] = {
            **self.NAME,
            "state": "transcribing",
            "progress": 0.0,
            "seconds": 12.3,
            "expires": self.EXPIRES,
        }
        shown = {**values, "given": {"owner": False, "receiver": True}}
        self.assertRenders(wire.Status(**values, given=self.GIVEN), type="status", **shown)
        listed = wire.Listed(**values, given=self.GIVEN)
        self.assertRenders(wire.Listing(transcripts=[listed]), type="listing", transcripts=[shown])
        self.assertRenders(wire.Listing(transcripts=[]), type="listing", transcripts=[])

    def test_subscribedAndEvent(self) -> None:
        self.assertRenders(wire.Subscribed(), type="subscribed")
        event = wire.Event(**self.NAME, state="queued", progress=0.0)
        self.assertRenders(event, type="event", **self.NAME, state="queued", progress=0.0)

    def test_cancelled(self) -> None:
        answer = wire.Cancelled(id="m1", owner="anna")
        self.assertRenders(answer, type="cancelled", id="m1", owner="anna")

    def test_error(self) -> None:
        bare: dict[str, Any] = {"code": "bad-message", "reason": "not a JSON object"}
        self.assertRenders(wire.Error(**bare), type="error", **bare)
        full: dict[str, Any] = {"id": "m1", "owner": "anna", "retry_after": 10.0}
        self.assertRenders(wire.Error(**bare, **full), type="error", **bare, **full)

    def test_textIsUTF8(self) -> None:
        payload = render(wire.Cancelled(id="m1", owner="björn \U0001f600"))
        self.assertIn("björn \U0001f600", payload.decode())

    def test_emptyRefComesBack(self) -> None:
        answer = msgspec.json.decode(render(with_ref(wire.Subscribed(), "")))
        self.assertEqual(answer, {"type": "subscribed", "ref": ""})


class TimestampTests(SynchronousTestCase):
    """:func:`timestamp`."""

    def test_RFC3339InUTC(self) -> None:
        self.assertEqual(timestamp(0), "1970-01-01T00:00:00.000Z")
        self.assertEqual(timestamp(1_795_435_200), "2026-11-23T12:00:00.000Z")
        self.assertEqual(timestamp(1_795_435_200.25), "2026-11-23T12:00:00.250Z")

    def test_zoneOfTheMachineDoesNotMatter(self) -> None:
        before = os.environ.get("TZ")

        def restore() -> None:
            if before is None:
                os.environ.pop("TZ", None)
            else:
                os.environ["TZ"] = before
            time.tzset()

        self.addCleanup(restore)
        os.environ["TZ"] = "Asia/Kolkata"
        time.tzset()
        self.assertEqual(timestamp(1_795_435_200), "2026-11-23T12:00:00.000Z")

    def test_farAway(self) -> None:
        self.assertEqual(timestamp(1_795_435_200 + wire.MAX_TTL), "2027-11-24T12:00:00.000Z")
