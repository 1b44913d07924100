"""The clock on the wall jumps while messages are in work."""

from __future__ import annotations

import struct

from torture.crowd import Crowd
from torture.fault import Fault
from torture.rig import Rig

_HOUR, _DAY = 3600.0, 86400.0
_JUMPS = (_HOUR, _DAY, -_HOUR, _HOUR, -2 * _HOUR, 30 * _DAY, -31 * _DAY, 5.0, -5.0)


class ClockJumps(Fault):
    """Nothing may be lost for it, and what is to expire must, in its own time."""

    name = "clock jumps"

    def prepare(self, rig: Rig) -> None:
        """See :class:`Fault`."""
        self._wrong_by = 0.0
        (rig.inject / "clock").write_bytes(struct.pack("<d", 0.0))

    async def inject(self, rig: Rig, crowd: Crowd) -> None:
        """See :class:`Fault`."""
        await rig.logged("listening on")
        for jump in _JUMPS[:3] if rig.quick else _JUMPS * 2:
            await crowd.sender("anna").send_short("bjorn")
            await rig.event("accepted", 2, 5.0)
            self._wrong_by += jump
            # In place: the daemon has it mapped.
            with open(rig.inject / "clock", "r+b") as file:
                file.write(struct.pack("<d", self._wrong_by))
            rig.injected += 1
            await rig.pause(rig.rng.uniform(0.5, 2.0))
