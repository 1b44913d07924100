"""A recording on its way through the recognizers: its windows, waiting, in work and done.

Pure, as :mod:`transcribed.scheduler`, which decides whose window is next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from transcribed.recognition import (
    Model,
    Piece,
    SpooledAudio,
    StoredWindow,
    Window,
    WindowResult,
    cut,
)
from transcribed.transcript import Transcript


@dataclass(eq=False)
class Job:
    """A recording on its way through the recognizers, maybe while it is still coming in.

    :ivar path: where its audio is.
    :ivar stored: results that an earlier daemon left; those of the model in use are not made again.
    :ivar open: whether more audio may come: only the windows that it cannot change are there.
    :ivar frames: how many frames of audio may be transcribed.
    :ivar begun: whether the store knows that it is in work.
    :ivar held: how many seconds of it count for the queue.
    :ivar reason: why it was given up, if it was.
    :ivar in_doubt: whether its outcome may be stored although that has failed.
    :ivar model: what it is cut for; None while that is not known.
    :ivar windows: how it is cut.
    :ivar waiting: the windows that no worker has yet.
    :ivar in_work: those that a worker has.
    :ivar results: by the windows' positions.
    :ivar tries: failed tries by the windows' positions; 0 where it may have been another's fault.
    """

    transcript: Transcript
    path: Path
    stored: list[StoredWindow] = field(default_factory=list)
    open: bool = False
    frames: int = field(init=False)
    begun: bool = False
    held: float = 0.0
    reason: str | None = None
    in_doubt: bool = False
    model: Model | None = None
    windows: list[Window] = field(default_factory=list)
    waiting: deque[Window] = field(default_factory=deque)
    in_work: set[Dealt] = field(default_factory=set)
    results: dict[int, WindowResult] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)
    _frames_left: int = 0
    _enough: int = 0

    def __post_init__(self) -> None:
        self.frames = self.transcript.frames

    @property
    def key(self) -> str:
        """The transcript's key."""
        return self.transcript.key

    @property
    def progress(self) -> float:
        """Windows done of windows in all, 0 to 1; 0 while it is not known how many there are."""
        if self.open or not self.windows:
            return 0.0
        return round(len(self.results) / len(self.windows), 4)

    @property
    def complete(self) -> bool:
        """Whether every window has its result."""
        return not self.open and 0 < len(self.windows) == len(self.results)

    @property
    def seconds_left(self) -> float:
        """How much audio is waiting."""
        return self._frames_left / self.transcript.rate

    def seconds(self, window: Window) -> float:
        """How much audio is in one of its windows."""
        return (window.stop - window.start) / self.transcript.rate

    def cut_for(self, model: Model) -> None:
        """Cut it as `model` asks, and pick up the results that this very model left."""
        self.drop_windows()
        self.model = model
        self.windows, self.tries, self._enough = [], {}, 0
        self.results = {s.position: s.result for s in self.stored if s.model == model.mark}
        self.stored = []
        self.cut()
        for position in [p for p in self.results if p >= len(self.windows)]:
            del self.results[position]

    def cut(self) -> None:
        """Add the windows that there is enough audio for by now."""
        if self.model is None or self.reason is not None:
            return
        if self.open and self.frames <= self._enough:
            return
        rate = self.transcript.rate
        windows = cut(self.frames, rate, self.model.core, self.model.context)
        # All but the last one stay as they are however much is still to come, and the last one
        # stays the last until there is more than the longest window's audio from its start on.
        self._enough = windows[-1].start + self.model.longest * rate
        for window in windows[len(self.windows) : -1 if self.open else None]:
            self.windows.append(window)
            if window.position not in self.results:
                self.waiting.append(window)
                self._frames_left += window.stop - window.start

    def take(self) -> Dealt:
        """Its next window is given to a worker."""
        window = self.waiting.popleft()
        self._frames_left -= window.stop - window.start
        dealt = Dealt(self, window)
        self.in_work.add(dealt)
        return dealt

    def put_back(self, dealt: Dealt) -> None:
        """A window must be done again: before all others."""
        self.in_work.discard(dealt)
        self.waiting.appendleft(dealt.window)
        self._frames_left += dealt.window.stop - dealt.window.start

    def drop_windows(self) -> None:
        """No window is waiting or in work any more."""
        self.waiting.clear()
        self.in_work.clear()
        self._frames_left = 0


@dataclass(eq=False)
class Dealt:
    """A window that was given to a worker, this once."""

    job: Job
    window: Window

    @property
    def piece(self) -> Piece:
        """What the worker is asked."""
        transcript = self.job.transcript
        audio = SpooledAudio(str(self.job.path), transcript.rate, transcript.channels)
        return Piece(audio, self.window, transcript.language)

    @property
    def seconds(self) -> float:
        """How much audio is in it."""
        return self.job.seconds(self.window)
