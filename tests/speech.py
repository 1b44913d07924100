"""Real speech for tests: a tiny checkpoint that was trained on it, and clips with their text.

Both were made by ``tests/train_checkpoint.py``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import av
import numpy
import numpy.typing

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoint"
CLIPS = HERE / "clips"
RATE = 16000

STEADY = ("02.flac", "03.flac", "04.flac", "05.flac", "06.flac", "08.flac", "10.flac")
"""Clips that the checkpoint hears right in whatever company: in all of 624 places of 40 minutes.

Of the others it misses a gap between words now and then, when other clips are around.
"""

PCM = numpy.typing.NDArray[numpy.int16]


def texts() -> dict[str, str]:
    """What is said in each clip, by file name."""
    read: dict[str, str] = json.loads((CLIPS / "clips.json").read_text())
    return read


def clip(name: str) -> PCM:
    """The samples of a clip: mono at 16 kHz, shape (samples,)."""
    with av.open(str(CLIPS / name)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    samples: PCM = numpy.concatenate(frames, axis=1)[0].astype(numpy.int16)
    return samples


def recording(seconds: float, seed: int = 1, clips: Sequence[str] | None = None) -> tuple[PCM, str]:
    """Clips with pauses between them, at least `seconds` long, and the whole text."""
    rng = random.Random(seed)
    said = texts()
    names = sorted(said) if clips is None else list(clips)
    samples = {name: clip(name) for name in names}
    parts: list[PCM] = []
    words: list[str] = []
    length = 0
    while length < seconds * RATE:
        name = rng.choice(names)
        pause = numpy.zeros(rng.randrange(RATE // 10, RATE // 2), numpy.int16)
        parts += [samples[name], pause]
        words.append(said[name])
        length += len(samples[name]) + len(pause)
    return numpy.concatenate(parts), " ".join(words)
