"""The metrics: what is counted when, what is read, and how it is written down."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import FakePool, House
from tests.poolcase import PoolTestCase
from transcribed import __version__
from transcribed.metrics import COUNTED, Metrics, Sources
from transcribed.pool import kind_of_loss
from transcribed.transcript import State, Transcript

ROOT = Path(__file__).parent.parent
SECOND = b"\1\0" * 16000

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: bytes) -> Values:
    """The samples of a scrape by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def names(metrics: Metrics) -> set[str]:
    """The names of all its metrics, as they are queried but for a histogram's suffixes."""
    return {
        metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")
        for metric in metrics.collect()
    }


class Case(SynchronousTestCase):
    """Metrics of a daemon that the test plays."""

    def setUp(self) -> None:
        self.time = 50.0
        self.values = {field.name: float(i) for i, field in enumerate(fields(Sources))}
        sources = Sources(**{name: lambda name=name: self.values[name] for name in self.values})
        self.metrics = Metrics(sources, lambda: self.time, lambda: 1000.0)

    def scrape(self) -> Values:
        return parse(self.metrics.encode("")[0])

    def value(self, name: str, **labels: str) -> float:
        return self.scrape()[f"transcribed_{name}", tuple(sorted(labels.items()))]

    def histogram(self, name: str) -> tuple[float, float]:
        """How many it has seen, and their sum."""
        return self.value(f"{name}_count"), round(self.value(f"{name}_sum"), 6)

    def transcript(self, state: State, key: str = "k") -> Transcript:
        return Transcript(
            key, "anna", "m1", "bjorn", 16000, 1, 80000, "", "sv", state, 900.0, 2000.0
        )

    def move(self, *states: State, key: str = "k") -> None:
        for state in states:
            self.metrics.changed(self.transcript(state, key), 0.0)


class TranscriptTests(Case):
    """States, purges, audio, and the time until the text is there."""

    def test_states(self) -> None:
        self.move(State.QUEUED, State.TRANSCRIBING, State.TRANSCRIBING, State.READY, State.PURGED)
        self.move(State.QUEUED, State.CANCELLED, key="l")
        found = {str(state): self.value("transcripts_total", state=state) for state in COUNTED}
        self.assertEqual(
            found,
            {"queued": 2, "ready": 1, "failed": 0, "purged": 1, "cancelled": 1, "expired": 0},
        )
        self.assertEqual(self.value("accepted_audio_seconds_total"), 10.0)

    def test_from_accepted_to_ready(self) -> None:
        self.move(State.QUEUED)
        self.time += 2
        self.move(State.QUEUED, key="l")
        self.time += 1
        self.move(State.TRANSCRIBING)
        self.move(State.READY)
        self.assertEqual(self.histogram("accepted_to_ready_seconds"), (1, 3.0))
        self.move(State.READY, key="l")
        self.assertEqual(self.histogram("accepted_to_ready_seconds"), (2, 4.0))

    def test_what_an_earlier_daemon_accepted(self) -> None:
        self.move(State.READY)
        self.assertEqual(self.histogram("accepted_to_ready_seconds"), (1, 100.0))
        # The clock was set back meanwhile.
        later = replace(self.transcript(State.READY), created=5000.0)
        self.metrics.changed(later, 1.0)
        self.assertEqual(self.histogram("accepted_to_ready_seconds"), (2, 100.0))

    def test_only_what_gets_ready_is_timed_and_nothing_is_kept(self) -> None:
        for number, end in enumerate((State.FAILED, State.CANCELLED, State.EXPIRED)):
            self.move(State.QUEUED, end, key=str(number))
        self.assertEqual(self.histogram("accepted_to_ready_seconds"), (0, 0.0))
        self.assertEqual(self.metrics._accepted, {})


class CountTests(Case):
    """What is told by those to whom it happens."""

    def test_batches(self) -> None:
        self.metrics.computed([20.0], 5.0)
        self.metrics.computed([2.0, 6.0], 4.0)
        self.assertEqual(self.histogram("real_time_factor"), (2, 0.75))
        self.assertEqual(self.histogram("window_seconds"), (3, 9.0))
        self.assertEqual(self.value("window_seconds_bucket", le="1.0"), 1)
        self.assertEqual(self.value("window_seconds_bucket", le="5.0"), 3)

    def test_counters(self) -> None:
        told = {
            "connections_opened_total": self.metrics.connected,
            "connections_turned_away_total": self.metrics.turned_away,
            "wrong_logins_total": self.metrics.wrong_login,
            "window_failed_tries_total": self.metrics.failed_try,
            "purge_failures_total": self.metrics.purge_failed,
        }
        for times, (name, tell) in enumerate(told.items(), 1):
            self.assertEqual(self.value(name), 0)
            for _ in range(times):
                tell()
        self.assertEqual([self.value(name) for name in told], [1, 2, 3, 4, 5])

    def test_refusals(self) -> None:
        self.assertEqual(self.value("refusals_total", code="internal"), 0)
        for code in ("busy", "busy", "unknown-id"):
            self.metrics.refused(code)
        self.assertEqual(self.value("refusals_total", code="busy"), 2)
        self.assertEqual(self.value("refusals_total", code="unknown-id"), 1)

    def test_restarts(self) -> None:
        self.metrics.restarted("hung")
        kinds = ("died", "hung", "grown", "other")
        found = [self.value("worker_restarts_total", kind=kind) for kind in kinds]
        self.assertEqual(found, [0, 1, 0, 0])


class ReadingTests(Case):
    """What is so now, and the text."""

    def test_gauges(self) -> None:
        for name, value in self.values.items():
            self.assertEqual(self.value(name), value)
        self.values["connections"] = 77
        self.assertEqual(self.value("connections"), 77)

    def test_one_that_cannot_be_read(self) -> None:
        def broken() -> float:
            raise OSError(errno.EIO, "input/output error")

        sources = Sources(**{field.name: lambda: 1 for field in fields(Sources)})
        metrics = Metrics(replace(sources, disk_free_bytes=broken))
        found = parse(metrics.encode("")[0])
        self.assertNotIn(("transcribed_disk_free_bytes", ()), found)
        self.assertEqual(found["transcribed_connections", ()], 1)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_of_the_process(self) -> None:
        found = self.scrape()
        self.assertGreater(found["process_resident_memory_bytes", ()], 10_000_000)
        self.assertEqual(
            found["transcribed_build_info", (("version", __version__),)],
            1,
        )

    def test_two_daemons_in_one_process(self) -> None:
        other = Metrics(Sources(**{field.name: lambda: 0 for field in fields(Sources)}))
        other.connected()
        self.assertEqual(self.value("connections_opened_total"), 0)

    def test_no_series_but_those_that_are_told(self) -> None:
        self.assertEqual([name for name, _ in self.scrape() if name.endswith("_created")], [])

    def test_labels_are_there_from_the_beginning(self) -> None:
        before = {*self.scrape()}
        self.move(*COUNTED)
        self.metrics.restarted("grown")
        self.metrics.refused("too-long")
        self.metrics.computed([1.0], 1.0)
        self.assertEqual({*self.scrape()}, before)

    def test_names(self) -> None:
        for metric in self.metrics.collect():
            self.assertRegex(metric.name, r"^(transcribed|process)_[a-z_]+$")
            self.assertGreater(len(metric.documentation), 10)
            for sample in metric.samples:
                self.assertLessEqual({*sample.labels}, {"state", "code", "kind", "le", "version"})

    def test_types(self) -> None:
        plain = "text/plain; version=0.0.4; charset=utf-8"
        self.assertEqual(self.metrics.encode("")[1], plain)
        self.assertEqual(self.metrics.encode("text/html, */*;q=0.1")[1], plain)
        body, kind = self.metrics.encode("application/openmetrics-text; version=1.0.0, */*;q=0.1")
        self.assertTrue(kind.startswith("application/openmetrics-text; version=1.0.0"))
        self.assertTrue(body.endswith(b"# EOF\n"))

    def test_headers_that_are_nonsense(self) -> None:
        for accept in ("application/openmetrics-text; version=x", "text/plain; version=1.x", ";,="):
            body, kind = self.metrics.encode(accept)
            self.assertTrue(kind.startswith("text/plain"), accept)
            self.assertIn(("transcribed_connections", ()), parse(body))


class DispatcherTests(SynchronousTestCase):
    """What the dispatcher tells of windows."""

    def setUp(self) -> None:
        self.house = House(Path(self.mktemp()), pool=FakePool(2))
        self.time = 0.0
        self.told: list[tuple[Sequence[float], float]] = []
        self.failed = 0
        dispatcher = self.house.dispatcher
        dispatcher._monotonic = lambda: self.time
        dispatcher.computed = lambda audio, seconds: self.told.append((audio, seconds))
        dispatcher.failed_try = self.count
        self.anna = self.house.party("anna")

    def count(self) -> None:
        self.failed += 1

    def test_windows(self) -> None:
        self.anna.submit("m1", SECOND * 40)
        self.assertEqual(self.house.dispatcher.in_work, 2)
        self.time += 3
        self.house.pool.answer("hej", at=1)
        self.assertEqual(self.house.dispatcher.in_work, 1)
        self.time += 2
        self.house.pool.answer("hej")
        self.assertEqual(self.house.dispatcher.in_work, 0)
        self.assertEqual(self.told, [([20.0], 3.0), ([26.0], 5.0)])
        self.assertEqual(self.failed, 0)

    def test_one_that_fails(self) -> None:
        self.anna.submit("m1")
        self.time += 3
        self.house.pool.fail()
        self.assertEqual((self.told, self.failed), ([], 1))
        self.assertEqual(self.house.dispatcher.in_work, 1, "it is tried again")
        self.house.pool.fail()
        self.house.pool.fail()
        self.assertEqual((self.failed, self.house.dispatcher.in_work), (3, 0))

    def test_one_that_nobody_waits_for_any_more(self) -> None:
        self.anna.submit("m1")
        self.anna.ask(type="cancel", id="m1")
        self.assertEqual(self.house.dispatcher.in_work, 1)
        self.house.pool.answer("hej")
        self.assertEqual(self.house.dispatcher.in_work, 0)
        self.assertEqual(len(self.told), 1)


class PoolTests(PoolTestCase):
    """What the pool tells of children."""

    def test_each_loss(self) -> None:
        kinds: list[str] = []
        self.pool.whenLost = kinds.append
        self.ready()
        self.assertEqual(kinds, [])
        self.child("worker 1").die(signal=9)
        self.starter.flush()
        self.assertEqual(kinds, ["died"])
        self.child("worker 2").hushed = True
        self.pass_(50)
        self.assertEqual(kinds, ["died", "hung"])

    def test_kinds(self) -> None:
        for reason, kind in (
            ("died of signal 9", "died"),
            ("died (1)", "died"),
            ("went away", "died"),
            ("hung: no answer within 30 s", "hung"),
            ("has grown by 2049 MiB", "grown"),
            ("cannot load the model: out of reach", "other"),
            ("answered with an error or rubbish (ValueError)", "other"),
        ):
            self.assertEqual(kind_of_loss(reason), kind, reason)


class DocumentTests(Case):
    """The README's table, and the dashboard in etc/."""

    def test_readme(self) -> None:
        readme = (ROOT / "README.rst").read_text("utf-8")
        rows = re.findall(r"^   \* - ``(transcribed_\w+)``$", readme, re.MULTILINE)
        ours = {name for name in names(self.metrics) if name.startswith("transcribed_")}
        self.assertEqual(len(rows), len({*rows}), "each once")
        self.assertEqual({*rows}, ours)

    def panels(self) -> Iterator[dict[str, Any]]:
        board = json.loads((ROOT / "etc/grafana.json").read_text("utf-8"))
        yield from (panel for panel in board["panels"] if panel["type"] != "row")

    def test_dashboard_asks_for_what_there_is(self) -> None:
        there = names(self.metrics)
        for metric in self.metrics.collect():
            if metric.type == "histogram":
                there |= {f"{metric.name}_{suffix}" for suffix in ("bucket", "sum", "count")}
        labels = {key for (name, found) in self.scrape() for key, _ in found}
        asked = set()
        for panel in self.panels():
            self.assertTrue(panel["targets"], panel["title"])
            for target in panel["targets"]:
                found = re.findall(r"\b(?:transcribed|process)_\w+", target["expr"])
                self.assertTrue(found, target["expr"])
                asked |= {*found}
                for by in re.findall(r"by \(([^)]*)\)", target["expr"]):
                    self.assertLessEqual({*re.split(r"\s*,\s*", by)}, labels | {"instance"})
        self.assertEqual(asked - there, set())
        bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} | asked
        ours = {name for name in names(self.metrics) if name.startswith("transcribed_")}
        self.assertEqual(ours - bare, set(), "what is not on the dashboard")

    def test_dashboard_can_be_imported(self) -> None:
        board = json.loads((ROOT / "etc/grafana.json").read_text("utf-8"))
        (source,) = board["__inputs"]
        self.assertEqual((source["type"], source["pluginId"]), ("datasource", "prometheus"))
        self.assertIsNone(board["id"])
        wanted = {"type": "prometheus", "uid": "${" + source["name"] + "}"}
        ids, places = [], []
        for panel in board["panels"]:
            ids.append(panel["id"])
            grid = panel["gridPos"]
            self.assertLessEqual(grid["x"] + grid["w"], 24, panel["title"])
            places += [
                (x, y)
                for x in range(grid["x"], grid["x"] + grid["w"])
                for y in range(grid["y"], grid["y"] + grid["h"])
            ]
            if panel["type"] != "row":
                self.assertEqual(panel["datasource"], wanted, panel["title"])
                self.assertTrue(panel["description"], panel["title"])
                refs = [target["refId"] for target in panel["targets"]]
                self.assertEqual(len(refs), len({*refs}))
        self.assertEqual(len(ids), len({*ids}))
        self.assertEqual(len(places), len({*places}), "panels lie over each other")
