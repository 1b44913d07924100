"""Engines in turns: each in a process of its own, one of them computing at a time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy

from benchmarks.apart import Apart, Failed
from benchmarks.peers import OURS, PEERS, RATE, REFERENCE, Floats, Heard, Setting
from benchmarks.report import progress

Batches = Mapping[str, Sequence[Floats]]
"""What is heard at once, by the name of the size."""

# Seconds of audio that a turn is made of at least: a short window alone takes too short a time.
_TURN = 4


class Contestant:
    """What is in an engine's process."""

    def __init__(self, name: str, setting: Setting, batches: Batches) -> None:
        self._engine = PEERS[name].make(setting)
        self._batches = batches

    def precision(self) -> str:
        """What the engine computes in."""
        return self._engine.precision

    def heard(self, size: str) -> Heard:
        """What it makes of a size's sounds."""
        return self._engine.heard(self._batches[size])

    def seconds(self, size: str) -> float:
        """How long it takes to hear them, now."""
        sounds = self._batches[size]
        taken = []
        for _ in range(math.ceil(_TURN * RATE / sum(map(len, sounds)))):
            started = time.perf_counter()
            self._engine.run(sounds)
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)


@dataclass
class Entrant:
    """An engine, and what was found out about it.

    :ivar heard: by size.
    :ivar seconds: by size, of each round.
    """

    process: Apart
    precision: str
    heard: dict[str, Heard]
    seconds: dict[str, list[float]]

    def error(self, reference: Entrant) -> float | None:
        """The worst size's relative error of the logits; None where they are not to be had."""
        errors = []
        for size, heard in self.heard.items():
            known = reference.heard[size].logits
            if heard.logits is None or known is None:
                return None
            difference = numpy.stack(heard.logits) - numpy.stack(known)
            errors.append(float(numpy.linalg.norm(difference) / numpy.linalg.norm(known)))
        return max(errors)

    def agreement(self, reference: Entrant) -> float:
        """The worst size's share of frames whose most probable token is the reference's."""
        return min(
            statistics.mean(
                ours == theirs
                for mine, known in zip(heard.tokens, reference.heard[size].tokens, strict=True)
                for ours, theirs in zip_longest(mine, known, fillvalue="")
            )
            for size, heard in self.heard.items()
        )


class Contest:
    """The engines that take part.

    :ivar entrants: by name.
    :ivar left_out: why others are not.
    """

    def __init__(self, setting: Setting, batches: Batches, log: Path) -> None:
        self._setting = setting
        self._batches = batches
        self._log = log
        self.entrants: dict[str, Entrant] = {}
        self.left_out: dict[str, str] = {}

    def enter(self, name: str) -> None:
        """Start an engine."""
        progress(f"{name} is loaded")
        with self._watched(name):
            process = self._started(name)
            precision = process.call("precision")
            for other, entrant in self.entrants.items():
                # Our own engine was asked for the precision that it has chosen by itself.
                if entrant.precision == precision and _family(other) == _family(name):
                    process.stop()
                    raise Failed(f"it computes in {precision}, as {other} does")
            self.entrants[name] = Entrant(process, precision, {}, {})

    def hear(self, size: str) -> None:
        """Let each engine hear a size for the first time: what it sets up for it, it does now."""
        for name, entrant in list(self.entrants.items()):
            progress(f"{size}: {name} hears it for the first time")
            with self._watched(name):
                if entrant.heard and PEERS[name].one_size:
                    entrant.process.stop()
                    entrant.process = self._started(name)
                entrant.heard[size] = entrant.process.call("heard", size)
                entrant.seconds[size] = []

    def round(self, number: int, size: str) -> None:
        """A turn for each engine, which starts with another one in each round."""
        names = list(self.entrants)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            with self._watched(name):
                entrant = self.entrants[name]
                entrant.seconds[size].append(entrant.process.call("seconds", size))

    def _started(self, name: str) -> Apart:
        return Apart(partial(Contestant, name, self._setting, self._batches), self._log)

    def stop(self) -> None:
        """End all processes."""
        for entrant in self.entrants.values():
            entrant.process.stop()

    @contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        try:
            yield
        except Failed as e:
            if name in (REFERENCE, OURS):
                raise
            self.entrants.pop(name, None)
            self.left_out[name] = str(e)


def _family(name: str) -> str:
    return name.partition("-")[0]
