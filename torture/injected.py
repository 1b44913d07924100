"""Becomes ``sitecustomize`` of the daemon and of its children: harm from within.

What it does is said by files beside it, as the daemon passes little of its environment on:

- ``clock``: eight bytes, a little-endian double: seconds by which the clock on the wall is wrong.
- ``deadly``, ``leaky``: bytes that, in the audio of a window, end the child that hears them, or
  make it forget memory.

Not imported by the rest of this package, and imports nothing of it.
"""

from __future__ import annotations

import importlib.machinery
import mmap
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

LEAK = 2300 << 20
"""Bytes that are forgotten: more than a worker may grow by."""

_HERE = Path(__file__).parent
_HEARD_BY = "transcribed.speech.native"
_forgotten: list[bytearray] = []


def _shift_clock(path: Path) -> None:
    with open(path, "rb") as file:
        shift = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    right, right_ns = time.time, time.time_ns

    def wrong_by() -> float:
        seconds: float = struct.unpack_from("<d", shift)[0]
        return seconds

    time.time = lambda: right() + wrong_by()
    time.time_ns = lambda: right_ns() + int(wrong_by() * 1e9)


class _Finder:
    """Lets a module be imported as ever, and changes it then."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _HEARD_BY:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _poison(module.NativeRecognizer)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _poison(recognizer: Any) -> None:
    transcribe = recognizer.transcribe
    deadly, leaky = (_HERE / "deadly").read_bytes(), (_HERE / "leaky").read_bytes()

    def hear(self: Any, sounds: Any) -> Any:
        for sound in sounds:
            audio = (sound.samples * 32768).astype("<i2").tobytes()
            if deadly in audio:
                os.kill(os.getpid(), signal.SIGKILL)
            if leaky in audio:
                # A page that is never written to takes no memory.
                forgotten = bytearray(LEAK)
                forgotten[:: mmap.PAGESIZE] = b"x" * len(range(0, LEAK, mmap.PAGESIZE))
                _forgotten.append(forgotten)
        return transcribe(self, sounds)

    recognizer.transcribe = hear


if (_HERE / "clock").exists():
    _shift_clock(_HERE / "clock")
if (_HERE / "deadly").exists():
    sys.meta_path.insert(0, _Finder())
