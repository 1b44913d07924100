"""What benchmarks say: the machine they ran on, tables for the terminal, JSON for a file."""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from transcribed.cores import available_cores

# What decides how fast matrices are multiplied; as /proc/cpuinfo names them.
_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
)


def machine() -> dict[str, Any]:
    """The processor, the cores that may be used, torch and the date."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    present = fields.get("flags", fields.get("Features", "")).split()
    return {
        "cpu": fields.get("model name") or platform.machine(),
        "cores": available_cores(),
        "flags": [flag for flag in _FLAGS if flag in present],
        "torch": metadata.version("torch"),
        "date": datetime.date.today().isoformat(),
    }


def has_fast_bf16(flags: Sequence[str]) -> bool:
    """Whether a processor of these `flags` multiplies bfloat16, rather than converts it first."""
    return any(flag in flags for flag in ("amx_bf16", "avx512_bf16", "bf16"))


def describe(found: dict[str, Any]) -> str:
    """:func:`machine` as a line."""
    flags = " ".join(found["flags"]) or "no flags known"
    cores = f"{found['cores']} core" + ("s" if found["cores"] != 1 else "")
    return f"{found['cpu']}, {cores} ({flags}); torch {found['torch']}; {found['date']}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of aligned columns: the first to the left, as it names the row, the others right."""
    lines = [list(headings), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def save(path: Path, part: str, found: dict[str, Any]) -> None:
    """Put what `part` found into the JSON file at `path`, beside what other parts found."""
    everything: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        everything = json.loads(path.read_text())
    everything[part] = {"machine": machine(), **found}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(everything, indent=2) + "\n")


def progress(line: str) -> None:
    """Say what is being done now, beside the report."""
    print(line, file=sys.stderr, flush=True)
