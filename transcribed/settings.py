"""What an operator can set: each option's key, what it means, its default, and what is allowed.

The command line (:mod:`transcribed.tap`) and the configuration file are two ways to the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transcribed.endpoints import Endpoint, WrongEndpoint
from transcribed.recognition import DTYPES
from transcribed.wire import MAX_TTL


class WrongValue(ValueError):
    """A value that an option cannot have; its text says what is allowed."""


def _whole(text: object, least: int, most: int) -> int:
    try:
        if isinstance(text, bool | float):
            raise ValueError
        number = int(str(text))
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise WrongValue(f"a whole number from {least} to {most}")
    return number


def _auto_or_whole(text: object) -> int | None:
    try:
        return None if text == "auto" else _whole(text, 1, 1024)
    except WrongValue as e:
        raise WrongValue(f"auto, or {e}") from None


def _seconds(most: float) -> Callable[[object], float]:
    def check(text: object) -> float:
        try:
            if isinstance(text, bool):
                raise ValueError
            number = float(str(text))
        except ValueError:
            number = 0.0
        if not 0 < number <= most:
            raise WrongValue(f"a number of seconds over 0, at most {most:.0f}")
        return number

    return check


def _ping(text: object) -> float:
    # Autobahn's timers ring up to a second early: no client could answer in time.
    wanted = "a number of seconds from 2 to 3600"
    try:
        seconds = _seconds(3600)(text)
    except WrongValue:
        raise WrongValue(wanted) from None
    if seconds < 2:
        raise WrongValue(wanted)
    return seconds


def _count(most: int) -> Callable[[object], int]:
    return lambda text: _whole(text, 1, most)


def _bytes(text: object) -> int:
    return _whole(text, 0, 2**60)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise WrongValue("true or false")
    return value


def _string(text: object) -> str:
    if not isinstance(text, str) or not text:
        raise WrongValue("a text that is not empty")
    return text


def _language(text: object) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", text):
        raise WrongValue("a language as the model names it, such as sv")
    return text


def _model(text: object) -> str:
    name = _string(text)
    if name.startswith((".", "/", "~")):
        path = _path(name)
        if not path.is_dir():
            raise WrongValue(
                "auto, embedded, a name on the Hub such as KBLab/wav2vec2-large-voxrex-swedish, or "
                "a directory that is there"
            )
        return str(path)
    return name


def _dtype(text: object) -> str:
    if text not in DTYPES:
        raise WrongValue("one of " + ", ".join(DTYPES))
    return str(text)


def _path(text: object) -> Path:
    path = _string(text)
    try:
        if "\0" in path:
            raise ValueError
        return Path(path).expanduser().absolute()
    except (ValueError, RuntimeError):
        raise WrongValue("a path, after ~ no other than a user of this machine") from None


def _endpoints(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Iterable):
        raise WrongValue("an endpoint, or a list of them")
    endpoints = []
    for text in texts:
        try:
            endpoints.append(Endpoint.parse(_string(text)).text)
        except WrongEndpoint as e:
            raise WrongValue(str(e)) from None
    if not endpoints:
        raise WrongValue("at least one endpoint")
    return tuple(endpoints)


def _texts(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise WrongValue("a text, or a list of them")
    return tuple(map(_string, texts))


def _origins(value: object) -> tuple[str, ...]:
    origins = _texts(value)
    for origin in origins:
        if not re.fullmatch(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?", origin):
            raise WrongValue("as browsers say it: https://HOST, or https://HOST:PORT")
    return origins


@dataclass(frozen=True)
class Option:
    """One thing to set: its key, its default as written, what it means, how a value is checked."""

    key: str
    default: Any
    help: str
    check: Callable[[object], Any]


OPTIONS = (
    Option(
        "listen",
        ["tcp:6000:interface=127.0.0.1"],
        "Where to listen, an endpoint string; may be repeated.",
        _endpoints,
    ),
    Option("state", "var", "The directory for what must survive a restart.", _path),
    Option("model", "auto", "A name on the Hub, a directory, embedded, or auto.", _model),
    Option("dtype", "auto", "What CTC models compute in: " + ", ".join(DTYPES) + ".", _dtype),
    Option("workers", "auto", "How many processes transcribe: auto, or a number.", _auto_or_whole),
    Option("threads", "auto", "Threads of each worker: auto, or a number.", _auto_or_whole),
    Option("ttl", 86400, "Seconds that a transcript is kept.", _seconds(MAX_TTL)),
    Option("language", "sv", "The language, where a client does not say.", _language),
    Option("auth", [], "Whose tokens are good: tokens:FILE, jwt:FILE; may be repeated.", _texts),
    Option("insecure", False, "Take tokens on TCP without TLS from other machines, too.", _flag),
    Option("allow-origin", [], "A web site whose pages may connect; may be repeated.", _origins),
    Option("max-connections", 10_000, "The most connections.", _count(1_000_000)),
    Option("max-connections-per-address", 1000, "Of those, from one address.", _count(1_000_000)),
    Option("handshake-seconds", 10, "How long a handshake may take, TLS included.", _seconds(600)),
    Option("hello-seconds", 10, "How long a client may wait to say hello.", _seconds(600)),
    Option("ping-seconds", 30, "How often clients are pinged, and may take to answer.", _ping),
    Option("upload-idle-seconds", 60, "How long an upload may bring nothing.", _seconds(86400)),
    Option("max-seconds", 7200, "The longest recording, in seconds.", _seconds(86400)),
    Option("max-bytes", 1_382_400_000, "The most bytes of one recording.", _count(2**50)),
    Option("max-uploads", 2000, "The most recordings that come in at once.", _count(1_000_000)),
    Option("max-queue", 10_000, "The most recordings waiting or in work.", _count(1_000_000)),
    Option("max-queue-seconds", 360_000, "The most audio waiting or in work.", _seconds(10**9)),
    Option("max-queue-seconds-per-owner", 86_400, "Of that, one owner's.", _seconds(10**9)),
    Option("disk-quota", 50 * 2**30, "The most bytes of audio and text.", _count(2**60)),
    Option("min-free-disk", 2**28, "Bytes of the disk that stay free.", _bytes),
    Option("max-unsent", 2**24, "The most bytes that wait for a slow client.", _count(2**40)),
    Option("max-bad-messages", 10, "So many in a row end a connection.", _count(1_000_000)),
)


@dataclass(frozen=True)
class Settings:
    """All that is set. See :data:`OPTIONS`; None stands for ``auto``."""

    listen: tuple[str, ...]
    state: Path
    model: str
    dtype: str
    workers: int | None
    threads: int | None
    ttl: float
    language: str
    auth: tuple[str, ...]
    insecure: bool
    allow_origin: tuple[str, ...]
    max_connections: int
    max_connections_per_address: int
    handshake_seconds: float
    hello_seconds: float
    ping_seconds: float
    upload_idle_seconds: float
    max_seconds: float
    max_bytes: int
    max_uploads: int
    max_queue: int
    max_queue_seconds: float
    max_queue_seconds_per_owner: float
    disk_quota: int
    min_free_disk: int
    max_unsent: int
    max_bad_messages: int

    @classmethod
    def of(cls, **given: Any) -> Settings:
        """These, and the defaults of all others."""
        defaults = {o.key.replace("-", "_"): o.check(o.default) for o in OPTIONS}
        return cls(**(defaults | given))

    def contradiction(self) -> str | None:
        """What does not go together, as a sentence; None where all does."""
        for text in self.listen:
            endpoint = Endpoint.parse(text)
            objection = endpoint.objection(endpoint.host, bool(self.auth), self.insecure)
            if objection is not None:
                return f"cannot listen on {text}: {objection}"
        if not self.max_seconds <= self.max_queue_seconds_per_owner <= self.max_queue_seconds:
            return (
                "max-seconds cannot be more than max-queue-seconds-per-owner, nor that more than "
                "max-queue-seconds: the longest recording would never be taken"
            )
        return None
