"""All faults, in the order of the table."""

from __future__ import annotations

from torture.fault import Fault
from torture.kills import DaemonKills

FAULTS: tuple[Fault, ...] = (DaemonKills(),)
