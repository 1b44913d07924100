"""Recordings in files of all kinds, decoded to what the protocol takes: s16le within its limits.

PyAV (FFmpeg) reads them; it is imported when the first file is opened, as that takes a while.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from transcribed.wire import MAX_CHANNELS, MAX_RATE, MIN_RATE, SAMPLE_BYTES

BLOCK = 64 * 1024
"""Bytes of samples in one piece of :meth:`AudioFile.samples`, about."""


class UnreadableFile(Exception):
    """There is no audio to be had from a file; the text is one sentence that says why."""


class AudioFile:
    """A recording that is decoded as it is read, as often as wanted.

    Its rate and channels are kept where the protocol allows them. A rate outside is resampled to
    the nearest one allowed; more channels than allowed are mixed down to one.

    :ivar name: how to speak of it.
    :ivar rate: frames a second of :meth:`samples`, Hz.
    :ivar channels: channels of :meth:`samples`.
    :ivar seconds: how long the file says that it is; None where it does not say.
    :ivar damaged: how many packets the last reading had to skip.
    :param path: the file; ``-`` is the standard input, which is copied to a temporary file first,
        like anything else that can be read but once.
    :raises UnreadableFile: it cannot be opened, or not decoded.
    """

    def __init__(self, path: str) -> None:
        self.name = "the standard input" if path == "-" else path
        self.damaged = 0
        self._open = _opener(path, self.name)
        with self._reading() as container:
            stream = container.streams.audio[0]
            frame = next(self._decoded(container), None)
            if frame is None:
                raise UnreadableFile(f"{self.name}: no audio could be decoded from it")
            self._layout: str = frame.layout.name
            self._mix = len(frame.layout.channels) > MAX_CHANNELS
            self.channels = 1 if self._mix else len(frame.layout.channels)
            self.rate: int = min(max(frame.sample_rate, MIN_RATE), MAX_RATE)
            self.seconds = _seconds(container, stream)

    @property
    def size(self) -> int | None:
        """About how many bytes :meth:`samples` gives; None where the file does not say."""
        if self.seconds is None:
            return None
        return round(self.seconds * self.rate) * self.channels * SAMPLE_BYTES

    def samples(self) -> Iterator[bytes]:
        """All of it from the beginning: interleaved s16le, whole frames in each piece.

        Damaged packets are skipped and counted. Raises :exc:`UnreadableFile` when the file is gone
        or cannot be read any more.
        """
        block = bytearray()
        with self._reading() as container:
            for frame in self._resampled(self._decoded(container)):
                block += self._interleaved(frame)
                if len(block) >= BLOCK:
                    yield bytes(block)
                    block.clear()
        if block:
            yield bytes(block)

    def _reading(self) -> _Reading:
        return _Reading(self._open(), self.name)

    def _decoded(self, container: Any) -> Iterator[Any]:
        """The frames of the first audio stream, of whatever kind they are."""
        import av

        self.damaged = 0
        try:
            for packet in container.demux(container.streams.audio[0]):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    # Players go on, too: one bad packet is some milliseconds.
                    self.damaged += 1
                    continue
                yield from frames
        except av.error.FFmpegError as e:
            raise UnreadableFile(f"{self.name}: it cannot be decoded: {e.strerror}") from e
        except OSError as e:
            raise UnreadableFile(f"{self.name}: reading failed: {e.strerror}") from e

    def _resampled(self, frames: Iterator[Any]) -> Iterator[Any]:
        import av

        resampler, kind = None, None
        try:
            for frame in frames:
                if kind != (frame.format.name, frame.layout.name, frame.sample_rate):
                    if resampler is not None:
                        yield from resampler.resample(None)
                    resampler = av.AudioResampler("s16", self._layout, self.rate)
                    kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                # Gaps and jumps of the clock are no business of a resampler.
                frame.pts = None
                assert resampler is not None
                yield from resampler.resample(frame)
            if resampler is not None:
                yield from resampler.resample(None)
        except (av.error.FFmpegError, ValueError) as e:
            raise UnreadableFile(f"{self.name}: its audio cannot be converted: {e}") from e

    def _interleaved(self, frame: Any) -> bytes:
        channels = len(frame.layout.channels)
        # The plane is longer than its samples: FFmpeg pads it.
        samples = bytes(frame.planes[0])[: frame.samples * channels * SAMPLE_BYTES]
        if not self._mix:
            return samples
        # FFmpeg cannot mix channels whose places it does not know.
        import numpy as np

        mixed = np.frombuffer(samples, "<i2").reshape(-1, channels).mean(axis=1)
        return bytes(mixed.round().astype("<i2").tobytes())


class _Reading:
    """A file and the container in it, open for the length of a ``with``."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._container: Any = None

    def __enter__(self) -> Any:
        import av

        try:
            self._container = av.open(self._file, metadata_errors="replace")
            if not self._container.streams.audio:
                raise UnreadableFile(f"{self._name}: there is no audio in it")
        except (av.error.FFmpegError, ValueError) as e:
            empty = not self._file.seek(0, os.SEEK_END)
            self._close()
            why = "it is empty" if empty else "it is of no known audio format"
            raise UnreadableFile(f"{self._name}: {why}") from e
        except BaseException:
            self._close()
            raise
        return self._container

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._file.close()


def _opener(path: str, name: str) -> Callable[[], BinaryIO]:
    """What opens the file anew each time it is called."""
    if path == "-":
        return _copied(sys.stdin.buffer, name)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UnreadableFile(f"{name}: it is a directory")
        if not stat.S_ISREG(mode):
            # A pipe, as the shell's <(…) makes: a second reading would find nothing.
            with open(path, "rb") as pipe:
                return _copied(pipe, name)
    except FileNotFoundError as e:
        raise UnreadableFile(f"{name}: there is no such file") from e
    except (OSError, ValueError) as e:
        raise UnreadableFile(f"{name}: {_why(e)}") from e

    def again() -> BinaryIO:
        try:
            return open(path, "rb")
        except OSError as e:
            raise UnreadableFile(f"{name}: {_why(e)}") from e

    return again


def _copied(pipe: BinaryIO, name: str) -> Callable[[], BinaryIO]:
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        shutil.copyfileobj(pipe, copy)
        copy.flush()
    except OSError as e:
        raise UnreadableFile(f"{name}: {_why(e)}") from e

    def again() -> BinaryIO:
        # Its own position, so that two readings do not disturb each other.
        return open(f"/proc/self/fd/{copy.fileno()}", "rb") if _PROC else _rewound()

    def _rewound() -> BinaryIO:
        file = os.fdopen(os.dup(copy.fileno()), "rb")
        file.seek(0)
        return file

    return again


_PROC = os.path.isdir("/proc/self/fd")


def _why(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"it cannot be read: {reason[:1].lower()}{reason[1:]}"


def _seconds(container: Any, stream: Any) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1_000_000
