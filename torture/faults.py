"""All faults, in the order of the table."""

from __future__ import annotations

from torture.badinput import BadInput
from torture.children import ChildKills, LeakingChild, PoisonedRecording
from torture.clocks import ClockJumps
from torture.cuts import Cuts
from torture.disks import BrokenDisk, FileSizeLimit, FullDisk
from torture.fault import Fault
from torture.kills import DaemonKills
from torture.queues import FullQueue

FAULTS: tuple[Fault, ...] = (
    DaemonKills(),
    ChildKills(),
    PoisonedRecording(),
    LeakingChild(),
    FileSizeLimit(),
    FullDisk(),
    BrokenDisk(),
    Cuts(),
    ClockJumps(),
    FullQueue(),
    BadInput(),
)
