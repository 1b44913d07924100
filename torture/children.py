"""Harm to the children: killed, stopped, leaking, and dying of one recording every time."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from torture.clients import MARK
from torture.crowd import Crowd
from torture.fault import Fault
from torture.injected import LEAK
from torture.rig import Rig

_READY = "ready: model"
_HUNG = "hung: no answer"
# One that is loading a model may be silent for two minutes.
_LONGEST_HANG = 150.0
_PATTERNS = {
    # Of samples as quiet as the noise at a message's end, which they come before.
    name: b"".join(sample.to_bytes(2, "little", signed=True) for sample in samples * 16)
    for name, samples in (("deadly", [3, -3, 2, -1]), ("leaky", [1, -2, 3, -3]))
}
_SPARE = 3 << 30


class ChildKills(Fault):
    """Children are killed or stopped at random; most of those that are stopped go on later."""

    name = "children killed"
    workers = 2

    async def inject(self, rig: Rig, crowd: Crowd) -> None:
        """See :class:`Fault`."""
        # The first one is the child that finds the model.
        await rig.logged("listening on")
        while not rig.children():
            await rig.pause(0.01)
        self._signal(rig, signal.SIGKILL, rig.children())
        await rig.logged(_READY)
        for turn in range(3 if rig.quick else 40):
            await rig.event("accepted", 2, 3.0)
            await rig.pause(rig.rng.uniform(0.0, 0.1))
            children = rig.children()
            some = [pid for pid in children if rig.rng.random() < 0.7] or children
            if turn % 2:
                self._signal(rig, signal.SIGSTOP, some)
                await rig.pause(rig.rng.uniform(0.5, 2.0))
                self._signal(rig, signal.SIGCONT, some)
            else:
                self._signal(rig, signal.SIGKILL, some)
        if not rig.quick:
            self._signal(rig, signal.SIGSTOP, rig.children())
            if not await rig.logged(_HUNG, _LONGEST_HANG):
                rig.ledger.broken("that a child hangs was not found out")

    def _signal(self, rig: Rig, number: signal.Signals, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                rig.injected += 1


class _Patterned(Fault):
    """Some recordings hold what makes a child go wrong."""

    def prepare(self, rig: Rig) -> None:
        """See :class:`Fault`."""
        for name, pattern in _PATTERNS.items():
            (rig.inject / name).write_bytes(pattern)

    async def _send(self, rig: Rig, crowd: Crowd, name: str, poisoned: bool) -> None:
        sender = crowd.sender("anna")
        recording, audio = sender.recording("bjorn")
        recording.poisoned = poisoned
        rig.injected += 1
        await sender.submit(recording, audio[:-MARK] + _PATTERNS[name] + audio[-MARK:])
        crowd.deliver(recording)


class PoisonedRecording(_Patterned):
    """A recording that ends whatever child hears it must fail, and no other."""

    name = "poisoned recording"
    workers = 2
    # Each of them ends three children, and who ends again and again is started ever later.
    patience = 300.0

    async def inject(self, rig: Rig, crowd: Crowd) -> None:
        """See :class:`Fault`."""
        for _ in range(1 if rig.quick else 5):
            await self._send(rig, crowd, "deadly", poisoned=True)
            await rig.event("accepted", 4, 3.0)


class LeakingChild(_Patterned):
    """A child that grows by gigabytes must be replaced, and what it heard be delivered."""

    name = "leaking child"
    # Not everybody who runs the tests has that much memory to spare.
    in_quick = False

    def missing(self) -> str | None:
        """See :class:`Fault`."""
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:") and int(line.split()[1]) << 10 < LEAK + _SPARE:
                return f"{(LEAK + _SPARE) >> 30} GiB of memory are not free"
        return None

    async def inject(self, rig: Rig, crowd: Crowd) -> None:
        """See :class:`Fault`."""
        for _ in range(1 if rig.quick else 5):
            await rig.logged(_READY)
            known = set(rig.children())
            await self._send(rig, crowd, "leaky", poisoned=False)
            for _ in range(600):
                if known.isdisjoint(rig.children()):
                    break
                await rig.pause(0.1)
            else:
                rig.ledger.broken("a child that leaked was not replaced")
                return
            await rig.event("accepted", 4, 3.0)
