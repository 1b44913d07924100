"""Connections that break at every byte of an upload."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory

from tests.rawclient import BINARY, TEXT, RawClient, frame
from torture.clients import Actor, noise
from torture.crowd import Crowd
from torture.fault import Fault
from torture.ledger import Recording
from torture.line import Lost, handshaken
from torture.rig import RETRY, Rig

_AT_ONCE = 8
_WHOLE = 8
"""So many connections break right after the last byte: each may be accepted, or not."""


class _Bytes:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def handshake() -> bytes:
    """What a client sends before its first frame."""
    client: Any = RawClient()
    client.transport = _Bytes()
    client.handshake("/ws", "transcribed.v1", None)
    data: bytes = client.transport.data
    return data


def upload(id: str, audio: bytes) -> bytes:
    """All frames of one upload, its hello included."""
    before = [{"type": "hello", "party": "anna"}, {"type": "submit", "id": id, "receiver": "bjorn"}]
    after = [{"type": "end", "id": id}]
    first, last = (
        [frame(TEXT, json.dumps(message).encode()) for message in messages]
        for messages in (before, after)
    )
    middle = len(audio) // 2
    audios = [frame(BINARY, audio[:middle]), frame(BINARY, audio[middle:])]
    return b"".join([*first, *audios, *last])


class Cuts(Fault):
    """Each connection breaks one byte later than the one before."""

    name = "connections cut"

    async def inject(self, rig: Rig, crowd: Crowd) -> None:
        """See :class:`Fault`."""
        await rig.logged("listening on")
        before = len(handshake())
        whole = before + len(upload("c0000", bytes(_length(rig))))
        lengths = [*range(whole), *[whole] * _WHOLE]
        recordings: list[Recording] = []
        while lengths:
            some, lengths = lengths[:_AT_ONCE], lengths[_AT_ONCE:]
            cuts = []
            for length in some:
                recording, audio = _recording(rig, len(recordings))
                recording.ended = length == whole
                recordings.append(recording)
                cut = self._cut(rig, upload(recording.id, audio), length - before)
                cuts.append(Deferred.fromCoroutine(cut))
            await gatherResults(cuts)
            rig.injected += len(some)
        anna = Actor(rig, "anna")
        for recording in recordings:
            if not recording.ended:
                await self._check(rig, anna, recording)

    async def _cut(self, rig: Rig, frames: bytes, length: int) -> None:
        try:
            if length < 0:
                client: Any = await clientFromString(rig.reactor, rig.endpoint()).connect(
                    Factory.forProtocol(RawClient)
                )
                client.raw(handshake()[:length])
            else:
                client = await handshaken(rig.reactor, rig.endpoint())
                client.raw(frames[:length])
        except (ConnectError, Lost) as e:
            rig.ledger.broken(f"the daemon took no connection: {e}")
            return
        # What was written is sent first.
        client.transport.loseConnection()
        await client.lost

    async def _check(self, rig: Rig, anna: Actor, recording: Recording) -> None:
        while True:
            answer = await anna.ask(type="status", id=recording.id)
            if answer.get("state") != "uploading":
                break
            await rig.pause(RETRY)
        if answer.get("code") != "unknown-id":
            rig.ledger.refused(recording, "anna", answer)
        rig.ledger.leftovers(rig.traces(recording))


def _length(rig: Rig) -> int:
    return len(noise(rig.rng))


def _recording(rig: Rig, number: int) -> tuple[Recording, bytes]:
    audio = noise(rig.rng)
    # Nothing is said in it.
    recording = Recording("anna", f"c{number:04}", "bjorn", "", audio)
    return rig.ledger.offer(recording), audio
