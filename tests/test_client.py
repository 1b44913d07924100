"""The client library, over real loopback sockets against a fake daemon."""

from __future__ import annotations

import io
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.fakeserver import WithDaemon
from transcribed import errors
from transcribed.client import FRAME, Event, Status, Transcript, Unreachable
from transcribed.client._answers import exception
from transcribed.client._requests import Request, Upload
from transcribed.client._source import Source
from transcribed.wire import Error

AUDIO = bytes(range(256)) * 1000


class TestRequests(WithDaemon):
    """One connection that holds."""

    async def test_welcome(self) -> None:
        daemon, client = await self.daemon()
        daemon.warning = "a fallback"
        welcome = await client.connect()
        self.assertEqual(welcome.party, "anna")
        self.assertEqual(welcome.limits.seconds, 7200)
        self.assertEqual(welcome.warning, "a fallback")
        self.assertEqual(daemon.requests[0][1]["token"], "secret")
        self.assertIs(await client.connect(), welcome)
        self.assertEqual(len(daemon.sessions), 1)

    async def test_whole_way(self) -> None:
        daemon, client = await self.daemon()
        accepted = await client.submit(
            "m1", AUDIO, "bjorn", rate=8000, channels=2, ttl=60.0, language="sv"
        )
        self.assertEqual((accepted.owner, accepted.receiver), ("anna", "bjorn"))
        self.assertEqual(daemon.kept["m1"].audio, AUDIO)
        submit = daemon.requests[1][1]
        del submit["ref"]
        expected = {"type": "submit", "id": "m1", "receiver": "bjorn", "rate": 8000}
        self.assertEqual(submit, expected | {"channels": 2, "ttl": 60.0, "language": "sv"})
        early = await client.fetch("m1", wait=False)
        self.assertIsInstance(early, Status)
        waiting = client.fetch("m1")
        # Others are answered meanwhile.
        self.assertEqual((await client.status("m1")).progress, 0.25)
        self.assertNoResult(waiting)
        daemon.finish("m1", "hej")
        transcript = await waiting
        assert isinstance(transcript, Transcript)
        self.assertEqual((transcript.text, transcript.words[0].word), ("hej", "hej"))
        self.assertTrue((await client.ack("m1")).given.owner)
        self.assertEqual([found.id for found in await client.list()], ["m1"])
        self.assertEqual((await client.cancel("m1")).id, "m1")
        await self.fails(client.status("m1"), errors.Gone)
        await client.close()
        self.assertEqual(len(daemon.sessions), 1)

    async def test_owner_is_sent(self) -> None:
        daemon, client = await self.daemon()
        for ask in (client.fetch, client.ack, client.status):
            await self.fails(ask("m1", "bjorn"), errors.UnknownId)
            self.assertEqual(daemon.requests[-1][1]["owner"], "bjorn")

    async def test_kinds_of_audio(self) -> None:
        daemon, client = await self.daemon()
        file = io.BytesIO(b"head" + AUDIO)
        file.seek(4)

        async def asynchronous() -> Any:
            yield AUDIO[:3]
            yield AUDIO[3:]

        kinds = {
            "bytes": AUDIO,
            "memory": memoryview(AUDIO),
            "pieces": [AUDIO[:7], b"", AUDIO[7:]],
            "iterator": iter([AUDIO]),
            "file": file,
            "asynchronous": asynchronous(),
            "factory": lambda: io.BytesIO(AUDIO),
        }
        for name, audio in kinds.items():
            await client.submit(name, audio)
            self.assertEqual(daemon.kept[name].audio, AUDIO, name)
        self.assertEqual(max(daemon.frame_sizes), FRAME)
        await self.fails(client.submit("no", 7), TypeError)  # type: ignore[arg-type]
        await self.fails(client.submit("no", "text"), TypeError)  # type: ignore[arg-type]

    async def test_requests_wait_for_upload(self) -> None:
        """In order, and never between the frames of an upload that may be refused."""
        daemon, client = await self.daemon()
        one, two = client.submit("m1", AUDIO), client.submit("m2", AUDIO[:2])
        asked = client.status("m2")
        await one
        await two
        await asked
        kinds = ["hello", "submit", "end", "submit", "end", "status"]
        self.assertEqual(daemon.types(), kinds)

    async def test_refused_early(self) -> None:
        """After an error no more is sent, and the connection serves on."""
        daemon, client = await self.daemon()
        daemon.refusals["submit"] = [{"code": "busy", "retry_after": 7}]
        more: Deferred[None] = Deferred()

        async def live() -> Any:
            yield b"aa"
            await more
            yield b"bb"
            self.fail("read on after the refusal")

        error = await self.fails(client.submit("m1", live()), errors.Busy)
        self.assertEqual((error.retry_after, error.reason), (7, "because"))
        more.callback(None)
        await client.submit("m2", b"cccc")
        self.assertEqual(daemon.types(), ["hello", "submit", "submit", "end"])
        self.assertEqual(daemon.kept["m2"].audio, b"cccc")
        self.assertEqual(len(daemon.sessions), 1)

    async def test_refused_without_ref(self) -> None:
        daemon, client = await self.daemon()
        await client.connect()
        daemon.silent.add("submit")
        submitted = client.submit("m1", self.endless())
        session = await daemon.when("submit")
        refusal = {"type": "error", "code": "too-long", "reason": "long", "id": "m1"}
        session.answer(refusal, None)
        await self.fails(submitted, errors.TooLong)

    def endless(self) -> Any:
        async def live() -> Any:
            yield b"aa"
            await Deferred()

        return live()

    async def test_cancel_upload(self) -> None:
        """``cancel`` goes out at once, before what waits for the upload."""
        daemon, client = await self.daemon()
        submitted = client.submit("m1", self.endless())
        await daemon.when("submit")
        later = client.submit("m2", b"aa")
        self.assertEqual((await client.cancel("m1")).id, "m1")
        await self.fails(submitted, errors.Gone)
        await later
        self.assertEqual(daemon.types()[-4:], ["submit", "cancel", "submit", "end"])
        self.assertEqual(len(daemon.sessions), 1)

    async def test_audio_that_breaks(self) -> None:
        """Nothing of it is kept, and other requests do not notice."""
        daemon, client = await self.daemon()
        await client.submit("m0", b"aa")
        waiting = client.fetch("m0")

        def broken() -> Any:
            yield b"aa"
            raise OSError("the disk is gone")

        error = await self.fails(client.submit("m1", broken), OSError)
        self.assertEqual(str(error), "the disk is gone")
        await daemon.when("fetch")
        daemon.finish("m0", "hej")
        self.assertEqual((await waiting).text, "hej")  # type: ignore[union-attr]
        self.assertNotIn("m1", daemon.kept)
        self.assertEqual(len(daemon.sessions), 2)

    async def test_deferred_cancelled(self) -> None:
        daemon, client = await self.daemon()
        await client.submit("m1", b"aa")
        waiting = client.fetch("m1")
        waiting.cancel()
        await self.fails(waiting, CancelledError)
        submitted = client.submit("m2", self.endless())
        await daemon.when("submit")
        submitted.cancel()
        await self.fails(submitted, CancelledError)
        # The late answer to the first is nobody's.
        self.assertEqual((await client.status("m1")).id, "m1")
        self.assertEqual(len(daemon.sessions), 2)

    async def test_events(self) -> None:
        daemon, client = await self.daemon()
        await client.submit("m1", b"aa")
        seen: list[Event] = []
        ready: Deferred[None] = Deferred()

        def failing(_: Event) -> None:
            raise ValueError("somebody's mistake")

        broken = await client.subscribe(failing)
        subscription = await client.subscribe(
            lambda event: (seen.append(event), ready.callback(None))  # type: ignore[func-returns-value]
        )
        daemon.tell("m1", "ready")
        await ready
        self.assertEqual([event.state for event in seen], ["ready"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        broken.stop()
        subscription.stop()
        daemon.tell("m1", "purged")
        await client.status("m1")
        self.assertEqual(len(seen), 1)
        self.assertEqual(daemon.types().count("subscribe"), 1)

    async def test_backpressure(self) -> None:
        """However long the recording, the socket's buffer holds a frame or two."""
        daemon, client = await self.daemon()
        await client.connect()
        transport = client._conversation._link.connection.transport  # type: ignore[union-attr]
        held: list[int] = []

        def pieces() -> Any:
            for _ in range(200):
                held.append(len(transport.dataBuffer) - transport.offset + transport._tempDataLen)
                yield bytes(FRAME)

        told: list[int] = []
        await client.submit("m1", pieces, progress=told.append)
        self.assertEqual(len(daemon.kept["m1"].audio), 200 * FRAME)
        self.assertLessEqual(max(held), 2 * (FRAME + 14))
        self.assertEqual(told, [FRAME * n for n in range(1, 201)])

    async def test_answer_that_makes_no_sense(self) -> None:
        daemon, client = await self.daemon()
        daemon.silent.add("list")
        for answer in ({"type": "listing", "transcripts": 7}, {"type": "subscribed"}):
            asked = client.list()
            session = await daemon.when("list")
            session.answer({"type": "of a later version"}, None)
            session.sendMessage(b"\xff{", isBinary=True)
            session.answer(answer, daemon.requests[-1][1]["ref"])
            await self.fails(asked, Unreachable)
        self.assertEqual(len(daemon.sessions), 1)

    async def test_closed(self) -> None:
        daemon, client = await self.daemon()
        await client.submit("m1", b"aa")
        waiting = client.fetch("m1")
        await daemon.when("fetch")
        closed = client.close()
        await self.fails(waiting, Unreachable)
        await closed
        await self.fails(client.list(), Unreachable)
        await self.fails(client.connect(), Unreachable)
        await daemon.stop()
        self.assertEqual(daemon.closes, [1000])


class _Slow:
    """A connection that takes one frame and then waits."""

    transport: Any = True

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.producer: Any = None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message["type"])

    def send_audio(self, frame: bytes) -> None:
        self.sent.append(len(frame))
        self.producer.pauseProducing()


class TestUpload(SynchronousTestCase):
    """An upload and its transport."""

    def upload(self) -> tuple[_Slow, Upload, list[int]]:
        read: list[int] = []

        def pieces() -> Any:
            for n in range(4):
                read.append(n)
                yield b"aa"

        message = {"type": "submit", "id": "m1", "ref": "r"}
        request = Request(message, (), Deferred(), Source(pieces))
        connection = _Slow()
        return connection, Upload(request, connection), read  # type: ignore[arg-type]

    def test_reads_no_further_than_it_may_send(self) -> None:
        connection, upload, read = self.upload()
        done = Deferred.fromCoroutine(upload.run())
        self.assertEqual((connection.sent, read), (["submit", 2], [0, 1]))
        for _ in range(3):
            connection.producer.resumeProducing()
        self.assertEqual(connection.sent, ["submit", 2, 2, 2, 2, "end"])
        self.successResultOf(done)
        self.assertIsNone(connection.producer)

    def test_stops_when_stopped(self) -> None:
        connection, upload, _ = self.upload()
        done = Deferred.fromCoroutine(upload.run())
        connection.producer.stopProducing()
        self.successResultOf(done)
        self.assertEqual(connection.sent, ["submit", 2])
        self.assertIsNone(connection.producer)


class TestErrors(SynchronousTestCase):
    """Codes on the wire to exceptions."""

    def test_every_code(self) -> None:
        kinds = msgspec.structs.fields(Error)
        self.assertIn("code", [kind.name for kind in kinds])
        for kind in (
            errors.BadMessage,
            errors.Unauthenticated,
            errors.UnknownId,
            errors.IdTaken,
            errors.Gone,
            errors.BadAudio,
            errors.TooLong,
            errors.Busy,
            errors.NotFetched,
            errors.Failed,
            errors.Unsupported,
        ):
            made = exception(Error(code=kind.code, reason="so it is"))
            self.assertIs(type(made), kind)
            self.assertEqual((made.code, made.reason, str(made)), (kind.code, *["so it is"] * 2))

    def test_unknown_code(self) -> None:
        made = exception(Error(code="of-a-later-version", reason="new"))
        self.assertIs(type(made), errors.TranscribedError)
        self.assertEqual(made.code, "of-a-later-version")
        self.assertEqual(errors.TranscribedError.code, "internal")
