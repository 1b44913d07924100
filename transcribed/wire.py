"""The messages of ``transcribed.v1``: JSON text frames to and from frozen structures.

docs/protocol.rst says what they mean. :func:`parse` turns a frame into a request or raises
:exc:`Unparsable`; :func:`render` makes a frame of an answer.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from transcribed.errors import BadMessage
from transcribed.recognition import Word

SUBPROTOCOL = "transcribed.v1"
MAX_TEXT = 64 * 1024
"""The most bytes that a text frame from a client may have."""
MIN_RATE, MAX_RATE = 8000, 48000
MAX_CHANNELS = 8
SAMPLE_BYTES = 2
MAX_TTL = 366 * 86400.0
"""The longest lifetime, in seconds, that a client may ask for."""

# \A and \Z, as $ would let a newline at the end pass.
_PARTY = r"\A[^\x00-\x1f\x7f-\x9f]{1,128}\Z"
Party = Annotated[str, Meta(max_length=128, pattern=_PARTY)]
TranscriptId = Annotated[str, Meta(max_length=128, pattern=r"\A[A-Za-z0-9._~:@-]+\Z")]
Ref = Annotated[str, Meta(max_length=128)]


def is_party(name: str) -> bool:
    """Whether a party can have that name."""
    return re.match(_PARTY, name) is not None


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What a client may send; `ref` comes back in the answer."""

    ref: Ref | None = None


class Hello(Request, frozen=True, tag="hello"):
    """Who the client is."""

    party: Party | None = None
    token: str | None = None


class Submit(Request, frozen=True, tag="submit"):
    """Opens an upload; `ttl` in seconds."""

    id: TranscriptId
    receiver: Party | None = None
    rate: Annotated[int, Meta(ge=MIN_RATE, le=MAX_RATE)] = 16000
    channels: Annotated[int, Meta(ge=1, le=MAX_CHANNELS)] = 1
    ttl: Annotated[float, Meta(gt=0, le=MAX_TTL)] | None = None
    language: Annotated[str, Meta(min_length=1, max_length=32)] | None = None


class End(Request, frozen=True, tag="end"):
    """Closes the upload; `sha256` is the hex digest of all its audio bytes."""

    id: TranscriptId
    sha256: str | None = None


class Addressed(Request, frozen=True):
    """A request about a transcript; without `owner`, about one's own."""

    id: TranscriptId
    owner: Party | None = None


class Fetch(Addressed, frozen=True, tag="fetch"):
    """Asks for the text, by default waiting until there is one."""

    wait: bool = True


class Ack(Addressed, frozen=True, tag="ack"):
    """Says that the party has the text."""


class AskStatus(Addressed, frozen=True, tag="status"):
    """Asks how a transcript is."""


class Cancel(Addressed, frozen=True, tag="cancel"):
    """Deletes the owner's transcript, in any state."""


class AskList(Request, frozen=True, tag="list"):
    """Asks for all transcripts that the party has not acked."""


class Subscribe(Request, frozen=True, tag="subscribe"):
    """Asks to be told of changes from now on."""


Question = Fetch | Ack | AskStatus | Cancel | AskList | Subscribe
AnyRequest = Hello | Submit | End | Question


class Unparsable(Exception):
    """A frame that is no request.

    :ivar error: what is wrong with it.
    :ivar ref: its `ref`, where it has a good one.
    :ivar type: what it says it is, where it says so.
    :ivar id: its `id`, where it has a good one.
    """

    def __init__(
        self, error: BadMessage, ref: str | None, type: str | None = None, id: str | None = None
    ) -> None:
        super().__init__(error.reason)
        self.error = error
        self.ref = ref
        self.type = type
        self.id = id


_decoder: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)


def parse(frame: bytes) -> AnyRequest:
    """The request in a text frame; raises :exc:`Unparsable`."""
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Unparsable(BadMessage(_reason(e)), *_salvage(frame)) from e


def _reason(error: Exception) -> str:
    if not isinstance(error, msgspec.ValidationError):
        return "not a JSON object"
    reason = str(error)
    # msgspec's reasons name the field and what is allowed there; the value only in this case.
    if reason.startswith("Invalid value"):
        return "unknown type"
    # Its reason for a pattern is the pattern: nothing for a person.
    return re.sub(r"Expected `str` matching regex '.*'", "Characters that are not allowed", reason)


def _salvage(frame: bytes) -> tuple[str | None, str | None, str | None]:
    """The `ref`, `type` and `id` of what is no request, as far as they are good."""
    try:
        # json reads on where msgspec stops, e.g. at half a surrogate pair in another field.
        message = json.loads(frame.decode())
    except (ValueError, RecursionError):
        return None, None, None
    if not isinstance(message, dict):
        return None, None, None
    return (
        _good(message.get("ref"), Ref),
        _good(message.get("type"), str),
        _good(message.get("id"), TranscriptId),
    )


def _good(value: object, kind: Any) -> str | None:
    try:
        text: str = msgspec.convert(value, kind)
        text.encode()
    except (msgspec.ValidationError, UnicodeEncodeError):
        return None
    return text


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """What the daemon sends; fields that may be left out have a default."""

    ref: str | None = None


class Limits(msgspec.Struct, frozen=True):
    """The most audio that one recording may have."""

    seconds: float
    bytes: int


class Given(msgspec.Struct, frozen=True):
    """Which sides have acked. With one side only, both say the same."""

    owner: bool
    receiver: bool


class Welcome(Answer, frozen=True, tag="welcome"):
    """Answers ``hello``; `warning` is there when the model is not the one to be expected."""

    party: str
    server: str
    model: str
    limits: Limits
    warning: str | None = None


class Accepted(Answer, frozen=True, tag="accepted"):
    """The promise that the recording is kept."""

    id: str
    owner: str
    receiver: str
    state: str
    seconds: float
    expires: str


class Delivered(Answer, frozen=True, tag="transcript"):
    """The text."""

    id: str
    owner: str
    receiver: str
    text: str
    words: list[Word]
    seconds: float
    language: str
    model: str
    given: Given
    expires: str


class Acked(Answer, frozen=True, tag="acked"):
    """Answers ``ack``; `purged` says that nothing is left of audio and text."""

    id: str
    owner: str
    given: Given
    purged: bool


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A transcript as ``status`` and ``listing`` show it."""

    id: str
    owner: str
    receiver: str
    state: str
    progress: float
    seconds: float
    given: Given
    expires: str


class Status(Answer, frozen=True, tag="status"):
    """Answers ``status``, and a ``fetch`` that would not wait."""

    id: str
    owner: str
    receiver: str
    state: str
    progress: float
    seconds: float
    given: Given
    expires: str


class Listing(Answer, frozen=True, tag="listing"):
    """Answers ``list``."""

    transcripts: list[Listed]


class Subscribed(Answer, frozen=True, tag="subscribed"):
    """Answers ``subscribe``."""


class Event(Answer, frozen=True, tag="event"):
    """A change of a transcript of a subscribed party."""

    id: str
    owner: str
    receiver: str
    state: str
    progress: float


class Cancelled(Answer, frozen=True, tag="cancelled"):
    """Answers ``cancel``."""

    id: str
    owner: str


class Error(Answer, frozen=True, tag="error"):
    """A refusal."""

    code: str
    reason: str
    id: str | None = None
    owner: str | None = None
    retry_after: float | None = None


def render(answer: Answer) -> bytes:
    """`answer` as the payload of a text frame."""
    return msgspec.json.encode(answer)


def with_ref(answer: Answer, ref: str | None) -> Answer:
    """`answer`, carrying the `ref` of the request it answers."""
    fields: dict[str, Any] = {"ref": ref}
    return msgspec.structs.replace(answer, **fields) if ref is not None else answer


def timestamp(when: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, to the millisecond."""
    text = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
