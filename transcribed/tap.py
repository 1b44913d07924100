"""``twistd transcribed``: its options, from the command line and from a file, and its service."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from transcribed.settings import OPTIONS, Settings, WrongValue

REPEATED = ("listen", "auth", "allow-origin")
"""Options that may be given several times; in the file they are lists."""


class Options(usage.Options):
    """The command line. What it does not say is taken from the file of ``--config``."""

    synopsis = "[options]"
    longdesc = "Takes recordings over websockets, and gives their text to both their sides."
    _flags = [option.key for option in OPTIONS if option.default is False]
    optFlags = [[option.key, None, option.help] for option in OPTIONS if option.default is False]
    optParameters = [
        ["config", "c", None, "A TOML file with the same keys as these options."],
        *(
            [option.key, None, None, f"{option.help} [default: {option.default}]"]
            for option in OPTIONS
            if option.key not in REPEATED and option.default is not False
        ),
    ]

    def __init__(self) -> None:
        usage.Options.__init__(self)
        self._repeated: dict[str, list[str]] = {}
        self.settings: Settings

    def opt_listen(self, endpoint: str) -> None:
        """Where to listen, an endpoint string; may be repeated.
        [default: tcp:6000:interface=127.0.0.1]"""
        self._repeated.setdefault("listen", []).append(endpoint)

    def opt_auth(self, checker: str) -> None:
        """Whose tokens are good: tokens:FILE or jwt:FILE; may be repeated."""
        self._repeated.setdefault("auth", []).append(checker)

    def opt_allow_origin(self, origin: str) -> None:
        """A web site whose pages may connect, such as https://example.org; may be repeated."""
        self._repeated.setdefault("allow-origin", []).append(origin)

    def postOptions(self) -> None:
        """Put flags, file and defaults together and check every value."""
        given = {key: value for key, value in self.items() if value is not None}
        for flag in self._flags:
            # What is not given here may be in the file.
            if given.pop(flag):
                given[flag] = True
        given |= self._repeated
        file = given.pop("config", None)
        from_file = _read(file) if file is not None else {}
        values: dict[str, Any] = {}
        for option in OPTIONS:
            if option.key in given:
                value, where = given[option.key], f"--{option.key}"
            elif option.key in from_file:
                value, where = from_file[option.key], f"{option.key} in {file}"
            else:
                value, where = option.default, f"--{option.key}"
            try:
                values[option.key.replace("-", "_")] = option.check(value)
            except WrongValue as e:
                raise usage.UsageError(
                    f"{where} cannot be {_show(value)}: it must be {e}"
                ) from None
        self.settings = Settings(**values)
        contradiction = self.settings.contradiction()
        if contradiction is not None:
            raise usage.UsageError(contradiction)


def _show(value: object) -> str:
    text = ", ".join(map(_show, value)) if isinstance(value, list) else str(value)
    return text or "empty"


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as e:
        raise usage.UsageError(f"--config cannot be {_show(path)}: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise usage.UsageError(f"--config cannot be {path}: it must be TOML: {e}") from None
    keys = [option.key for option in OPTIONS]
    for key in values:
        if key not in keys:
            raise usage.UsageError(
                f"{path} cannot have the key {key}: it must be one of {', '.join(keys)}"
            )
    return values


def makeService(options: Options) -> IService:
    """The daemon as a service; ends the program with one line where it cannot be one."""
    # Only now: the reactor is chosen after the options are parsed.
    from twisted.internet import reactor as any_reactor

    from transcribed.service import make_daemon

    reactor: Any = any_reactor
    if not reactor.getDelayedCalls():
        # Twisted's timers go by the time of day, and would all ring, or none, when that is set.
        reactor.seconds = time.monotonic
    # twistd forks unless it is told not to; twist, whose options have no such key, never does.
    twistd: Mapping[str, Any] = options.parent or {}
    in_foreground = bool(twistd.get("nodaemon", True))
    return make_daemon(options.settings, reactor, in_foreground)
