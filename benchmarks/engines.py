"""wav2vec2 inference engines side by side: ours and its peers, on the same audio and cores.

``python -m benchmarks.engines``; ``--help`` lists the options. Every engine is a process of its
own, and they take turns, so that what else the machine does falls on all of them alike. It prints

- how many times real time each is, for single windows and a batch of short ones (medians), and how
  far its answers are from those of transformers in float32,
- how much faster ours is than each (the median of the rounds' ratios),
- what share ours reaches of the rate at which the cores multiply matrices in its precision, and
- the memory of 1, 2 and 4 workers, and how soon they are ready.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy

from benchmarks import checkpoints, comparison, report
from benchmarks.apart import Apart, Failed
from benchmarks.arithmetic import Peak
from benchmarks.comparison import Figures
from benchmarks.footprint import WORKERS, footprint
from benchmarks.peers import OURS, PEERS, RATE, REFERENCE, Floats, Setting
from benchmarks.report import progress
from benchmarks.turns import Batches, Contest
from transcribed.cores import available_cores
from transcribed.errors import ModelUnavailable
from transcribed.speech.models import inspect

SEEDED = {"large": checkpoints.seeded_large, "base": checkpoints.seeded_base}

# Short messages that wait at once.
BATCH, BATCH_SECONDS = 8, 2

# What a worker of the memory's part hears.
_WINDOW_SECONDS = 20


def speech(seconds: int) -> Floats:
    """Clips one after the other, exactly `seconds` long."""
    # It takes a while to import, and every engine's process imports this module.
    from tests.speech import recording

    pcm, _ = recording(seconds)
    samples: Floats = pcm[: seconds * RATE].astype(numpy.float32) / numpy.float32(32768)
    return samples


def sizes(seconds: Iterable[int]) -> Batches:
    """A window of each length, and a batch of short ones."""
    batches: dict[str, Sequence[Floats]] = {f"{s} s": [speech(s)] for s in seconds}
    together = numpy.split(speech(BATCH * BATCH_SECONDS), BATCH)
    return batches | {f"{BATCH} x {BATCH_SECONDS} s": together}


def choose(asked: Sequence[str] | None, fast_bf16: bool) -> tuple[list[str], dict[str, str]]:
    """The engines to start, the reference and ours first, and why others are not."""
    names, left_out = [], {}
    for name, peer in PEERS.items():
        if asked is not None and name not in (REFERENCE, OURS, *asked):
            continue
        if missing := peer.missing():
            left_out[name] = f"not installed: {', '.join(missing)}"
        elif asked is None and peer.bf16 and not fast_bf16:
            left_out[name] = "this processor has no fast bfloat16; --peers asks for it anyway"
        else:
            names.append(name)
    return names, left_out


def weigh(setting: Setting, log: Path) -> dict[str, Any]:
    """The memory and the starts of workers."""
    found = {}
    for name in (OURS, REFERENCE):
        progress(f"{name}: {max(WORKERS)} workers are started")
        # So that the first of them has to convert the checkpoint.
        with tempfile.TemporaryDirectory(dir=setting.work) as empty:
            fresh = replace(setting, work=Path(empty))
            found[name] = footprint(name, fresh, [speech(_WINDOW_SECONDS)], log)
    return found


def compete(
    names: Sequence[str], setting: Setting, batches: Batches, rounds: int, log: Path
) -> tuple[Contest, dict[str, float]]:
    """The contest after all its rounds, and the cores' peak in each precision."""
    contest = Contest(setting, batches, log)
    rates = []
    try:
        for name in names:
            contest.enter(name)
        precisions = {"float32", "int8", *(e.precision for e in contest.entrants.values())}
        peak = Apart(partial(Peak, setting.threads, sorted(precisions)), log)
        # Size by size, so that engines that are compiled for one need not keep all of them.
        for size in batches:
            contest.hear(size)
            for number in range(rounds):
                progress(f"{size}: round {number + 1} of {rounds}")
                contest.round(number, size)
                rates.append(peak.call("rates"))
        peak.stop()
    finally:
        contest.stop()
    return contest, {p: statistics.median(rate[p] for rate in rates) for p in sorted(precisions)}


def measure(options: argparse.Namespace, work: Path) -> Figures:
    """Everything, as it goes into the file."""
    work.mkdir(parents=True, exist_ok=True)
    log = work / "log"
    checkpoint = Path(options.model)
    if options.model in SEEDED:
        checkpoint = work / options.model
        Apart(partial(SEEDED[options.model], checkpoint), log).stop()
    # What is kept there is never taken for another checkpoint's.
    converted = work / f"converted-{inspect(options.model, checkpoint).digest[:16]}"
    converted.mkdir(exist_ok=True)
    setting = Setting(checkpoint, converted, options.threads)
    found: Figures = {k: getattr(options, k) for k in ("model", "threads", "rounds")}
    if options.memory:
        # Before the engines are started: what they map, too, would count as shared.
        found["workers"] = weigh(setting, log)
    fast_bf16 = report.has_fast_bf16(report.machine()["flags"])
    names, left_out = choose(options.peers, fast_bf16)
    batches = sizes(options.seconds)
    contest, peak = compete(names, setting, batches, options.rounds, log)
    found["engines"] = comparison.figures(contest, batches)
    found["peak"] = peak
    found["share of the peak"] = {
        name: comparison.shares(entrant, peak, checkpoint, batches)
        for name, entrant in contest.entrants.items()
        if name.startswith(OURS)
    }
    found["left out"] = left_out | contest.left_out
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--model",
        default="large",
        help="a directory, or a shape with seeded weights: large (the default) or base",
    )
    parser.add_argument("--seconds", type=int, nargs="+", default=[1, 3, 10, 20], metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument(
        "--threads", type=int, default=available_cores(), metavar="N", help="and cores, for each"
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=[name for name in PEERS if name not in (REFERENCE, OURS)],
        metavar="ENGINE",
        help=f"which others, beside {REFERENCE} and {OURS}: %(choices)s",
    )
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="keep converted models there, for the next time (large: 7 GB)",
    )
    return parser.parse_args()


def confine(threads: int) -> None:
    """Give this process and those that it starts `threads` cores, and as many threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    os.environ |= {
        "CUDA_VISIBLE_DEVICES": "",  # It is the cores that are compared.
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def main() -> None:
    """See the top of this file."""
    options = arguments()
    confine(options.threads)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = measure(options, options.work or Path(folder))
        except (Failed, ModelUnavailable) as e:
            raise SystemExit(f"benchmarks.engines: {e}") from e
    found["minutes"] = round((time.monotonic() - started) / 60, 1)
    print(report.describe(report.machine()))
    print(f"{options.model}, {options.threads} threads, {options.rounds} rounds, medians", end="")
    print(f"; {found['minutes']} minutes")
    print(comparison.tables(found))
    if options.json:
        report.save(options.json, "engines", found)


if __name__ == "__main__":
    main()
