"""The client that programs use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.internet.defer import Deferred, fail

from transcribed.client._connection import Address, dial
from transcribed.client._conversation import Conversation, Subscription, message
from transcribed.client._source import Audio, Source
from transcribed.wire import (
    Accepted,
    Acked,
    Cancelled,
    Delivered,
    Event,
    Listed,
    Listing,
    Status,
    Welcome,
)


class Client:
    """A party's conversation with a daemon, over as many connections as it takes.

    It connects when it has something to ask. When the connection breaks, what is unanswered is
    asked again on the next one: that is safe, since all requests but ``submit`` may be repeated and
    a submit of the same id and audio is the same submit. Between attempts it waits, longer each
    time.

    Requests are sent in the order of the calls. During an upload, later requests (the ``cancel`` of
    that very upload apart) wait until it is answered; those of a second client need not.

    The Deferreds may be cancelled. Cancelling a submit whose audio is on its way drops the
    connection, so that the daemon keeps nothing of it.

    :param url: ``ws://HOST:PORT/ws``, ``wss://…`` or ``ws+unix:/SOCKET[:/PATH]``.
    :param party: who this is.
    :param token: the party's token; sent in the ``hello``.
    :param reactor: also the clock of all waits but Autobahn's own.
    :param cafile: for ``wss``: a PEM file of what to trust instead of the system's certificates.
    :param attempts: once there was a connection: how often in a row connecting may fail, and on how
        many connections a request is tried.
    :param first_attempts: how often connecting may fail before there was any.
    :param timeout: seconds for each step of connecting.
    :param policy: seconds to wait after so many failures in a row.
    :raises ValueError: for a `url` that is none, or a `cafile` without certificates.
    :raises OSError: for a `cafile` that cannot be read.
    """

    def __init__(
        self,
        url: str,
        party: str,
        token: str | None = None,
        *,
        reactor: Any = None,
        cafile: str | None = None,
        attempts: int = 10,
        first_attempts: int = 1,
        timeout: float = 10.0,
        policy: Callable[[int], float] | None = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        address = Address.parse(url)
        endpoint = address.endpoint(reactor, cafile, timeout)
        hello: dict[str, Any] = {"type": "hello", "party": party, "ref": "hello"}
        if token is not None:
            hello["token"] = token
        self._conversation = Conversation(
            lambda: dial(reactor, address, endpoint, hello, timeout),
            reactor,
            first_attempts,
            attempts,
            policy or backoffPolicy(0.5, 30.0),
        )

    def connect(self) -> Deferred[Welcome]:
        """Connects if there is no connection, and gives what the daemon said in its ``welcome``.

        :raises Unreachable: it cannot be reached.
        :raises transcribed.errors.Unauthenticated: it does not accept the party or its token.
        """
        return self._conversation.connect()

    def submit(
        self,
        id: str,
        audio: Audio,
        receiver: str | None = None,
        rate: int = 16000,
        channels: int = 1,
        ttl: float | None = None,
        language: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Deferred[Accepted]:
        """Uploads a recording; fires once the daemon has promised to keep it.

        :param audio: interleaved s16le samples. What can be read but once (an iterator, a pipe)
            cannot be sent again should the connection break.
        :param rate: frames a second, Hz.
        :param ttl: seconds after which it is to be deleted, fetched or not.
        :param progress: called with how many bytes were handed to the connection so far; a repeat
            begins at 0 again.
        :raises TypeError: `audio` is none.
        :raises Unreachable: among others, when the connection broke and `audio` cannot be read
            again. Whether the recording was accepted is then to be asked with :meth:`status`.
        :raises transcribed.errors.TranscribedError: it was refused.
        :raises Exception: whatever reading `audio` raised.
        """
        try:
            source = Source(audio)
        except (TypeError, OSError) as e:
            return fail(e)
        asked = message("submit", id=id, receiver=receiver, rate=rate, channels=channels)
        asked |= message("submit", ttl=ttl, language=language)
        return self._conversation.ask(asked, Accepted, source=source, progress=progress)

    def fetch(
        self, id: str, owner: str | None = None, wait: bool = True
    ) -> Deferred[Delivered | Status]:
        """The text, once it is there; with `wait` false and nothing ready, the status.

        :raises transcribed.errors.Failed: the transcription failed for good.
        :raises transcribed.errors.Gone: it was deleted.
        :raises transcribed.errors.UnknownId: there is none, or it is somebody else's.
        """
        asked = message("fetch", id=id, owner=owner, wait=wait)
        return self._conversation.ask(asked, Delivered, Status)

    def ack(self, id: str, owner: str | None = None) -> Deferred[Acked]:
        """Says that this party has the text: the daemon may delete its part.

        :raises transcribed.errors.NotFetched: it was never sent.
        """
        return self._conversation.ask(message("ack", id=id, owner=owner), Acked)

    def status(self, id: str, owner: str | None = None) -> Deferred[Status]:
        """How a transcript is; `progress` is from 0 to 1."""
        return self._conversation.ask(message("status", id=id, owner=owner), Status)

    def list(self) -> Deferred[list[Listed]]:
        """All transcripts with this party as a side that has not acked."""
        answer: Deferred[Listing] = self._conversation.ask(message("list"), Listing)
        return answer.addCallback(lambda listing: listing.transcripts)

    def cancel(self, id: str) -> Deferred[Cancelled]:
        """Deletes a transcript of one's own, audio and text, in any state.

        An upload under that id that is still on its way ends with
        :exc:`~transcribed.errors.Gone`.
        """
        return self._conversation.cancel(id)

    def subscribe(
        self,
        callback: Callable[[Event], object],
        lost: Callable[[Exception], object] | None = None,
    ) -> Deferred[Subscription]:
        """Has `callback` called with each change of a transcript of the party, from now on.

        Changes while the connection is down are not told later: :meth:`list` knows them.

        :param lost: called with the reason when the connection was lost for good, which ends the
            subscription.
        """
        return self._conversation.subscribe(callback, lost)

    def close(self) -> Deferred[None]:
        """Ends the connection; what is unanswered fails. Fires when the connection is gone."""
        return self._conversation.close()
