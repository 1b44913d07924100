"""From what the desk knows to what the wire says."""

from __future__ import annotations

from typing import TypedDict

from transcribed import wire
from transcribed.desk import Delivery, View
from transcribed.errors import Busy, TranscribedError
from transcribed.transcript import ENDED, Transcript


class _Name(TypedDict):
    id: str
    owner: str
    receiver: str


def _name(transcript: Transcript) -> _Name:
    return {"id": transcript.id, "owner": transcript.owner, "receiver": transcript.receiver}


def _given(transcript: Transcript) -> wire.Given:
    return wire.Given(transcript.given.owner, transcript.given.receiver)


def error(refusal: TranscribedError, id: str | None = None, owner: str | None = None) -> wire.Error:
    """A refusal, of a request about the transcript `id` of `owner` where it was about one."""
    return wire.Error(
        code=refusal.code,
        reason=refusal.reason,
        id=id,
        owner=owner,
        retry_after=refusal.retry_after if isinstance(refusal, Busy) else None,
    )


def accepted(transcript: Transcript) -> wire.Accepted:
    """The promise that a recording is kept."""
    return wire.Accepted(
        **_name(transcript),
        state=transcript.state.value,
        seconds=transcript.seconds,
        expires=wire.timestamp(transcript.expires),
    )


def delivered(delivery: Delivery) -> wire.Delivered:
    """A transcript with its text."""
    transcript = delivery.transcript
    return wire.Delivered(
        **_name(transcript),
        text=delivery.transcription.text,
        words=delivery.transcription.words,
        seconds=transcript.seconds,
        language=transcript.language,
        model=transcript.model or "",
        given=_given(transcript),
        expires=wire.timestamp(transcript.expires),
    )


def acked(transcript: Transcript) -> wire.Acked:
    """What an ``ack`` has led to."""
    return wire.Acked(
        id=transcript.id,
        owner=transcript.owner,
        given=_given(transcript),
        purged=transcript.state in ENDED,
    )


class _Standing(_Name):
    state: str
    progress: float
    seconds: float
    given: wire.Given
    expires: str


def _standing(view: View) -> _Standing:
    transcript = view.transcript
    return {
        **_name(transcript),
        "state": transcript.state.value,
        "progress": view.progress,
        "seconds": transcript.seconds,
        "given": _given(transcript),
        "expires": wire.timestamp(transcript.expires),
    }


def status(view: View) -> wire.Status:
    """How a transcript stands."""
    return wire.Status(**_standing(view))


def listed(view: View) -> wire.Listed:
    """How one of several stands."""
    return wire.Listed(**_standing(view))


def event(transcript: Transcript, progress: float) -> wire.Event:
    """A change."""
    return wire.Event(**_name(transcript), state=transcript.state.value, progress=progress)
