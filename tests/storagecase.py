"""Transcripts for the tests of the store."""

from __future__ import annotations

from typing import Any, TypeVar

from transcribed.transcript import State, Transcript

T = TypeVar("T")

CREATED = 1000.0
TTL = 100.0
EXPIRES = CREATED + TTL
NOW = CREATED + 10


def transcript(key: str = "k1", **fields: Any) -> Transcript:
    """Anna's, for Björn, just accepted, where `fields` say nothing else."""
    values: dict[str, Any] = {
        "owner": "anna",
        "id": "m1",
        "receiver": "bjorn",
        "rate": 16000,
        "channels": 1,
        "frames": 32000,
        "sha256": "ab",
        "language": "sv",
        "state": State.QUEUED,
        "created": CREATED,
        "expires": EXPIRES,
    }
    return Transcript(key=key, **(values | fields))
