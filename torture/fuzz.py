"""A hundred thousand random and mutated messages, and frames, on a daemon's core and its port.

What is drawn and what is checked is in tests/fuzz.py and tests/fuzzframes.py. It all happens in
memory, in a process of its own, as the clocks of websockets there are not those of the real ones.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from tests.fuzz import play
from tests.fuzzframes import VISITS, entertain
from tests.fuzzmessages import episodes

ROUND = 100
"""So many houses are built, and left again, between two looks at the memory."""
FRAMES_EVERY = 3
"""In one of so many rounds the port is driven, in the others the core."""
MOST_WRONG = 10
MAX_GROWTH = 64 * 2**20
"""The most bytes that the process may grow by after its first rounds."""


def run(messages: int, seed: int) -> tuple[int, list[str]]:
    """Drive at least so many messages; answers with how many it were, and what went wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "torture.fuzz", str(messages), str(seed)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        sent, wrong = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return 0, [f"the driver ended with {done.returncode}: {done.stderr[-2000:]}"]
    return sent, wrong


@implementer(ILogObserver)
class _Errors:
    """Keeps whatever is logged as an error."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        """Look at one event."""
        if "log_failure" in event or event.get("log_level") in (LogLevel.error, LogLevel.critical):
            self.lines.append(f"logged: {event.get('log_failure') or event.get('log_format')}")


class _Driver:
    """Rounds of houses.

    :ivar sent: how many messages were driven.
    :ivar wrong: what went wrong.
    :ivar errors: what was logged.
    """

    def __init__(self, directory: Path, number: int) -> None:
        self.sent = 0
        self.wrong: list[str] = []
        self._directory = directory
        self._number = number
        self.errors = _Errors()
        self._alive: list[Callable[[], int]] = []
        self._size: int | None = None

    def drive(self, messages: int) -> None:
        """Go on until so many are driven, or too much went wrong."""
        rounds = 0
        while self.sent < messages and len(self.wrong) < MOST_WRONG:
            if rounds % FRAMES_EVERY == FRAMES_EVERY - 1:
                self._round(st.lists(VISITS, min_size=1, max_size=8), entertain)
            else:
                self._round(episodes(20), play)
            rounds += 1
            self._look_at_memory(rounds)

    def _round(self, strategy: st.SearchStrategy[Any], drive: Callable[[Path, Any], Any]) -> None:
        self._number += 1

        @seed(self._number)
        @settings(
            max_examples=ROUND,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def examples(drawn: Any) -> None:
            done = drive(self._directory, drawn)
            self.sent += done.messages
            self._alive.append(done.gone())

        try:
            examples()
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt | SystemExit):
                raise
            self.wrong.append(f"round {self._number}: {type(e).__name__}: {str(e)[:500]}")
        gc.collect()
        left = sum(alive() for alive in self._alive)
        if left:
            self.wrong.append(f"round {self._number}: {left} connections are still in memory")
        self._alive.clear()
        self.wrong += self.errors.lines
        self.errors.lines.clear()

    def _look_at_memory(self, rounds: int) -> None:
        size = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        if rounds == 2 * FRAMES_EVERY:
            self._size = size
        elif self._size is not None and size > self._size + MAX_GROWTH:
            self.wrong.append(f"it has grown from {self._size} to {size} bytes")
            self._size = size


def main(messages: int, number: int) -> None:
    """Drive, and print how many messages it were and what went wrong, as the last line."""
    with tempfile.TemporaryDirectory(prefix="torture-fuzz-") as folder:
        driver = _Driver(Path(folder) / "spool", number)
        globalLogPublisher.addObserver(driver.errors)
        driver.drive(messages)
    print(json.dumps([driver.sent, driver.wrong]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
