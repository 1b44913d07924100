"""Clients of a daemon that may vanish at any moment; they write down what they are promised.

Each repeats what was not answered until it is. What they hear goes into the ledger.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from typing import Any

from tests.speech import STEADY, clip, texts
from torture import probes
from torture.ledger import Recording
from torture.line import Line, Lost
from torture.rig import RETRY, Rig

LONGEST_BUSY = 0.5
"""Seconds that clients wait at most when the daemon is busy, whatever it asks for."""
_BETWEEN = 0.5
"""Seconds between two messages at most."""
SHORT_TTL = 2.0
"""Seconds that a recording is kept that is to expire."""
SLACK = 2.0
"""Seconds that expiring may be late: that the clock was set is found out within one."""

MARK = 128
"""Bytes at the end of a message that are in no other."""

# Samples of a frame of the model, and how many frames a pause has. With all of these the tests'
# checkpoint hears every clip right; after 2 to 7 frames of silence it hears some wrong.
_FRAME = 320
_PAUSES = (10, 60)

_AUDIO: dict[str, bytes] = {}


def sound(name: str) -> bytes:
    """The bytes of a clip."""
    if name not in _AUDIO:
        _AUDIO[name] = clip(name).tobytes()
    return _AUDIO[name]


def message(number: int, rng: random.Random) -> tuple[str, bytes]:
    """A clip's name, and its audio made different from that of the messages before.

    The clip begins after a pause of its own length, which shows in the times of its words; and it
    ends with a few milliseconds of noise, :data:`MARK` bytes, that nobody hears.
    """
    turn, at = divmod(number, len(STEADY))
    name = STEADY[at]
    pause = bytes(2 * _FRAME * (_PAUSES[0] + turn % (_PAUSES[1] - _PAUSES[0])))
    return name, pause + sound(name) + noise(rng)


def noise(rng: random.Random) -> bytes:
    """:data:`MARK` bytes that nobody hears."""
    samples = (rng.randrange(-4, 5) for _ in range(MARK // 2))
    return b"".join(sample.to_bytes(2, "little", signed=True) for sample in samples)


class Actor:
    """A party that goes on over broken connections.

    Its methods raise :exc:`torture.rig.Over` when the run's time is over.
    """

    def __init__(self, rig: Rig, party: str) -> None:
        self.rig = rig
        self.party = party
        self.rng = random.Random(rig.rng.random())
        self._line: Line | None = None

    async def line(self) -> Line:
        """Its connection."""
        if self._line is None:
            self._line = await self.rig.line(self.party)
        while self._line.events:
            event = self._line.events.pop()
            if self.party not in (event["owner"], event["receiver"]):
                self.rig.ledger.stranger("subscribe", event, {})
        return self._line

    def cut(self) -> None:
        """Break its connection, if there is one."""
        if self._line is not None:
            self._line.cut()
            self._line = None

    async def ask(self, **message: Any) -> dict[str, Any]:
        """The answer, however often it has to be asked for."""
        while True:
            try:
                answer = await (await self.line()).ask(**message)
            except Lost:
                self._line = None
            else:
                if not await self.must_repeat(answer):
                    return answer
            await self.rig.pause(RETRY)

    async def must_repeat(self, answer: dict[str, Any]) -> bool:
        """Whether the same is to be asked again later; waits until then."""
        self.rig.check()
        code = answer.get("code")
        if code == "internal":
            self._line = None
            if not self.rig.internal:
                self.rig.ledger.broken(f"{self.party} was answered internal")
        elif code == "busy":
            self.rig.happened("busy")
            after = answer.get("retry_after")
            if not isinstance(after, int | float) or after <= 0:
                self.rig.ledger.broken(f"busy without retry_after: {after!r}")
                after = LONGEST_BUSY
            await self.rig.pause(min(after, LONGEST_BUSY))
        return code in ("internal", "busy")

    # Submitting

    async def submit(self, recording: Recording, audio: bytes, **more: Any) -> None:
        """Send a recording until it is accepted."""
        digest = hashlib.sha256(audio).hexdigest() if self.rng.random() < 0.5 else None
        while True:
            try:
                answer = await self._send(await self.line(), recording, audio, digest, **more)
            except Lost:
                self._line = None
            else:
                if answer["type"] == "accepted":
                    self.rig.ledger.accepted(recording, answer)
                    self.rig.happened("accepted")
                    return
                if not await self.must_repeat(answer):
                    self.rig.ledger.refused(recording, self.party, answer)
                    return
            recording.repeated = True
            await self.rig.pause(RETRY)

    async def _send(
        self, line: Line, recording: Recording, audio: bytes, digest: str | None, **more: Any
    ) -> dict[str, Any]:
        if recording.receiver != recording.owner:
            more["receiver"] = recording.receiver
        begin = {"type": "submit", "id": recording.id, **more}
        end = {"type": "end", "id": recording.id, "sha256": digest}
        # From now on it may be accepted, whatever is heard.
        recording.ended = True
        ref = line.say(begin, audio, end)
        self.rig.happened("ended")
        return await line.answer(ref)

    # Taking

    async def take(self, recording: Recording) -> None:
        """Fetch and ack it, in one of several ways."""
        chance = self.rng.random()
        if 0.3 < chance < 0.4:
            await probes.ack_too_early(self, recording)
        elif 0.5 < chance < 0.6 and self.party != recording.owner:
            await probes.cancel_as_receiver(self, recording)
        elif 0.6 < chance < 0.7:
            await probes.is_listed(self, recording)
        self.rig.happened("fetching")
        if not await self.fetch(recording):
            return
        if chance < 0.2 and not await self.fetch(recording):
            return
        if chance > 0.8:
            self.cut()
            if not await self.fetch(recording):
                return
        await self.ack(recording)
        if 0.4 < chance < 0.5:
            await self.ack(recording)

    async def fetch(self, recording: Recording) -> bool:
        """Whether there is something to ack."""
        answer = await self.ask(type="fetch", id=recording.id, owner=recording.owner)
        ledger, party = self.rig.ledger, self.party
        code = answer.get("code")
        if answer["type"] == "transcript":
            ledger.delivered(recording, party, answer)
        elif code == "failed":
            ledger.failed(recording, party, answer)
        elif code == "gone":
            ledger.gone(recording, party)
        elif code == "unknown-id":
            ledger.unknown(recording, party)
        else:
            ledger.refused(recording, party, answer)
        return answer["type"] == "transcript" or code == "failed"

    async def ack(self, recording: Recording) -> None:
        """Say that it has the text."""
        recording.sides[self.party].acking = True
        self.rig.happened("acking")
        answer = await self.ask(type="ack", id=recording.id, owner=recording.owner)
        if answer["type"] != "acked":
            self.rig.ledger.refused(recording, self.party, answer)
            return
        self.rig.ledger.acked(recording, self.party, answer)
        if answer["purged"]:
            self.rig.ledger.leftovers(self.rig.traces(recording))


class Taker(Actor):
    """Takes what it is told of.

    :ivar inbox: recordings to take.
    """

    def __init__(self, rig: Rig, party: str, more: deque[Recording]) -> None:
        super().__init__(rig, party)
        self.inbox = more
        self.closing = False

    async def run(self) -> None:
        """Until `closing`, and nothing is left to take."""
        await self.ask(type="subscribe")
        while self.inbox or not self.closing:
            self.rig.check()
            if not self.inbox:
                await self.rig.pause(RETRY)
                continue
            # In any order.
            self.inbox.rotate(self.rng.randrange(len(self.inbox)))
            recording = self.inbox.popleft()
            await self.take(recording)


class Sender(Actor):
    """Sends short messages of all kinds, one after another.

    :param inboxes: by party: where to put what that party is to take.
    :param most: so many messages may wait to be taken.
    """

    def __init__(
        self, rig: Rig, party: str, inboxes: dict[str, deque[Recording]], most: int
    ) -> None:
        super().__init__(rig, party)
        self.closing = False
        self._inboxes = inboxes
        self._most = most
        self._expiring: list[tuple[float, Recording]] = []

    async def run(self) -> None:
        """Until `closing`."""
        while not self.closing:
            self.rig.check()
            await self._check_expired()
            if max(map(len, self._inboxes.values())) >= self._most:
                await self.rig.pause(RETRY)
            else:
                await self.send()
                await self.rig.pause(self.rng.uniform(0.0, _BETWEEN))
        while self._expiring:
            await self.rig.pause(RETRY)
            await self._check_expired()

    def recording(self, receiver: str, short: bool = False) -> tuple[Recording, bytes]:
        """A new message and its audio."""
        number = next(self.rig.numbers)
        name, audio = message(number, self.rng)
        recording = Recording(
            self.party, f"m{number}", receiver, texts()[name], audio[-MARK:], short
        )
        return self.rig.ledger.offer(recording), audio

    async def send(self) -> None:
        """One message, of a kind that chance decides."""
        others = [party for party in self._inboxes if party != self.party]
        receiver = self.party if self.rng.random() < 0.15 else self.rng.choice(others)
        chance = self.rng.random()
        if chance < 0.1:
            await self._break_off(receiver)
        elif chance < 0.2:
            await self._send_and_cancel(receiver)
        elif chance < 0.25:
            await self.send_short(receiver)
        else:
            recording, audio = self.recording(receiver)
            await self.submit(recording, audio)
            if chance > 0.9:
                recording.repeated = True
                await self.submit(recording, audio)
            elif chance > 0.8:
                await probes.take_the_id(self, recording, audio + audio[-2:])
            for party in recording.sides:
                self._inboxes[party].append(recording)

    async def _break_off(self, receiver: str) -> None:
        """Before its `end`: nothing of it may be left."""
        recording, audio = self.recording(receiver)
        line = await self.line()
        line.say({"type": "submit", "id": recording.id, "receiver": receiver}, audio)
        self.cut()
        # Until the daemon has noticed, it may be said to be uploading.
        while True:
            answer = await self.ask(type="status", id=recording.id)
            if answer.get("state") != "uploading":
                break
            await self.rig.pause(RETRY)
        if answer.get("code") != "unknown-id":
            self.rig.ledger.refused(recording, self.party, answer)
        self.rig.ledger.leftovers(self.rig.traces(recording))

    async def _send_and_cancel(self, receiver: str) -> None:
        recording, audio = self.recording(receiver)
        await self.submit(recording, audio)
        await self.rig.pause(self.rng.choice((0.0, 0.1, 1.0)))
        recording.cancelling = True
        self.rig.happened("cancelling")
        answer = await self.ask(type="cancel", id=recording.id)
        if answer["type"] != "cancelled":
            self.rig.ledger.refused(recording, self.party, answer)
        self.rig.ledger.leftovers(self.rig.traces(recording))
        answer = await self.ask(type="fetch", id=recording.id)
        if answer.get("code") != "gone":
            self.rig.ledger.refused(recording, self.party, answer)

    async def send_short(self, receiver: str) -> None:
        """A message that must be gone soon."""
        recording, audio = self.recording(receiver, short=True)
        await self.submit(recording, audio, ttl=SHORT_TTL)
        self._expiring.append((self.rig.reactor.seconds(), recording))

    async def _check_expired(self) -> None:
        for since, recording in list(self._expiring):
            if self.rig.reactor.seconds() > since + SHORT_TTL + SLACK:
                self._expiring.remove((since, recording))
                answer = await self.ask(type="status", id=recording.id)
                self.rig.ledger.expired(recording, answer)


class Stranger(Actor):
    """Asks for what is others', and compares with what it hears of what never was."""

    def __init__(self, rig: Rig, party: str = "mallory") -> None:
        super().__init__(rig, party)
        self.closing = False

    async def run(self) -> None:
        """Until `closing`."""
        while not self.closing:
            self.rig.check()
            known = [r for r in self.rig.ledger.recordings.values() if r.ended]
            if known:
                await self.pry(self.rng.choice(known[-20:]))
            await self.rig.pause(0.1)

    async def pry(self, recording: Recording) -> None:
        """Ask for one recording in every way there is."""
        for request in ("fetch", "status", "ack", "cancel"):
            more = {"wait": self.rng.random() < 0.5} if request == "fetch" else {}
            owner = recording.owner
            answer = await self.ask(type=request, id=recording.id, owner=owner, **more)
            never = await self.ask(type=request, id="never-was", owner=owner, **more)
            self.rig.ledger.stranger(request, answer, never)
        answer = await self.ask(type="list")
        self.rig.ledger.listed(self.party, answer)
        await self.ask(type="subscribe")
