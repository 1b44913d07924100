"""The daemon put together: what is started in which order, and stopped in which."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import signal
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.application.service import IService, Service
from twisted.cred.strcred import InvalidAuthArgumentString, InvalidAuthType, makeChecker
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from transcribed import __version__
from transcribed.auth import Doorkeeper
from transcribed.clock import Calendar
from transcribed.desk import Desk
from transcribed.disk import Disk
from transcribed.dispatcher import Dispatcher
from transcribed.doors import Doors
from transcribed.errors import CannotStart, StateInUse
from transcribed.files import sync_directory
from transcribed.interfaces import IRecognizerPool, ISessionPeer
from transcribed.listeners import Listeners
from transcribed.metrics import Metrics, Sources
from transcribed.pool import RecognizerPool
from transcribed.requests import Host
from transcribed.scheduler import Scheduler
from transcribed.session import Session
from transcribed.settings import Settings
from transcribed.spool import Spool, Undeleted
from transcribed.storage.sqlite import SQLiteStore
from transcribed.tidying import Tidying
from transcribed.upload import Terms
from transcribed.web import Probe, make_site
from transcribed.websocket import Bounds, SessionFactory
from transcribed.wire import Limits, Welcome

PURGE_SECONDS = 1.0
"""So often it is looked for what has expired."""
DRAIN_SECONDS = 30.0
"""So long the windows in work may take when the daemon stops."""
SETTLE_SECONDS = 5.0
"""So long it may take then to send the texts that clients wait for."""
DISK_THREADS = 4
SPARE_FILES = 1000
"""Files that are open besides connections and uploads, with some to spare."""


class StateDirectory:
    """The directory of all that must survive, held by one daemon at a time.

    Raises :exc:`StateInUse`, or :exc:`OSError` where it cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(path.parent)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Held by the open file, so that it outlives twistd's fork, and no process that died.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StateInUse(str(path)) from None

    def release(self) -> None:
        """Let another daemon have it."""
        os.close(self._lock)


@implementer(IService)
class Daemon(Service):
    """All rooms wired together.

    :param reactor: keeps the time, too.
    :param pool: the recognizers.
    :param checkers: who knows clients' credentials; without any, they need none.
    :param refusal: is raised, with one line, where it cannot listen.
    :param calendar: the time of day; by default this machine's.
    :ivar metrics: what Prometheus is told; whoever has something to count tells them.
    """

    _log = Logger()
    name = "transcribed"

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        state: StateDirectory,
        pool: IRecognizerPool,
        checkers: Sequence[Any] = (),
        refusal: type[BaseException] = SystemExit,
        calendar: Calendar | None = None,
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._state = state
        self._pool = pool
        self._refusal = refusal
        self._threads = ThreadPool(0, DISK_THREADS, "disk")
        self._calendar = calendar or Calendar()
        self._store = SQLiteStore(state.path / "transcripts.sqlite", reactor)
        disk = Disk(settings.disk_quota, settings.min_free_disk)
        spool = Spool(state.path / "spool", reactor, self._threads, disk)
        self._scheduler = Scheduler(
            settings.max_queue, settings.max_queue_seconds, settings.max_queue_seconds_per_owner
        )
        terms = Terms(
            settings.ttl,
            settings.language,
            settings.max_seconds,
            settings.max_bytes,
            settings.max_uploads,
            settings.upload_idle_seconds,
        )
        self._desk = Desk(
            terms, self._store, spool, self._scheduler, pool, reactor, self._calendar.now
        )
        self._dispatcher = Dispatcher(
            self._scheduler, pool, self._store, spool, reactor, self._desk.changed
        )
        self._desk.wake = self._dispatcher.pump
        self._doorkeeper = Doorkeeper(checkers, reactor, self._calendar.now)
        self._sessions = SessionFactory(self._make_session, _bounds(settings))
        probe = Probe(pool.status, lambda: len(self._scheduler), self._desk.refusing)
        self.metrics = Metrics(self._sources(probe, disk))
        self._doorkeeper.wrong_login = self.metrics.wrong_login
        self._sessions.turned_away = self.metrics.turned_away
        self._dispatcher.computed = self.metrics.computed
        self._dispatcher.failed_try = self.metrics.failed_try
        self._desk.observers.append(self.metrics.changed)
        self._host = Host(
            self._desk,
            self._doorkeeper.admit,
            self._greeting,
            reactor,
            settings.hello_seconds,
            settings.max_bad_messages,
            self.metrics.refused,
        )
        site = make_site(self._sessions, probe, self.metrics.encode)
        doors = Doors(
            reactor,
            settings.handshake_seconds,
            settings.max_connections,
            settings.max_connections_per_address,
        )
        self._listeners = Listeners(reactor, site, doors, bool(checkers), settings.insecure)
        self._purging = LoopingCall(self._purge)
        self._purging.clock = reactor
        self._tidying = Tidying(reactor, self._threads.callInThread)
        self._announced = False
        pool.whenFree = self._workers_changed

    def _make_session(self, peer: ISessionPeer) -> Session:
        self.metrics.connected()
        return Session(self._host, peer)

    def _greeting(self, party: str) -> Welcome:
        status = self._pool.status()
        terms = self._desk.terms
        return Welcome(
            party=party,
            server=f"transcribed/{__version__}",
            model=status.model,
            limits=Limits(terms.max_seconds, terms.most_bytes),
            warning=status.warning,
        )

    def _sources(self, probe: Probe, disk: Disk) -> Sources:
        return Sources(
            ready=probe.ready,
            queue_recordings=lambda: len(self._scheduler),
            queue_audio_seconds=lambda: self._scheduler.seconds,
            windows_in_work=lambda: self._dispatcher.in_work,
            workers_ready=lambda: self._pool.status().ready,
            workers_wanted=lambda: self._pool.status().workers,
            connections=lambda: len(self._sessions.connections),
            uploads=lambda: self._desk.open_uploads,
            spool_bytes=lambda: disk.used,
            spool_quota_bytes=lambda: disk.quota,
            disk_free_bytes=lambda: disk.free,
        )

    # Starting

    def startService(self) -> None:
        """Listen, then take up what an earlier daemon left, and load the model meanwhile."""
        Service.startService(self)
        self._allow_files(self._settings.max_connections + self._settings.max_uploads)
        if threading.current_thread() is threading.main_thread():
            # Whose default action would end the daemon.
            signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self.reload))
        for description in self._settings.listen:
            self._listen(description)
        self._sessions.startFactory()
        self._threads.start()
        self._pool.start()
        self._log.info(
            "transcribed {version}: listening on {listen}, state in {state}, model {model}",
            version=__version__,
            listen=", ".join(self._settings.listen),
            state=str(self._state.path),
            model=self._settings.model,
        )
        Deferred.fromCoroutine(self._resume())

    def _allow_files(self, wanted: int) -> None:
        """Have as many files open as there may be connections and uploads."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted += SPARE_FILES
        if soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            if most < wanted:
                self._log.warn(
                    "only {most} files may be open, and {wanted} are needed for max-connections "
                    "and max-uploads: raise the limit (ulimit -n, LimitNOFILE=)",
                    most=most,
                    wanted=wanted,
                )

    def _listen(self, description: str) -> None:
        reason = self._listeners.listen(description)
        if reason is not None:
            # Nothing runs yet, and a traceback would hide what the operator must know.
            line = f"transcribed: cannot listen on {description}: {reason}"
            if self._refusal is not SystemExit:
                # In the background, twistd only passes the beginning on.
                self._log.critical("{line}", line=line)
            raise self._refusal(line)

    def reload(self) -> None:
        """Read credentials and certificates again. Connections stay, of those who may."""
        self._doorkeeper.reload()
        self._listeners.reload()

    async def _resume(self) -> None:
        try:
            resumed, swept = await self._desk.resume()
        except Exception:
            self._log.failure("what an earlier daemon left could not be taken up")
        else:
            self._log.info(
                "resumed {resumed} recordings, deleted {swept} leftover files",
                resumed=resumed,
                swept=swept,
            )
        if self.running:
            self._purging.start(PURGE_SECONDS)

    def _workers_changed(self) -> None:
        status = self._pool.status()
        if status.ready and not self._announced:
            self._announced = True
            self._log.info(
                "ready: model {s.model}, {s.precision}, {s.workers} workers x {s.threads} threads",
                s=status,
            )
        self._dispatcher.pump()

    async def _purge_now(self) -> None:
        self._tidying.used()
        try:
            await self._follow_clock()
            await self._desk.keep_house()
        except Undeleted:
            # The spool has said which files, once in a while.
            self.metrics.purge_failed()
        except Exception:
            # The next one may work: nothing may end the purging.
            self._log.failure("what has expired could not be purged")
            self.metrics.purge_failed()

    @classmethod
    def tell_clock(cls, moved: float) -> None:
        """Log that the machine's clock was set, by so many seconds."""
        cls._log.warn("the clock was set by {moved} s: what is kept has moved along", moved=moved)

    async def _follow_clock(self) -> None:
        moved = self._calendar.step()
        if not moved:
            return
        try:
            await self._store.follow(self._calendar.reading)
        except BaseException:
            self._calendar.undo(moved)
            raise
        self.tell_clock(moved)

    def _purge(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._purge_now())

    # Stopping

    def stopService(self) -> Deferred[None]:
        """Stop in order: take nothing new, finish what is in work, say goodbye, close."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        Service.stopService(self)
        self._log.info("stopping: the windows in work are finished")
        await self._listeners.stop()
        self._desk.closing = True
        drained = self._dispatcher.drain()
        deadline = self._reactor.callLater(DRAIN_SECONDS, drained.cancel)
        await drained.addErrback(lambda _: self._log.warn("windows in work were given up"))
        if deadline.active():
            deadline.cancel()
        settled = Deferred.fromCoroutine(self._desk.settle())
        await settled.addTimeout(SETTLE_SECONDS, self._reactor).addErrback(
            lambda _: self._log.warn("texts that were waited for were not sent")
        )
        await self._sessions.close_all()
        self._sessions.stopFactory()
        if self._purging.running:
            self._purging.stop()
        self._tidying.stop()
        await self._pool.stop()
        self._store.close()
        self._threads.stop()
        self._state.release()
        self._log.info(
            "stopped: {left} recordings are left for the next start", left=len(self._scheduler)
        )


def make_daemon(settings: Settings, reactor: Any, in_foreground: bool) -> Daemon:
    """The daemon; ends the program with one line where the state directory cannot be had.

    :param in_foreground: whether twistd stays there. Where it forks, its parent waits to be told of
        an error, and it only tells of an :exc:`Exception`.
    """
    checkers = [_make_checker(description) for description in settings.auth]
    pool = RecognizerPool(
        settings.model,
        str(settings.state / "models"),
        settings.dtype,
        settings.workers,
        settings.threads,
        settings.language,
        reactor,
    )
    try:
        state = StateDirectory(settings.state)
        calendar = Calendar()
        moved = SQLiteStore.prepare(state.path / "transcripts.sqlite", calendar.reading)
        if moved:
            Daemon.tell_clock(moved)
        refusal = SystemExit if in_foreground else CannotStart
        daemon = Daemon(settings, reactor, state, pool, checkers, refusal, calendar)
        pool.whenLost = daemon.metrics.restarted
        # What is there by now stays. Looked through again and again for what could go, it would
        # stop the daemon for some 40 ms each time.
        gc.collect()
        gc.freeze()
        return daemon
    except StateInUse:
        raise SystemExit(
            f"transcribed: the state directory {settings.state} is in use by another daemon"
        ) from None
    except (OSError, sqlite3.Error) as e:
        raise SystemExit(
            f"transcribed: cannot use the state directory {settings.state}: {e}"
        ) from e


def _make_checker(description: str) -> Any:
    try:
        return makeChecker(description)
    except Exception as e:
        known = (OSError, ValueError, InvalidAuthArgumentString, InvalidAuthType)
        if not isinstance(e, known):
            raise
        reason = getattr(e, "strerror", None) or str(e)
        if isinstance(e, InvalidAuthType):
            reason = "there is no such kind; tokens:FILE and jwt:FILE are ours"
        raise SystemExit(f"transcribed: cannot use --auth {description}: {reason}") from e


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        settings.max_connections,
        settings.max_connections_per_address,
        settings.handshake_seconds,
        settings.ping_seconds,
        settings.max_unsent,
        settings.allow_origin,
    )
