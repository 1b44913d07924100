"""SIGKILL of the daemon, at random moments."""

from __future__ import annotations

from torture.crowd import Crowd
from torture.fault import Fault
from torture.rig import Rig

RESTARTS = 200
_MOMENTS = ("start", "listening", "ended", "accepted", "fetching", "acking", "cancelling", "ready")
_WEIGHTS = (25, 20, 12, 12, 8, 8, 5, 10)
_QUICK = ("ready", "ended", "accepted", "start", "acking")
# Where clients wait for texts, and send nothing.
_LONGEST = 3.0


class DaemonKills(Fault):
    """The daemon is killed, and started again at once."""

    name = "daemon killed"

    async def inject(self, rig: Rig, crowd: Crowd) -> None:
        """See :class:`Fault`."""
        moments = _QUICK if rig.quick else rig.rng.choices(_MOMENTS, weights=_WEIGHTS, k=RESTARTS)
        for moment in moments:
            await self._wait(rig, moment)
            await rig.kill()
            rig.injected += 1
            rig.launch()

    async def _wait(self, rig: Rig, moment: str) -> None:
        if moment == "start":
            await rig.pause(rig.rng.uniform(0.0, 1.5))
            return
        if not await rig.logged("listening on"):
            return
        if moment == "listening":
            await rig.pause(rig.rng.uniform(0.0, 0.7))
        elif moment == "ready":
            await rig.logged("ready: model")
            await rig.pause(rig.rng.uniform(0.0, 1.0))
        else:
            await rig.event(moment, rig.rng.randrange(1, 4), _LONGEST)
            await rig.pause(rig.rng.choice((0.0, 0.0, rig.rng.uniform(0.0, 0.02))))
