"""``python -m benchmarks [PART [OPTION ...]]``: one part, or those that compare, in order.

The figures of all parts go into one file, ``var/benchmarks.json``, unless ``--json`` names another.
"""

from __future__ import annotations

import subprocess
import sys

PARTS = ("engines", "daemon")
# These compare with nothing, and take long.
MORE = ("connections", "soak")
FILE = "var/benchmarks.json"


def main() -> None:
    """See the top of this file."""
    parts, options = sys.argv[1:2], sys.argv[2:]
    known = PARTS + MORE
    if not set(parts) <= set(known):
        raise SystemExit(f"usage: python -m benchmarks [{' | '.join(known)} [OPTION ...]]")
    if "--json" not in options:
        options = ["--json", FILE, *options]
    # Processes of their own: what one part has loaded must not weigh on the next.
    codes = [
        subprocess.run([sys.executable, "-m", f"benchmarks.{part}", *options]).returncode
        for part in parts or PARTS
    ]
    raise SystemExit(max(map(abs, codes)))


if __name__ == "__main__":
    main()
