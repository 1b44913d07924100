"""Frames from the daemon to the structures of :mod:`transcribed.wire`, errors to exceptions."""

from __future__ import annotations

import msgspec

from transcribed import errors
from transcribed.wire import (
    Accepted,
    Acked,
    Cancelled,
    Delivered,
    Error,
    Event,
    Listing,
    Status,
    Subscribed,
    Welcome,
)

AnyAnswer = (
    Welcome
    | Accepted
    | Delivered
    | Acked
    | Status
    | Listing
    | Subscribed
    | Event
    | Cancelled
    | Error
)

_decoder: msgspec.json.Decoder[AnyAnswer] = msgspec.json.Decoder(AnyAnswer)

_BY_CODE: dict[str, type[errors.TranscribedError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.TranscribedError)
}

_RETRY_AFTER = 1.0


class _Ref(msgspec.Struct):
    ref: str | None = None


def parse(frame: bytes) -> AnyAnswer | None:
    """The answer in a text frame; None for one that this client does not know."""
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def salvage_ref(frame: bytes) -> str | None:
    """The ``ref`` of a frame that :func:`parse` could not read, where it has one."""
    try:
        return msgspec.json.decode(frame, type=_Ref).ref
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def exception(error: Error) -> errors.TranscribedError:
    """The exception for a refusal: of the class with its code, saying what the daemon said.

    A code that is not known makes a plain :exc:`~transcribed.errors.TranscribedError` that carries
    it.
    """
    kind = _BY_CODE.get(error.code, errors.TranscribedError)
    # Some of the classes bring their own words; what counts here are the daemon's.
    made = kind.__new__(kind)
    errors.TranscribedError.__init__(made, error.reason)
    made.code = error.code
    if isinstance(made, errors.Busy):
        made.retry_after = _RETRY_AFTER if error.retry_after is None else error.retry_after
    return made
