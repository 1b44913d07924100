"""What is asked and not answered yet, carried from one connection to the next."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from transcribed import errors
from transcribed.client._answers import AnyAnswer, exception
from transcribed.client._connection import Connection, Unreachable
from transcribed.client._link import Dial, Link
from transcribed.client._requests import Request, Upload
from transcribed.client._source import Source
from transcribed.wire import Accepted, Cancelled, Error, Event, Subscribed, Welcome

_T = TypeVar("_T")


@dataclass(eq=False)
class Subscription:
    """Somebody who is told of events, until :meth:`stop`."""

    callback: Callable[[Event], object]
    lost: Callable[[Exception], object] | None
    _all: list[Subscription]

    def stop(self) -> None:
        """No more calls."""
        if self in self._all:
            self._all.remove(self)


class Conversation:
    """The requests of a client and its subscriptions, over one :class:`Link`.

    :param attempts: on how many connections a request is tried.
    """

    _log = Logger()

    def __init__(
        self,
        dial: Dial,
        clock: Any,
        first_attempts: int,
        attempts: int,
        policy: Callable[[int], float],
    ) -> None:
        self._link = Link(self, dial, clock, (first_attempts, attempts), policy)
        self._attempts = attempts
        # A ref of another run must never match.
        self._refs = (f"{os.urandom(4).hex()}-{n}" for n in count(1))
        self._pending: dict[str, Request] = {}
        self._waiters: list[Deferred[Welcome]] = []
        self._subscriptions: list[Subscription] = []
        self._subscribed_on: Connection | None = None
        self._upload: Upload | None = None
        self._closed = False

    def connect(self) -> Deferred[Welcome]:
        """Fires when there is a connection."""
        if self._closed:
            return fail(_closed())
        if self._link.connection is not None and self._link.welcome is not None:
            return succeed(self._link.welcome)
        waiter: Deferred[Welcome] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        self._link.want()
        return waiter

    def cancel(self, id: str) -> Deferred[Cancelled]:
        """Asks for the end of a transcript, and of its upload if that is under way."""
        upload, connection = self._upload, self._link.connection
        if upload is None or connection is None or upload.request.message["id"] != id:
            return self.ask(message("cancel", id=id), Cancelled)
        # Now, and before anything that waits for the upload to end.
        self._end_upload(upload.request)
        request = self._queue(message("cancel", id=id), (Cancelled,))
        self._send(connection, request)
        self._finish(upload.request, errors.Gone("the upload was cancelled"))
        self._advance()
        return request.deferred

    def subscribe(
        self,
        callback: Callable[[Event], object],
        lost: Callable[[Exception], object] | None,
    ) -> Deferred[Subscription]:
        """Tells `callback` of events."""
        subscription = Subscription(callback, lost, self._subscriptions)
        self._subscriptions.append(subscription)

        def failed(failure: Failure) -> Failure:
            subscription.stop()
            return failure

        connection = self._link.connection
        subscribed = connection is not None and connection is self._subscribed_on
        answer: Deferred[Any] = (
            succeed(None) if subscribed else self.ask(message("subscribe"), Subscribed)
        )
        return answer.addCallbacks(lambda _: subscription, failed)

    def close(self) -> Deferred[None]:
        """Fails what is unanswered and ends the connection."""
        self._closed = True
        self._subscriptions.clear()
        uploading = self._upload is not None
        self.gave_up(_closed())
        return self._link.close(at_once=uploading)

    # Requests.

    def ask(
        self,
        message: dict[str, Any],
        *answers: type,
        source: Source | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Deferred[Any]:
        """Sends a request as soon as it may be; fires with one of `answers`."""
        if self._closed:
            return fail(_closed())
        request = self._queue(message, answers, source, progress)
        self._link.want()
        self._advance()
        return request.deferred

    def _queue(
        self,
        message: dict[str, Any],
        answers: tuple[type, ...],
        source: Source | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Request:
        ref = message["ref"] = next(self._refs)
        request = Request(message, answers, Deferred(lambda _: self._drop(ref)), source, progress)
        self._pending[ref] = request
        return request

    def _advance(self) -> None:
        """Sends what was not sent on this connection, in order, up to and with one upload."""
        connection = self._link.connection
        for ref, request in list(self._pending.items()):
            if connection is None or connection is not self._link.connection:
                return
            if request.sent_on is connection or ref not in self._pending:
                continue
            if self._upload is not None:
                return
            self._send(connection, request)

    def _send(self, connection: Connection, request: Request) -> None:
        request.sent_on = connection
        request.times += 1
        if request.source is None:
            connection.send(request.message)
        else:
            self._upload = Upload(request, connection)
            Deferred.fromCoroutine(self._feed(self._upload))

    async def _feed(self, upload: Upload) -> None:
        try:
            await upload.run()
        except Exception as e:
            if self._upload is upload:
                # Only a connection that ends is sure to leave nothing of the upload behind: a
                # `cancel` could delete what was accepted under the same id before.
                self._finish(upload.request, e)
                self._link.cut()
            else:
                self._log.failure("reading the audio of an upload that is over")

    def _drop(self, ref: str) -> None:
        """The canceller of a request."""
        request = self._pending.pop(ref, None)
        if self._upload is not None and self._upload.request is request:
            self._link.cut()

    def _finish(self, request: Request, result: object) -> None:
        """Answers `request`, if it has not been; an exception fails it."""
        if self._pending.pop(request.message["ref"], None) is not None:
            if isinstance(result, Exception):
                request.deferred.errback(result)
            else:
                request.deferred.callback(result)

    def _end_upload(self, request: Request | None) -> None:
        """Sends no more of the open upload, if it is that of `request`; None: whosever it is."""
        upload = self._upload
        if upload is not None and request in (None, upload.request):
            self._upload = None
            upload.stop()

    # Answers.

    def received(self, answer: AnyAnswer) -> None:
        """Gives an answer to the request it belongs to."""
        if isinstance(answer, Event):
            for subscription in list(self._subscriptions):
                self._tell(subscription.callback, answer)
            return
        request = self._asked(answer)
        if request is None:
            if isinstance(answer, Error):
                self._log.warn(
                    "the daemon says: {code}: {why}", code=answer.code, why=answer.reason
                )
            return
        self._link.answered()
        self._end_upload(request)
        if isinstance(answer, Subscribed):
            self._subscribed_on = request.sent_on
        self._finish(request, _result(request, answer))
        self._advance()

    def unreadable(self, ref: str) -> None:
        """Fails the request whose answer makes no sense."""
        if (request := self._pending.get(ref)) is not None:
            self._end_upload(request)
            self._finish(request, Unreachable("the daemon's answer cannot be read"))
            self._advance()

    def _asked(self, answer: AnyAnswer) -> Request | None:
        """The request that `answer` is for."""
        if answer.ref is not None:
            return self._pending.get(answer.ref)
        # A refusal of a binary frame might not know the ref of the upload.
        if self._upload is not None and isinstance(answer, Error | Accepted):
            request = self._upload.request
            if answer.id == request.message["id"]:
                return request
        return None

    def _tell(self, callback: Callable[[_T], object], what: _T) -> None:
        try:
            callback(what)
        except Exception:
            self._log.failure("a callback of a subscription failed")

    # What the link tells.

    def connected(self, welcome: Welcome) -> None:
        """Sends what waits."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(welcome)
        self._advance()

    def broke(self, connection: Connection, reason: Unreachable, settled: bool) -> None:
        """Leaves what was unanswered to the next connection; what cannot be repeated fails."""
        self._end_upload(None)
        doomed = []
        for request in self._pending.values():
            if request.sent_on is connection:
                request.sent_on = None
                if (why := self._why_not_again(request, reason, settled)) is not None:
                    doomed.append((request, why))
        subscribing = any(r.kind == "subscribe" for r in self._pending.values())
        if self._subscriptions and not subscribing:
            renewed = self._queue(message("subscribe"), (Subscribed,)).deferred
            renewed.addErrback(self._not_renewed)
        # From here on callbacks run, and may ask for anything.
        for request, why in doomed:
            self._finish(request, Unreachable(why))
        if (self._pending or self._waiters) and not self._closed:
            self._link.want()

    def _why_not_again(self, request: Request, reason: Unreachable, settled: bool) -> str | None:
        if request.source is None and settled:
            request.times = 0
        if request.source is not None and request.source.spent:
            return f"{reason}, and the audio cannot be read again to repeat the upload"
        return f"{reason}, again and again" if request.times >= self._attempts else None

    def gave_up(self, reason: Exception) -> None:
        """Fails everything."""
        self._end_upload(None)
        requests, waiters = list(self._pending.values()), self._waiters
        subscriptions = self._subscriptions[:]
        self._waiters = []
        self._subscriptions.clear()
        # From here on callbacks run, and what they ask for is not meant.
        for request in requests:
            self._finish(request, reason)
        for waiter in waiters:
            waiter.errback(reason)
        self._abandon(subscriptions, reason)

    def _not_renewed(self, failure: Failure) -> None:
        subscriptions = self._subscriptions[:]
        self._subscriptions.clear()
        assert isinstance(failure.value, Exception)
        self._abandon(subscriptions, failure.value)

    def _abandon(self, subscriptions: list[Subscription], reason: Exception) -> None:
        for subscription in subscriptions:
            if subscription.lost is not None:
                self._tell(subscription.lost, reason)


def message(kind: str, **fields: object) -> dict[str, Any]:
    """A request without the fields that are None."""
    return {"type": kind} | {name: value for name, value in fields.items() if value is not None}


def _result(request: Request, answer: AnyAnswer) -> object:
    """What the Deferred of `request` fires with."""
    if isinstance(answer, request.answers):
        return answer
    if not isinstance(answer, Error):
        return Unreachable(f"the daemon answered {request.kind} with something else")
    error = exception(answer)
    # Its first try may have done it, and the answer got lost with the connection.
    if request.kind == "cancel" and request.times > 1 and isinstance(error, errors.Gone):
        return Cancelled(id=request.message["id"], owner=answer.owner or "")
    return error


def _closed() -> Unreachable:
    return Unreachable("the client was closed")
