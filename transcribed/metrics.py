"""What Prometheus is told: counts, sizes and times of the daemon. Never names, text or reasons.

Every label has a few values that are known beforehand. What is so now is read when somebody asks;
what happens is told by whom it happens to. Durations are of a clock that never jumps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, Metric, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from twisted.logger import Logger

from transcribed import __version__
from transcribed.errors import TranscribedError
from transcribed.pool import Loss
from transcribed.transcript import UNFINISHED, State, Transcript

COUNTED = (
    State.QUEUED,
    State.READY,
    State.FAILED,
    State.PURGED,
    State.CANCELLED,
    State.EXPIRED,
)
"""The states whose beginnings are counted."""

# From a message on an idle daemon to a long recording behind a full queue.
_READY_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
# A window has up to 30 s of audio: from a tiny model on a GPU to a large one on a slow core.
_WINDOW_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
_FACTOR_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)

Number = Callable[[], float]


@dataclass(frozen=True)
class Sources:
    """Where to read what is so now; each field is the gauge ``transcribed_FIELD``."""

    ready: Number
    queue_recordings: Number
    queue_audio_seconds: Number
    windows_in_work: Number
    workers_ready: Number
    workers_wanted: Number
    connections: Number
    uploads: Number
    spool_bytes: Number
    spool_quota_bytes: Number
    disk_free_bytes: Number


_MEANING = {
    "ready": "1 where /ready answers 200, 0 where it answers 503.",
    "queue_recordings": "Recordings that were accepted and are not finished.",
    "queue_audio_seconds": "Seconds of audio of recordings that are waiting, in work or coming in.",
    "windows_in_work": "Windows that workers are computing.",
    "workers_ready": "Workers that have the model loaded.",
    "workers_wanted": "Workers that there should be; 0 until the model is found.",
    "connections": "Open websocket connections.",
    "uploads": "Recordings that are coming in.",
    "spool_bytes": "Bytes of audio and text on the disk.",
    "spool_quota_bytes": "The most bytes of audio and text that may be there.",
    "disk_free_bytes": "Bytes that are free on the disk of the state directory.",
}


class _Now:
    """The gauges. One that cannot be read is left out, and the others are told all the same."""

    _log = Logger()

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Their names; nothing is read for that."""
        for field in fields(self._sources):
            yield GaugeMetricFamily(f"transcribed_{field.name}", _MEANING[field.name])

    def collect(self) -> Iterator[Metric]:
        """Their values."""
        for gauge, field in zip(self.describe(), fields(self._sources), strict=True):
            try:
                value = float(getattr(self._sources, field.name)())
            except Exception:
                self._log.failure("the metric {metric} could not be read", metric=gauge.name)
                continue
            gauge.add_metric([], value)
            yield gauge


class Metrics:
    """All metrics of one daemon, in a registry of its own.

    :param sources: where to read the gauges.
    :param monotonic: seconds of a clock that never jumps.
    :param now: the time of day, in seconds since the epoch.
    """

    def __init__(
        self,
        sources: Sources,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic = monotonic
        self._now = now
        self._accepted: dict[str, float] = {}
        self._registry = registry = CollectorRegistry()
        registry.register(_Now(sources))
        ProcessCollector(registry=registry)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"transcribed_{name}", meaning, labels, registry=registry)

        def histogram(name: str, meaning: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"transcribed_{name}", meaning, buckets=buckets, registry=registry)

        build = Info("transcribed_build", "Which transcribed this is.", registry=registry)
        build.info({"version": __version__})
        self._states = counter(
            "transcripts", "Transcripts that have come to a state since the start.", "state"
        )
        self._audio = counter("accepted_audio_seconds", "Seconds of audio that were accepted.")
        self._refusals = counter("refusals", "Errors that clients were told, by code.", "code")
        self._opened = counter("connections_opened", "Websocket connections since the start.")
        self._turned_away = counter(
            "connections_turned_away", "Connections that were over a limit and closed at once."
        )
        self._wrong_logins = counter("wrong_logins", "Credentials that were wrong.")
        self._restarts = counter(
            "worker_restarts", "Child processes that had to be started again, by kind.", "kind"
        )
        self._failed_tries = counter("window_failed_tries", "Windows' tries that failed.")
        self._purge_failures = counter(
            "purge_failures", "Times that what has expired could not be purged; it is tried again."
        )
        self._to_ready = histogram(
            "accepted_to_ready_seconds",
            "Seconds from a recording's being accepted to its text's being ready.",
            _READY_BUCKETS,
        )
        self._windows = histogram(
            "window_seconds",
            "Seconds that a worker computed for a window; its share, where it was in a batch.",
            _WINDOW_BUCKETS,
        )
        self._factor = histogram(
            "real_time_factor",
            "Seconds of computing for each second of audio, a batch at a time.",
            _FACTOR_BUCKETS,
        )
        # Every series is there from the beginning: a rate over one that just appears is lost.
        for state in COUNTED:
            self._states.labels(state)
        for code in {TranscribedError.code, *(e.code for e in TranscribedError.__subclasses__())}:
            self._refusals.labels(code)
        for kind in get_args(Loss):
            self._restarts.labels(kind)

    # What happens

    def changed(self, transcript: Transcript, progress: float) -> None:
        """A transcript has come to a state, or got on in it; see :meth:`Desk.changed`."""
        state = transcript.state
        if state not in COUNTED:
            return
        self._states.labels(state).inc()
        if state is State.QUEUED:
            self._audio.inc(transcript.seconds)
            self._accepted[transcript.key] = self._monotonic()
        if state in UNFINISHED:
            return
        accepted = self._accepted.pop(transcript.key, None)
        if state is State.READY:
            # What an earlier daemon accepted, only the time of day tells.
            waited = (
                self._monotonic() - accepted
                if accepted is not None
                else max(0.0, self._now() - transcript.created)
            )
            self._to_ready.observe(waited)

    def computed(self, audio_seconds: Sequence[float], seconds: float) -> None:
        """A worker has computed a batch of windows.

        :param audio_seconds: how much audio was in each window.
        :param seconds: what it took for all of them.
        """
        factor = seconds / sum(audio_seconds)
        self._factor.observe(factor)
        for audio in audio_seconds:
            self._windows.observe(factor * audio)

    def failed_try(self) -> None:
        """A try of a window has failed, and it was not another one's fault."""
        self._failed_tries.inc()

    def restarted(self, kind: Loss) -> None:
        """A child process has to be started again."""
        self._restarts.labels(kind).inc()

    def refused(self, code: str) -> None:
        """A client was told an error with this wire code."""
        self._refusals.labels(code).inc()

    def connected(self) -> None:
        """A websocket connection was opened."""
        self._opened.inc()

    def turned_away(self) -> None:
        """A connection was closed at once, as there were too many."""
        self._turned_away.inc()

    def wrong_login(self) -> None:
        """Somebody's credentials were wrong."""
        self._wrong_logins.inc()

    def purge_failed(self) -> None:
        """What has expired could not be purged."""
        self._purge_failures.inc()

    # Who asks

    def collect(self) -> Iterator[Metric]:
        """All of them, without the times at which each series was made."""
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric

    def encode(self, accept: str) -> tuple[bytes, str]:
        """All of them as text, and its content type.

        :param accept: the request's ``Accept`` header; empty where there is none.
        """
        try:
            encoder, content_type = choose_encoder(accept)
            return encoder(self), content_type
        except Exception:
            # A header that prometheus_client does not understand must not cost the answer.
            return generate_latest(self), CONTENT_TYPE_PLAIN_0_0_4
