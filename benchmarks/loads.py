"""Audio seconds a second: the daemon under as much work as it can do, and the engine alone."""

from __future__ import annotations

import math
import statistics
from typing import Any

from twisted.internet.defer import Deferred

from benchmarks.bare import together
from benchmarks.rig import Outcome, Rig, Row
from tests.daemonprocess import DaemonProcess
from transcribed.client import Transcript
from transcribed.recognition import stitch

SECONDS = 20
"""Of audio in each message: one window."""
OWNERS = 4
BUSY = 20.0
"""Seconds that each measurement is to take, about; at least :data:`LEAST` windows a worker."""
LEAST, MOST = 3, 60

# So many windows are different.
_DISTINCT = 24


class Traffic:
    """Owners that send messages to receivers, and both sides' fetches and acks.

    Each owner has two connections: its fetches do not wait for its uploads.
    """

    def __init__(self, rig: Rig, daemon: DaemonProcess) -> None:
        self._rig = rig
        self._senders = [rig.client(daemon, f"owner-{n}") for n in range(OWNERS)]
        self._sides = [
            (rig.client(daemon, f"owner-{n}"), rig.client(daemon, f"receiver-{n}"))
            for n in range(OWNERS)
        ]
        self._runs = 0

    async def connect(self) -> None:
        """Connect all of them."""
        for client in [*self._senders, *(side for sides in self._sides for side in sides)]:
            await client.connect()

    async def deliver(self, messages: list[bytes]) -> tuple[float, list[str]]:
        """Seconds from the first submit to the last ack of both sides, and the texts."""
        self._runs += 1
        texts: dict[int, str] = {}
        begun = self._rig.reactor.seconds()
        await together(Deferred.fromCoroutine(self._own(n, messages, texts)) for n in range(OWNERS))
        took = self._rig.reactor.seconds() - begun
        return took, [texts[i] for i in range(len(messages))]

    async def _own(self, owner: int, messages: list[bytes], texts: dict[int, str]) -> None:
        given = []
        for number in range(owner, len(messages), OWNERS):
            id = f"{self._runs}-{number}"
            await self._senders[owner].submit(id, messages[number], f"receiver-{owner}")
            given.append(Deferred.fromCoroutine(self._give(owner, id, number, texts)))
        await together(given)

    async def _give(self, owner: int, id: str, number: int, texts: dict[int, str]) -> None:
        purged = await together(
            Deferred.fromCoroutine(self._take(client, owner, id, number, texts))
            for client in self._sides[owner]
        )
        assert any(purged), f"{id} was not purged when both sides had it"

    async def _take(
        self, client: Any, owner: int, id: str, number: int, texts: dict[int, str]
    ) -> bool:
        transcript = await client.fetch(id, f"owner-{owner}")
        assert isinstance(transcript, Transcript)
        texts[number] = transcript.text
        acked = await client.ack(id, f"owner-{owner}")
        return bool(acked.purged)


async def throughput(rig: Rig) -> Outcome:
    """Through socket, spool, children, store and both acks, over the engine alone."""
    return await _saturation(rig, "throughput", False, 0.9)


async def whisper(rig: Rig) -> Outcome:
    """A Whisper through the daemon, over faster-whisper called directly.

    Only with windows that are decoded at the first try: see :meth:`benchmarks.bare.Direct.certain`.
    """
    return await _saturation(rig, "whisper", True, 0.95)


async def _saturation(rig: Rig, what: str, direct: bool, target: float) -> Outcome:
    speech = rig.speech(_DISTINCT * SECONDS)
    engine = await rig.engine(rig.workers, direct)
    windows = [speech.piece(i * SECONDS, SECONDS) for i in range(_DISTINCT)]
    await engine.prepare(windows)
    chosen = list(range(_DISTINCT))
    if direct:
        chosen = await engine.certain(chosen)
        rig.tell(f"{what}: {len(chosen)} of {_DISTINCT} windows leave nothing to chance")
        assert chosen, "Whisper is sure of none of the windows"
    traffic = Traffic(rig, await rig.daemon())
    await traffic.connect()

    def work(count: int) -> list[int]:
        return [chosen[i % len(chosen)] for i in range(count)]

    def messages(count: int) -> list[bytes]:
        return [speech.audio(number * SECONDS, SECONDS) for number in work(count)]

    # The first windows pay for what is set up lazily.
    await traffic.deliver(messages(rig.workers))
    await engine.run(work(rig.workers))
    a_window, _ = await engine.run(work(rig.workers))
    count = rig.workers * min(max(LEAST, math.ceil(BUSY / a_window)), MOST)
    bare, daemon, same = [], [], 0
    for number in range(rig.options.rounds):
        rig.tell(f"{what}: round {number + 1} of {rig.options.rounds}, {count} messages")
        seconds, results = await engine.run(work(count))
        bare.append(count * SECONDS / seconds)
        took, texts = await traffic.deliver(messages(count))
        daemon.append(count * SECONDS / took)
        expected = [stitch([result]).text for result in results]
        same += sum(text == other for text, other in zip(texts, expected, strict=True))
    ours, engines = statistics.median(daemon), statistics.median(bare)
    ratio = ours / engines
    sent = count * rig.options.rounds
    rows = [
        Row(
            f"{what}: audio seconds a second",
            f"{ours:.2f}",
            f"{engines:.2f}",
            ratio,
            f">= {target}",
            ratio >= target,
        ),
        # Where they differ, it was not the same work that was measured.
        Row(f"{what}: texts as the engine's", f"{same} of {sent}", target="all", met=same == sent),
    ]
    return Outcome(
        rows,
        {
            "messages": count,
            "windows": len(chosen),
            "daemon": daemon,
            "bare": bare,
            "ratio": ratio,
            "same": same,
        },
    )
