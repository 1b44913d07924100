"""What the documentation says against what the code has: options, messages, codes, modules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from transcribed import errors, wire
from transcribed.settings import OPTIONS, Settings
from transcribed.tap import Options

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "transcribed"
M = TypeVar("M", bound=msgspec.Struct)


def read(path: str) -> str:
    """The text of a file of the repository."""
    return (ROOT / path).read_text("utf-8")


def messages(base: type[M]) -> dict[str, type[M]]:
    """All messages that derive from `base`, by their `type`."""
    found = {}
    for each in base.__subclasses__():
        tag = str(each.__struct_config__.tag)
        # A base of others, which has no tag of its own, is tagged with its name.
        if tag != each.__name__:
            found[tag] = each
        found |= messages(each)
    return found


REQUESTS, ANSWERS = messages(wire.Request), messages(wire.Answer)


class ConfigurationTests(SynchronousTestCase):
    """etc/transcribed.toml is the defaults, written out."""

    def parse(self, *arguments: str) -> Settings:
        """What is set by `arguments`."""
        options = Options()
        options.parseOptions(list(arguments))
        return options.settings

    def test_isTheDefaults(self) -> None:
        file = str(ROOT / "etc/transcribed.toml")
        self.assertEqual(self.parse("--config", file), self.parse())

    def test_namesEveryOption(self) -> None:
        keys = re.findall(r"^([a-z-]+) = ", read("etc/transcribed.toml"), re.MULTILINE)
        self.assertEqual(keys, [option.key for option in OPTIONS])


class ReadmeTests(SynchronousTestCase):
    """README.rst."""

    def test_tableOfOptions(self) -> None:
        rows = re.findall(r"^   \* - ``([a-z-]+)``\n     - ``(.+)``$", read("README.rst"), re.M)
        wanted = []
        for option in OPTIONS:
            default = option.default[0] if option.key == "listen" else option.default
            wanted.append((option.key, str(default)))
        self.assertEqual(rows, wanted)

    def test_itsFilesAreThere(self) -> None:
        names = set(re.findall(r"``((?:docs|etc|tests)/[\w./]+)``", read("README.rst")))
        self.assertGreaterEqual(
            names, {"docs/protocol.rst", "docs/design.rst", "etc/transcribed.toml"}
        )
        for name in names:
            self.assertTrue((ROOT / name).is_file(), name)


class ProtocolTests(SynchronousTestCase):
    """docs/protocol.rst: its examples are messages, and nothing of the wire is left out."""

    text = read("docs/protocol.rst")

    def examples(self, side: str) -> Iterator[dict[str, Any]]:
        """The messages marked with `side`, ``C`` or ``S``."""
        for mark in re.finditer(rf"^    {side}: (?=\{{)", self.text, re.MULTILINE):
            message, _ = json.JSONDecoder().raw_decode(self.text, mark.end())
            yield message

    def test_requestsParse(self) -> None:
        seen = set()
        for message in self.examples("C"):
            request = wire.parse(json.dumps(message).encode())
            self.assertIs(type(request), REQUESTS[message["type"]])
            self.assertEqual({*message} - {"type", *request.__struct_fields__}, set(), message)
            seen.add(message["type"])
        self.assertEqual(seen, {*REQUESTS})

    def test_answersAreAsTheyAreSent(self) -> None:
        seen = set()
        for message in self.examples("S"):
            answer = msgspec.convert(message, ANSWERS[message["type"]], strict=True)
            self.assertEqual(json.loads(wire.render(answer)), message)
            seen.add(message["type"])
        self.assertEqual(seen, {*ANSWERS})

    def test_everyField(self) -> None:
        kinds: list[type[msgspec.Struct]] = [*REQUESTS.values(), *ANSWERS.values()]
        for kind in kinds:
            for name in kind.__struct_fields__:
                self.assertRegex(self.text, rf'``{name}``|"{name}":', kind.__name__)

    def test_defaultsOfSubmit(self) -> None:
        rows = re.findall(r"^   \* - ``(\w+)``\n     - ``(\d+)``$", self.text, re.MULTILINE)
        request = wire.Submit(id="m1")
        self.assertEqual(rows, [("rate", str(request.rate)), ("channels", str(request.channels))])

    def test_errorCodes(self) -> None:
        table = self.text[self.text.index("\nErrors\n") : self.text.index("\nClosing\n")]
        rows = re.findall(r"^   \* - ``([a-z-]+)``$", table, re.MULTILINE)
        codes = {e.code for e in errors.TranscribedError.__subclasses__()}
        self.assertEqual(sorted(rows), sorted({*codes, errors.TranscribedError.code}))


class DesignTests(SynchronousTestCase):
    """docs/design.rst names the modules that there are."""

    def test_modules(self) -> None:
        rooms = read("docs/design.rst").split("\nArrows\n")[0]
        named = re.findall(r"``((?:\w+/)?\w+\.py)``", rooms)
        there = {
            str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.stat().st_size
        }
        self.assertEqual({*named}, there)
        self.assertEqual(len(named), len({*named}), "each once")
