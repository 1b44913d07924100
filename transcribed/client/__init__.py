"""The client library: :class:`Client`, what it answers with, and what it raises.

::

    client = Client("ws://127.0.0.1:6000/ws", "anna", reactor=reactor)
    await client.submit("m1", audio_bytes, receiver="bjorn")
    transcript = await client.fetch("m1")
    print(transcript.text)
    await client.ack("m1")
    await client.close()

Refusals of the daemon are raised as the exceptions of :mod:`transcribed.errors`.
"""

from transcribed.client._client import Client
from transcribed.client._connection import Unreachable
from transcribed.client._conversation import Subscription
from transcribed.client._source import FRAME, Audio
from transcribed.wire import (
    Accepted,
    Acked,
    Cancelled,
    Event,
    Given,
    Limits,
    Listed,
    Status,
    Welcome,
)
from transcribed.wire import Delivered as Transcript

__all__ = [
    "FRAME",
    "Accepted",
    "Acked",
    "Audio",
    "Cancelled",
    "Client",
    "Event",
    "Given",
    "Limits",
    "Listed",
    "Status",
    "Subscription",
    "Transcript",
    "Unreachable",
    "Welcome",
]
