"""From the `end` of a message to its text: while it is spoken, on an idle daemon, on a busy one."""

from __future__ import annotations

import random
import statistics

from twisted.internet.defer import Deferred

from benchmarks.rig import Outcome, Rig, Row, Speech, percentile
from tests.daemonprocess import DaemonProcess
from transcribed.client import Client, Event

MESSAGE = 5
"""Seconds of audio in a short message."""
SPOKEN = 60
"""Seconds of audio in the message that is sent at the speed of speech."""
TIMES = 5
"""So often a message is sent in each round."""

# So many short messages are different.
_DISTINCT = 12


async def latency(rig: Rig) -> Outcome:
    """A short message on an idle daemon, over the engine's own time for it."""
    speech = rig.speech(MESSAGE * TIMES)
    engine = await rig.engine(1)
    await engine.prepare([speech.piece(i * MESSAGE, MESSAGE) for i in range(TIMES)])
    client = rig.client(await rig.daemon(), "anna")
    for number in range(rig.workers):
        await rig.send(client, f"warm-{number}", speech.audio(0, MESSAGE))
    await engine.run([0])
    daemon, bare = [], []
    for number in range(rig.options.rounds):
        rig.tell(f"latency: round {number + 1} of {rig.options.rounds}")
        for i in range(TIMES):
            seconds, _ = await engine.run([i])
            bare.append(seconds)
            took, _ = await rig.send(client, f"{number}-{i}", speech.audio(i * MESSAGE, MESSAGE))
            daemon.append(took)
    ours, engines = statistics.median(daemon), statistics.median(bare)
    ratio = ours / engines
    row = Row(
        f"latency: {MESSAGE} s message",
        f"{ours:.3f} s",
        f"{engines:.3f} s",
        ratio,
        "<= 1.2",
        ratio <= 1.2,
    )
    return Outcome([row], {"daemon": daemon, "bare": bare, "ratio": ratio})


async def stream(rig: Rig) -> Outcome:
    """A message that is sent while it is spoken, over the engine's time for a window of it."""
    speech = rig.speech(SPOKEN)
    pieces = speech.pieces(rig.model)
    engine = await rig.engine(1)
    await engine.prepare(pieces)
    longest = max(range(len(pieces)), key=lambda i: pieces[i].seconds)
    client = rig.client(await rig.daemon(), "anna")
    await rig.send(client, "warm", speech.audio())
    await engine.run([longest])
    daemon, bare = [], []
    for number in range(rig.options.rounds):
        rig.tell(f"stream: round {number + 1} of {rig.options.rounds}")
        seconds, _ = await engine.run([longest])
        bare.append(seconds)
        took, _ = await rig.send(client, f"{number}", speech.audio(), paced=True)
        daemon.append(took)
    ours, engines = statistics.median(daemon), statistics.median(bare)
    row = Row(
        f"stream: after {SPOKEN} s, spoken; a window of {pieces[longest].seconds:g} s",
        f"{ours:.3f} s",
        f"{engines:.3f} s",
        ours / engines,
        "<= 1",
        ours <= engines,
    )
    return Outcome([row], {"daemon": daemon, "bare": bare, "ratio": ours / engines})


class Hours:
    """Keeps a long recording in work."""

    def __init__(self, client: Client, audio: bytes) -> None:
        self._client = client
        self._audio = audio
        self._number = 0
        self._state = ""
        self._told: Deferred[None] = Deferred()

    @property
    def in_work(self) -> bool:
        """Whether it is being transcribed."""
        return self._state == "transcribing"

    async def start(self) -> None:
        """Listen to how it goes."""
        await self._client.subscribe(self._tell)

    def _tell(self, event: Event) -> None:
        if event.id == f"long-{self._number}":
            self._state = event.state
            told, self._told = self._told, Deferred()
            told.callback(None)

    async def ensure(self) -> None:
        """Returns when it is in work; where it is over, another one is sent."""
        if self.in_work:
            return
        if self._number:
            await self._client.cancel(f"long-{self._number}")
        self._number += 1
        self._state = ""
        await self._client.submit(f"long-{self._number}", self._audio)
        while not self.in_work:
            assert self._state in ("", "queued"), f"the long recording is {self._state} already"
            await self._told


async def scheduling(rig: Rig) -> Outcome:
    """Short messages of other owners while a long recording is in work, and on an idle daemon."""
    wanted = rig.options.messages or (30 if rig.options.model == "large" else 200)
    speech = rig.speech(MESSAGE * _DISTINCT)
    pieces = rig.speech(SPOKEN).pieces(rig.model)
    engine = await rig.engine(1)
    await engine.prepare(pieces)
    await engine.run([0])
    a_window, _ = await engine.run([1])
    daemon = await rig.daemon()
    rig.tell(f"scheduling: {wanted} messages on an idle daemon")
    idle = [await _other(rig, daemon, f"idle-{i}", speech, i) for i in range(-rig.workers, wanted)]
    del idle[: rig.workers]
    hours = Hours(rig.client(daemon, "long"), rig.speech(rig.options.seconds).audio())
    await hours.start()
    busy: list[float] = []
    chance = random.Random(1)
    rig.tell(f"scheduling: {wanted} messages on a busy one")
    sent = 0
    while len(busy) < wanted:
        await hours.ensure()
        # So that messages do not come in step with the windows.
        await rig.pause(chance.uniform(0, a_window))
        sent += 1
        took = await _other(rig, daemon, f"busy-{sent}", speech, sent)
        if hours.in_work:
            busy.append(took)
    rows = []
    for name, at in (("median", 0.5), ("99th percentile", 0.99)):
        ours, quiet = percentile(busy, at), percentile(idle, at)
        what = f"scheduling: {MESSAGE} s message, busy over idle, {name}"
        rows.append(Row(what, f"{ours:.3f} s", f"{quiet:.3f} s", ours / quiet))
    window = f"{a_window:.3f} s"
    rows.append(Row(f"scheduling: a window of {pieces[1].seconds:g} s", "", window))
    return Outcome(rows, {"busy": busy, "idle": idle, "window": a_window})


async def _other(rig: Rig, daemon: DaemonProcess, party: str, speech: Speech, number: int) -> float:
    """A message of a party that has just come."""
    client = rig.client(daemon, party)
    await client.connect()
    audio = speech.audio(number % _DISTINCT * MESSAGE, MESSAGE)
    took, _ = await rig.send(client, "m", audio)
    await client.close()
    return took
