"""Messages and frames that are none."""

from __future__ import annotations

from twisted.internet.threads import deferToThread

from torture.crowd import Crowd
from torture.fault import Fault
from torture.rig import Rig


class BadInput(Fault):
    """Random and mutated messages; see :mod:`torture.fuzz`."""

    name = "bad input"
    in_quick = False

    async def inject(self, rig: Rig, crowd: Crowd) -> None:
        """See :class:`Fault`."""
        from torture.fuzz import run

        messages = 1000 if rig.quick else 100_000
        sent, wrong = await deferToThread(run, messages, rig.rng.randrange(2**32))
        rig.injected = sent
        if sent < messages:
            rig.ledger.broken(f"only {sent} messages were sent")
        for what in wrong:
            rig.ledger.broken(what)
