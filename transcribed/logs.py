"""The log as JSON, one event a line, for ``twistd -n --logger transcribed.logs.json transcribed``.

Each line has the keys ``time`` (RFC 3339, UTC), ``level``, ``namespace`` and ``message``, and
``traceback`` where something has failed; beside them what is plain in the event: ids, counts.
"""

from __future__ import annotations

import json as encoder
import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from string import Formatter
from typing import IO, Any

from twisted.logger import ILogObserver, LogEvent, formatEvent
from zope.interface import implementer

# What Twisted puts into events that come by its older interface, beside keys that begin with log_.
_OLD = {"isError", "system", "time", "message", "format", "failure", "why", "printed"}


def json() -> ILogObserver:
    """What twistd's ``--logger`` asks for: an observer that writes to the standard output."""
    # The present one: soon twistd puts one in its place that writes into the log.
    return JSONObserver(sys.stdout)


@implementer(ILogObserver)
class JSONObserver:
    """Writes each event to `file`, at once. Never raises: nothing may fail because of its log."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __call__(self, event: LogEvent) -> None:
        """Write an event."""
        try:
            line = encoder.dumps(as_plain(event))
        except Exception as e:
            line = encoder.dumps({"message": f"an event could not be logged: {type(e).__name__}"})
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except (OSError, ValueError):
            # Whoever read it is gone, or the disk is full; there is nobody to be told.
            pass


def as_plain(event: LogEvent) -> dict[str, Any]:
    """What of an event goes into its line; see above."""
    plain: dict[str, Any] = {
        "time": _time(event.get("log_time")),
        "level": getattr(event.get("log_level"), "name", "info"),
        "namespace": str(event.get("log_namespace", "")),
        "message": formatEvent(event),
    }
    for name, value in _fields(event):
        if _is_plain(value):
            plain.setdefault(name, value)
    failure = event.get("log_failure", event.get("failure"))
    if failure is not None:
        plain["traceback"] = failure.getTraceback()
    return plain


def _fields(event: LogEvent) -> Iterator[tuple[str, object]]:
    """Names and values: what the format takes out of objects, then the event's own.

    ``{t.owner}`` is found as ``owner``.
    """
    formatter = Formatter()
    # What is wrong with a format is said in the message.
    with suppress(Exception):
        for _, name, _, _ in formatter.parse(event.get("log_format") or ""):
            if name and "." in name:
                yield name.rsplit(".", 1)[1], formatter.get_field(name, (), event)[0]
    for key, value in event.items():
        if not key.startswith("log_") and key not in _OLD:
            yield key, value


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        # JSON has no other ones.
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def _time(seconds: object) -> str:
    when = datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, float) else datetime.now(UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
