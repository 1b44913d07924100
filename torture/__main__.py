"""``python -m torture [--quick] [--seed N] [--only FAULT …] [--json FILE]``

Injects one fault after another into a real daemon, while clients check what it promises them, and
prints what was counted. The exit status is 0 when every promise was kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from torture.faults import FAULTS
from torture.ledger import Counts
from torture.runs import Row, run, warm_up

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
    rows = []
    with tempfile.TemporaryDirectory(prefix="torture-models-") as folder:
        models = await warm_up(reactor, Path(folder))
        for fault in FAULTS:
            if options.only and fault.name not in options.only:
                continue
            if options.quick and not options.only and not fault.in_quick:
                continue
            missing = fault.missing()
            if missing is not None:
                print(f"{fault.name}: not injected: {missing}", flush=True)
                continue
            print(f"{fault.name} …", file=sys.stderr, flush=True)
            row = await run(reactor, fault, models, options.seed, options.quick)
            rows.append(row)
            for note in row.notes:
                print(f"  {fault.name}: {note}", file=sys.stderr, flush=True)
    return rows


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
