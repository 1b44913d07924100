"""The daemon against the bare engine, in the same run and in turns, on this machine.

``python -m benchmarks.daemon [--model large|tiny|embedded|auto|NAME|DIR] [PART ...]``. Real
``twistd`` processes, real websockets, state in a temporary directory. The parts:

- ``throughput``: audio seconds a second with messages of 20 s always waiting;
- ``latency``: from the `end` of a 5 s message on an idle daemon to its text;
- ``stream``: from the `end` of a 60 s message that was sent while it was spoken to its text;
- ``hour``: an hour of speech: time, memory, processor use, and whether the text is right;
- ``scheduling``: 5 s messages of others while an hour is in work, and on an idle daemon;
- ``whisper``: the embedded Whisper, against faster-whisper called directly.

``large`` stands for a wav2vec2-large with weights from a seed, which is as fast as a trained one;
``tiny`` for the tests' checkpoint, which knows real words. Where no model is named, ``throughput``,
``latency`` and ``stream`` take the former, ``hour`` and ``scheduling`` the latter.

The exit status is 0 when all targets were met, 2 when one was missed, 1 when a part failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from benchmarks.delays import latency, scheduling, stream
from benchmarks.hour import hour
from benchmarks.loads import throughput, whisper
from benchmarks.report import describe, machine, save, table
from benchmarks.rig import Options, Outcome, Rig, Row
from tests.speech import CHECKPOINT
from transcribed.admin import run
from transcribed.recognition import DTYPES

FAILED, MISSED = 1, 2


@dataclass(frozen=True)
class Part:
    """A part.

    :ivar model: what it measures where no model is named.
    :ivar only: whether it measures no other.
    """

    measure: Callable[[Rig], Awaitable[Outcome]]
    model: str
    only: bool = False


PARTS = {
    "throughput": Part(throughput, "large"),
    "latency": Part(latency, "large"),
    "stream": Part(stream, "large"),
    "hour": Part(hour, "tiny"),
    "scheduling": Part(scheduling, "tiny"),
    "whisper": Part(whisper, "embedded", only=True),
}


def place(model: str, folder: Path) -> str:
    """`model` as the daemon is told."""
    if model == "tiny":
        return str(CHECKPOINT)
    if model != "large":
        return model
    # In a process of its own: its gigabytes are not to be held while others are measured.
    made = folder / "large"
    code = "from pathlib import Path\nfrom benchmarks.checkpoints import seeded_large\n"
    code += f"seeded_large(Path({str(made)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    return str(made)


async def measure(
    reactor: Any, name: str, part: Part, options: Options, folder: Path
) -> tuple[Outcome, dict[str, Any]]:
    """One part: what it found, and on what."""
    model = part.model if part.only or options.model is None else options.model
    own, models = folder / name, folder / "models"
    own.mkdir()
    models.mkdir(exist_ok=True)
    asked = place(model, folder)
    async with Rig(reactor, options, asked, own, models) as rig:
        await rig.resolve()
        on: dict[str, Any] = {"model": model, "dtype": options.dtype, "kind": rig.model.kind}
        on |= {"workers": rig.workers, "threads": rig.threads, "rounds": options.rounds}
        rig.tell(f"{name}: model {model}, {rig.workers} workers x {rig.threads} threads")
        return await part.measure(rig), on


def show(rows: list[Row]) -> str:
    """The table."""
    verdicts = {None: "", True: "met", False: "MISSED"}
    return table(
        ["", "daemon", "without", "ratio", "target", ""],
        [
            [
                row.what,
                row.daemon,
                row.bare,
                "" if row.ratio is None else f"{row.ratio:.3f}",
                row.target,
                verdicts[row.met],
            ]
            for row in rows
        ],
    )


async def everything(
    reactor: Any, names: list[str], options: Options, file: Path | None, limit: float
) -> None:
    """Measure the parts, show each as it is done, and all at the end; ends the program.

    :param limit: seconds after which a part has failed.
    """
    print(describe(machine()), flush=True)
    rows: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name in names:
            work = measure(reactor, name, PARTS[name], options, Path(folder))
            try:
                outcome, on = await Deferred.fromCoroutine(work).addTimeout(limit, reactor)
            except CancelledError:
                raise
            except Exception:
                traceback.print_exc()
                print(f"{name} FAILED", flush=True)
                failed.append(name)
                continue
            rows += outcome.rows
            print(show(outcome.rows), flush=True)
            if file is not None:
                save(file, f"daemon {name}", {**on, **outcome.figures})
    print("\n" + show(rows))
    if failed:
        print("FAILED: " + ", ".join(failed))
        raise SystemExit(FAILED)
    if any(row.met is False for row in rows):
        raise SystemExit(MISSED)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> None:
    """See the top of this file."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.daemon",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} [all]")
    parser.add_argument("--model", help="large, tiny, embedded, or as the daemon is told")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--workers", type=_count, help="[as the daemon chooses]")
    parser.add_argument("--threads", type=_count, help="[as the daemon chooses]")
    parser.add_argument("--rounds", type=_count, default=3)
    parser.add_argument("--messages", type=_count, help="of scheduling [200; large: 30]")
    parser.add_argument("--seconds", type=_count, default=3600, help="of the long recording")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add all figures to FILE")
    parser.add_argument("--limit", type=float, default=3600, help="seconds that a part may take")
    given = vars(parser.parse_args())
    parts, file, limit = given.pop("parts") or [*PARTS], given.pop("json"), given.pop("limit")
    for name in parts:
        if name not in PARTS:
            parser.error(f"there is no part {name}: {', '.join(PARTS)}")
    options = Options(**given)
    run(lambda reactor: everything(reactor, parts, options, file, limit))


if __name__ == "__main__":
    main()
