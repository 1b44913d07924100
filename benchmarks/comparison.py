"""What :mod:`benchmarks.engines` has found out: figures for the file, tables for the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.arithmetic import operations
from benchmarks.peers import OURS, RATE, REFERENCE
from benchmarks.report import table
from benchmarks.turns import Batches, Contest, Entrant

Figures = dict[str, Any]
"""By name; as they are written into the file."""


def figures(contest: Contest, batches: Batches) -> Figures:
    """By engine: the seconds of each round, and what follows from them."""
    reference, ours = contest.entrants[REFERENCE], contest.entrants[OURS]
    audio = {size: sum(map(len, sounds)) / RATE for size, sounds in batches.items()}
    return {
        name: {
            "precision": entrant.precision,
            "seconds": entrant.seconds,
            "times real time": {s: audio[s] / statistics.median(entrant.seconds[s]) for s in audio},
            "ours is faster by": {s: _ratio(entrant, ours, s) for s in audio},
            "error": entrant.error(reference),
            "same tokens": entrant.agreement(reference),
        }
        for name, entrant in contest.entrants.items()
    }


def _ratio(peer: Entrant, ours: Entrant, size: str) -> float:
    """How many times as long as ours the peer takes: within a round, as machines' moods change."""
    return statistics.median(
        p / o for p, o in zip(peer.seconds[size], ours.seconds[size], strict=True)
    )


def shares(
    entrant: Entrant, peak: Mapping[str, float], checkpoint: Path, batches: Batches
) -> dict[str, float]:
    """By size: the part of the cores' peak in its precision that an engine reaches."""
    return {
        size: sum(operations(checkpoint, len(samples)) for samples in sounds)
        / statistics.median(entrant.seconds[size])
        / (peak[entrant.precision] * 1e9)
        for size, sounds in batches.items()
    }


def tables(found: Figures) -> str:
    """All of them, an empty line between two."""
    parts = [_speeds(found["engines"]), _ratios(found["engines"]), _shares(found)]
    if "workers" in found:
        parts.append(_workers(found["workers"]))
    left_out = [f"left out: {name}: {why}" for name, why in found["left out"].items()]
    return "\n\n".join([*parts, *(["\n".join(left_out)] if left_out else [])])


def _speeds(engines: Figures) -> str:
    sizes = engines[REFERENCE]["seconds"]
    rows = [
        [
            name,
            engine["precision"],
            *(f"{engine['times real time'][size]:.2f}" for size in sizes),
            "?" if engine["error"] is None else f"{engine['error']:.0e}",
            f"{engine['same tokens']:.1%}",
        ]
        for name, engine in engines.items()
    ]
    return table(["times real time", "computes in", *sizes, "error", "same tokens"], rows)


def _ratios(engines: Figures) -> str:
    sizes = engines[REFERENCE]["seconds"]
    rows = [
        [name, *(f"{engine['ours is faster by'][size]:.2f}" for size in sizes)]
        for name, engine in engines.items()
        if name != OURS
    ]
    return table(["ours is faster than, by", *sizes], rows)


def _shares(found: Figures) -> str:
    engines, peak = found["engines"], found["peak"]
    rows = [
        [
            name,
            f"{peak[engines[name]['precision']]:.0f} in {engines[name]['precision']}",
            *(f"{share:.0%}" for share in shares.values()),
        ]
        for name, shares in found["share of the peak"].items()
    ]
    sizes = engines[REFERENCE]["seconds"]
    measured = ", ".join(f"{rate:.0f} in {precision}" for precision, rate in peak.items())
    heading = f"the cores multiply matrices at 10^9 operations a second: {measured}\n"
    return heading + table(["share of that", "of", *sizes], rows)


def _workers(workers: Figures) -> str:
    counts = workers[OURS]["proportional"]
    memory = [f"{what} of {n}" for n in counts for what in ("PSS", "RSS")]
    rows = [
        [
            name,
            *(f"{engine[what][n]:.0f}" for n in counts for what in ("proportional", "resident")),
            f"{engine['starts'][0]:.1f} s",
            f"{statistics.median(engine['starts'][1:]):.1f} s",
        ]
        for name, engine in workers.items()
    ]
    return table(["MiB for each worker", *memory, "first start", "later"], rows)
