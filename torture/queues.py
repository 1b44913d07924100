"""More messages than the queue holds."""

from __future__ import annotations

from twisted.internet.defer import Deferred, gatherResults

from torture.crowd import Crowd
from torture.fault import Fault
from torture.rig import Rig

_SENDERS = 6


class FullQueue(Fault):
    """Clients are told `busy`, and come again."""

    name = "full queue"
    options = ("--max-queue", "3")

    async def inject(self, rig: Rig, crowd: Crowd) -> None:
        """See :class:`Fault`."""
        busy = 0

        def count(event: str) -> None:
            nonlocal busy
            busy += event == "busy"

        rig.watchers.append(count)

        async def send(turns: int) -> None:
            sender = crowd.sender("anna")
            for _ in range(turns):
                recording, audio = sender.recording("bjorn")
                await sender.submit(recording, audio)
                crowd.deliver(recording)

        turns = 1 if rig.quick else 30
        await gatherResults([Deferred.fromCoroutine(send(turns)) for _ in range(_SENDERS)])
        rig.watchers.remove(count)
        rig.injected = busy
        if not busy:
            rig.ledger.broken("the queue was never full")
