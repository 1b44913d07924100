"""One fault from its start to its row of the table."""

from __future__ import annotations

import os
import random
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.speech import CHECKPOINT
from torture.crowd import Crowd
from torture.fault import Fault
from torture.ledger import Counts
from torture.rig import Rig


@dataclass(frozen=True)
class Row:
    """What came of one fault.

    :ivar fault: its name.
    :ivar counts: the verdict.
    :ivar injected: how often it was injected.
    :ivar starts: how many daemons were started.
    :ivar seconds: how long it took.
    :ivar notes: what went wrong, a line each.
    """

    fault: str
    counts: Counts
    injected: int
    starts: int
    seconds: float
    notes: list[str]

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


async def run(reactor: Any, fault: Fault, models: Path, seed: int, quick: bool) -> Row:
    """Inject `fault` into a daemon of its own.

    :param models: a directory for the converted checkpoint, of all runs.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        # Not hash(): its strings differ from process to process.
        own = random.Random(f"{seed} {fault.name}").randrange(2**32)
        rig = Rig(reactor, Path(folder), models, own, quick)
        workers = str(1 if quick else fault.workers)
        rig.options = ("--workers", workers, "--threads", "1", *fault.options)
        rig.internal = fault.internal
        try:
            fault.prepare(rig)
            rig.launch()
            crowd = Crowd(rig)
            crowd.start()
            await fault.inject(rig, crowd)
            rig.internal = False
            await crowd.settle(fault.patience)
        except Exception:
            rig.ledger.broken(f"the harness stumbled: {traceback.format_exc()}")
        finally:
            await rig.end()
            fault.clean(rig)
        if os.environ.get("TORTURE_LOGS"):
            Path(os.environ["TORTURE_LOGS"], f"{fault.name}.log").write_text(rig.logs)
        counts = rig.ledger.counts()
    took = time.monotonic() - begun
    return Row(fault.name, counts, rig.injected, rig.starts, round(took, 1), rig.ledger.notes)


async def warm_up(reactor: Any, folder: Path) -> Path:
    """Have the checkpoint converted, once for all runs; the directory that it is in."""
    models = folder / "models"
    models.mkdir()
    rig_folder = folder / "warm"
    rig_folder.mkdir()
    rig = Rig(reactor, rig_folder, models, 0, True)
    rig.options = ("--workers", "1", "--threads", "1")
    rig.launch()
    # The workers are started when the model is converted.
    if not await rig.logged(" workers of ", 120.0):
        raise RuntimeError(f"the daemon does not start with {CHECKPOINT}:\n{rig.daemon.log}")
    await rig.kill()
    return models
