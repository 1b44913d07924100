"""What can go wrong: one exception per condition, each with its code on the wire.

The codes and when they are sent are the table "Errors" of docs/protocol.rst.
"""

from __future__ import annotations


class TranscribedError(Exception):
    """A refusal that a client is told of.

    :ivar code: the wire code.
    :ivar reason: a sentence for a person; never text, audio or credentials.
    """

    code = "internal"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BadMessage(TranscribedError):
    """Not a message of the protocol, or one that does not belong here."""

    code = "bad-message"


class Unauthenticated(TranscribedError):
    """No credentials, or wrong ones."""

    code = "unauthenticated"


class UnknownId(TranscribedError):
    """No such transcript, or one of somebody else: the same words for both."""

    code = "unknown-id"

    def __init__(self) -> None:
        super().__init__("there is no such transcript")


class IdTaken(TranscribedError):
    """The owner has used the id for another recording, or for another receiver."""

    code = "id-taken"

    def __init__(self) -> None:
        super().__init__("the id is taken by another recording or receiver")


class Gone(TranscribedError):
    """The transcript was purged, expired or cancelled."""

    code = "gone"


class BadAudio(TranscribedError):
    """The audio is empty, not whole, or not what its digest says."""

    code = "bad-audio"


class TooLong(TranscribedError):
    """More audio than the limits in ``welcome`` allow."""

    code = "too-long"


class Busy(TranscribedError):
    """The queue or the disk is full.

    :ivar retry_after: seconds after which another try makes sense.
    """

    code = "busy"

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class NotFetched(TranscribedError):
    """An ``ack`` from a side that was never sent the transcript."""

    code = "not-fetched"

    def __init__(self) -> None:
        super().__init__("the transcript was not fetched yet")


class Failed(TranscribedError):
    """The transcription failed for good."""

    code = "failed"


class Unsupported(TranscribedError):
    """A language or an option that the model does not have."""

    code = "unsupported"


class ModelUnavailable(Exception):
    """The model cannot be had or loaded: not found, out of reach, or of an unknown kind."""


class RecognitionFailed(Exception):
    """A worker could not transcribe a window: it died, hung, or answered rubbish."""


class CannotStart(Exception):
    """The daemon cannot do what it is told to; its text says why."""


class StateInUse(Exception):
    """Another daemon holds the state directory."""
