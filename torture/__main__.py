"""``python -m torture [--quick] [--seed N] [--only FAULT …] [--json FILE]``

Injects one fault after another into a real daemon, while clients check what it promises them, and
prints what was counted. The exit status is 0 when every promise was kept. Where the environment's
``TORTURE_LOGS`` names a directory, the daemons' logs are kept there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.task import react

from torture.fault import Fault
from torture.faults import FAULTS
from torture.ledger import Counts
from torture.runs import Row, run, warm_up

# Faults at a time, where it is to be quick.
_AT_ONCE = 2

_HEADS = {
    "accepted": "accepted",
    "delivered": "delivered",
    "lost": "lost",
    "strangers": "to a stranger",
    "early": "deleted early",
    "left": "left on disk",
    "unfinished": "unfinished",
    "broken": "other",
}


def table(rows: list[Row]) -> str:
    """The counts of all rows, a line each."""
    heads = ["fault", *_HEADS.values(), "injected", "starts", "seconds"]
    lines = [heads]
    for row in rows:
        counts = [str(getattr(row.counts, field.name)) for field in fields(Counts)]
        own = [str(row.injected), str(row.starts), f"{row.seconds:.0f}"]
        lines.append([row.fault, *counts, *own])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m torture")
    parser.add_argument("--quick", action="store_true", help="a shorter run of the same")
    parser.add_argument("--seed", type=int, default=1, help="where chance starts (default: 1)")
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--only", action="append", choices=names, help="may be repeated")
    parser.add_argument("--json", type=Path, help="a file for the counts")
    return parser.parse_args(arguments)


async def torture(reactor: Any, options: argparse.Namespace) -> list[Row]:
    """Run what is asked for."""
    chosen = []
    for fault in FAULTS:
        if fault.name in options.only if options.only else fault.in_quick or not options.quick:
            missing = fault.missing()
            if missing is None:
                chosen.append(fault)
            else:
                print(f"{fault.name}: not injected: {missing}", flush=True)
    # A daemon mostly waits, for its children to start or for us; but not where it may not be short.
    turn = DeferredSemaphore(_AT_ONCE if options.quick else 1)
    with tempfile.TemporaryDirectory(prefix="torture-models-") as folder:
        models = await warm_up(reactor, Path(folder))

        def begin(fault: Fault) -> Deferred[Row]:
            return Deferred.fromCoroutine(run(reactor, fault, models, options.seed, options.quick))

        rows = await gatherResults([turn.run(_told, begin, fault) for fault in chosen])
    return list(rows)


def _told(begin: Callable[[Fault], Deferred[Row]], fault: Fault) -> Deferred[Row]:
    """Say on stderr how far it is, and what went wrong."""

    def tell(row: Row) -> Row:
        verdict = "all is well" if row.counts.clean else "promises were broken"
        for line in (*row.notes, f"{verdict} after {row.seconds:.0f} s"):
            print(f"{fault.name}: {line}", file=sys.stderr, flush=True)
        return row

    return begin(fault).addCallback(tell)


def main(arguments: list[str]) -> None:
    """See the top of this file."""
    options = _options(arguments)
    rows: list[Row] = []

    async def work(reactor: Any) -> None:
        rows.extend(await torture(reactor, options))

    try:
        react(lambda reactor: Deferred.fromCoroutine(work(reactor)))
    except SystemExit as e:
        if e.code:
            raise
    print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([row.figures() for row in rows], indent=1) + "\n")
    raise SystemExit(0 if rows and all(row.counts.clean for row in rows) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
