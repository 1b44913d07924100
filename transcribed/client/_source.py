"""Where the audio of an upload comes from: cut into frames, and read again where it can be."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
)
from typing import Any, BinaryIO

Audio = (
    bytes
    | bytearray
    | memoryview
    | BinaryIO
    | Iterable[bytes]
    | AsyncIterable[bytes]
    | Callable[[], "bytes | BinaryIO | Iterable[bytes] | AsyncIterable[bytes]"]
)
"""s16le samples: at once, in pieces (cut anywhere), in an open binary file, or from a function that
makes one of these anew each time it is called."""

FRAME = 64 * 1024
"""The most bytes of audio in one binary frame."""


class Source:
    """The audio of one upload.

    :ivar repeatable: whether it can be read more than once.
    :raises TypeError: for something that is not audio.
    """

    def __init__(self, audio: Any) -> None:
        self._audio = audio
        self._start: int | None = None
        self._opened = False
        if isinstance(audio, (bytes, bytearray, memoryview)):
            self.repeatable = True
        elif isinstance(audio, str):
            raise TypeError("audio is bytes or gives bytes; a str is neither")
        elif hasattr(audio, "read"):
            self.repeatable = bool(audio.seekable())
            if self.repeatable:
                self._start = audio.tell()
        elif isinstance(audio, Iterable):
            self.repeatable = not isinstance(audio, Iterator)
        elif isinstance(audio, AsyncIterable):
            self.repeatable = not isinstance(audio, AsyncIterator)
        elif callable(audio):
            self.repeatable = True
        else:
            raise TypeError(f"{type(audio).__name__} is not audio")

    @property
    def spent(self) -> bool:
        """Whether it was read from and cannot be read again."""
        return self._opened and not self.repeatable

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The audio from its beginning, at most :data:`FRAME` bytes at a time.

        Raises whatever reading the audio raises.
        """
        self._opened = True
        if self._start is not None:
            self._audio.seek(self._start)
        audio = self._audio
        made = not hasattr(audio, "read") and not isinstance(audio, (Iterable, AsyncIterable))
        if made:
            audio = audio()
        try:
            if isinstance(audio, AsyncIterable):
                async for piece in audio:
                    for frame in _cut(piece):
                        yield frame
            else:
                for piece in _pieces(audio):
                    for frame in _cut(piece):
                        yield frame
        finally:
            if made and hasattr(audio, "close"):
                audio.close()


def _pieces(audio: Any) -> Iterable[bytes | bytearray | memoryview]:
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return (audio,)
    if hasattr(audio, "read"):
        return iter(lambda: audio.read(FRAME), b"")
    pieces: Iterable[bytes] = audio
    return pieces


def _cut(piece: bytes | bytearray | memoryview) -> Iterator[bytes]:
    view = memoryview(piece).cast("B")
    for at in range(0, len(view), FRAME):
        yield bytes(view[at : at + FRAME])
