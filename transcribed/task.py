"""What a ``transcribe`` command comes down to, and how it may end.

Between :mod:`transcribed.cli`, which makes a task of words, and :mod:`transcribed.terminal`, which
runs it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transcribed.client import Client
    from transcribed.terminal import Terminal

OK = 0
UNFORESEEN = 1
USAGE = 2
UNREACHABLE = 3
REFUSED = 4
UNREADABLE = 5
NO_TEXT = 6
NOT_NOW = 7
INTERRUPTED = 130

EXIT_CODES = {
    OK: "done",
    UNFORESEEN: "the output could not be written, or something unforeseen",
    USAGE: "wrong usage",
    UNREACHABLE: "the daemon cannot be reached, or the connection broke for good",
    REFUSED: "the daemon refused; its code and reason are on stderr",
    UNREADABLE: "the file cannot be read or decoded",
    NO_TEXT: "no such transcript: unknown, gone (deleted, expired, cancelled) or failed",
    NOT_NOW: "try again later: not ready yet (fetch --no-wait), or the daemon is busy",
    INTERRUPTED: "interrupted (Ctrl-C)",
}
"""What the command's exit status says."""

Job = Callable[["Client", "Terminal"], Awaitable[int]]
"""The conversation of one command; its result is the exit status."""


@dataclass(frozen=True)
class Common:
    """What all commands need to know."""

    url: str
    party: str
    token: str | None
    cafile: str | None
    json: bool
    quiet: bool


@dataclass(frozen=True)
class Task:
    """A command that was understood: the job to run and how to reach the daemon."""

    common: Common
    job: Job
