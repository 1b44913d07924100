"""The wav2vec2 network of our own against transformers', and the file that it is loaded from."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from safetensors import SafetensorError
from twisted.trial.unittest import SynchronousTestCase

from benchmarks.checkpoints import seeded_base, seeded_large
from tests.speech import CHECKPOINT, RATE, STEADY, clip, recording, texts
from transcribed.errors import ModelUnavailable
from transcribed.recognition import Model, Transcription, cut, stitch
from transcribed.speech import Sound, Span, conversion, converted, load, models, native, packed

WHOLE = Span(0, 0, math.inf)


def sound(samples: Any) -> Sound:
    """A recording of one window."""
    return Sound((samples / 32768).astype(numpy.float32), WHOLE, "")


def edits(said: Sequence[str], heard: Sequence[str]) -> int:
    """Words that were left out, put in or mistaken (Levenshtein 1966)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


class Case(SynchronousTestCase):
    """Has a directory of its own, and recognizers that are loaded from it."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, self.root)

    def use(self, kernel: str) -> None:
        """Have it convert for `kernel`: which is the fastest depends on the machine."""
        self.patch(converted, "has_cuda", lambda: False)
        self.patch(conversion, "fastest", lambda dtype: kernel)
        self.patch(converted, "FORMAT", f"of the tests, {kernel}")

    def load(self, directory: Path, dtype: str, threads: int = 2) -> native.NativeRecognizer:
        recognizer = load(models.resolve(str(directory), str(self.root), dtype), threads, "")
        assert isinstance(recognizer, native.NativeRecognizer)
        self.assertEqual(recognizer.precision, dtype)
        return recognizer


class TrainedTests(Case):
    """On the tiny trained checkpoint, with real words."""

    def test_textAndTimesAreThoseOfTransformers(self) -> None:
        ours = self.load(CHECKPOINT, "float32")
        network = transformers.Wav2Vec2ForCTC.from_pretrained(CHECKPOINT).eval()
        processor = transformers.Wav2Vec2Processor.from_pretrained(CHECKPOINT)
        for name, text in texts().items():
            heard = sound(clip(name))
            inputs = processor(heard.samples, sampling_rate=RATE, return_tensors="pt")
            with torch.inference_mode():
                logits = network(inputs.input_values).logits
            theirs = processor.decode(logits[0].argmax(-1), output_word_offsets=True)
            own = stitch(ours.transcribe([heard]))
            self.assertEqual(own.text, theirs.text)
            self.assertEqual(own.text, text)
            self.assertEqual(
                [(w.word, w.start, w.end) for w in own.words],
                [
                    (
                        w["word"],
                        round(w["start_offset"] * 0.02, 3),
                        round(w["end_offset"] * 0.02, 3),
                    )
                    for w in theirs.word_offsets
                ],
            )
            numpy.testing.assert_allclose(
                ours.logits(heard.samples), logits[0].numpy(), rtol=1e-3, atol=1e-3
            )

    def test_aLongWindowIsThatOfTransformers(self) -> None:
        """One that is done in pieces."""
        samples, _ = recording(12, clips=STEADY)
        network = transformers.Wav2Vec2ForCTC.from_pretrained(CHECKPOINT).eval()
        processor = transformers.Wav2Vec2Processor.from_pretrained(CHECKPOINT)
        inputs = processor(samples / 32768, sampling_rate=RATE, return_tensors="pt")
        with torch.inference_mode():
            theirs = network(inputs.input_values).logits[0].numpy()
        for kernel in ("torch", "onednn"):
            self.use(kernel)
            ours = self.load(CHECKPOINT, "float32").logits(sound(samples).samples)
            numpy.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)

    def hear(self, recognizer: native.NativeRecognizer, samples: Any) -> Transcription:
        results = []
        for window in cut(len(samples), RATE, 20, 3):
            piece = (samples[window.start : window.stop] / 32768).astype(numpy.float32)
            results += recognizer.transcribe([Sound(piece, Span.of(window, RATE), "")])
        return stitch(results)

    def test_theWordErrorRateIsThatOfFloat32(self) -> None:
        # All clips: also those that the checkpoint sometimes mishears.
        samples, text = recording(300, seed=3)
        exact = self.hear(self.load(CHECKPOINT, "float32"), samples).text.split()
        said = text.split()
        self.assertLess(edits(said, exact) / len(said), 0.01)
        heard = self.hear(self.load(CHECKPOINT, "bfloat16"), samples).text.split()
        self.assertEqual(edits(said, heard), edits(said, exact))

    def test_int8HearsWhatFloat32HearsForSure(self) -> None:
        samples, text = recording(300, clips=STEADY)
        self.assertEqual(self.hear(self.load(CHECKPOINT, "int8"), samples).text, text)

    def test_aBatchIsHeardAsItsWindowsAre(self) -> None:
        names = sorted(texts())
        batch = [sound(clip(name)) for name in names] + [sound(numpy.zeros(n)) for n in (0, 9, 700)]
        for dtype in ("float32", "bfloat16", "int8"):
            recognizer = self.load(CHECKPOINT, dtype)
            together = recognizer.transcribe(batch)
            for one, result in zip(batch, together, strict=True):
                (alone,) = recognizer.transcribe([one])
                self.assertEqual(stitch([result]).text, stitch([alone]).text)
                for a, b in zip(stitch([result]).words, stitch([alone]).words, strict=True):
                    self.assertEqual((a.start, a.end), (b.start, b.end))
                    # Products of other sizes add up in another order.
                    self.assertAlmostEqual(a.confidence, b.confidence, delta=0.02)

    def test_anyLanguageIsTaken(self) -> None:
        """The checkpoint does not say which it has."""
        model = models.resolve(str(CHECKPOINT), str(self.root), "float32")
        recognizer = load(model, 1, "sv")
        name, text = next(iter(texts().items()))
        heard = recognizer.transcribe([replace(sound(clip(name)), language="sv")])
        self.assertEqual(stitch(heard).text, text)

    def test_importsNoTransformers(self) -> None:
        models.resolve(str(CHECKPOINT), str(self.root), "float32")
        code = (
            "import sys, math, numpy\n"
            "from transcribed.speech import Sound, Span, load, models\n"
            "model = models.resolve(*sys.argv[1:4])\n"
            "assert 'torch' not in sys.modules\n"
            "samples = numpy.zeros(16000, numpy.float32)\n"
            "load(model, 1, '').transcribe([Sound(samples, Span(0, 0, math.inf), '')])\n"
            "assert 'transformers' not in sys.modules\n"
        )
        command = [sys.executable, "-c", code, str(CHECKPOINT), str(self.root), "float32"]
        subprocess.run(command, check=True, cwd=CHECKPOINT.parent.parent)

    def test_theWeightsAreMappedAndNeverCopied(self) -> None:
        for kernel, dtype in ("torch", "float32"), ("onednn", "float32"), ("onednn", "int8"):
            self.use(kernel)
            recognizer = self.load(CHECKPOINT, dtype)
            recognizer.transcribe([sound(clip(STEADY[0]))])
            network = recognizer._network
            weights = [network.head.weight, *(block.up.weight for block in network.blocks)]
            mapped = mappings(self.root)
            self.assertTrue(mapped)
            for weight in weights:
                address = (
                    torch.ops.mkldnn.data_ptr(weight) if weight.is_mkldnn else weight.data_ptr()
                )
                self.assertTrue(any(start <= address < end for start, end, _ in mapped))
            self.assertEqual([anonymous for *_, anonymous in mapped], [0] * len(mapped))
            del recognizer, network, weights, weight

    def test_eachKernelHearsTheSame(self) -> None:
        heard = sound(clip(STEADY[0])).samples
        logits = []
        for kernel in ("torch", "onednn", "onednn-gelu"):
            self.use(kernel)
            recognizer = self.load(CHECKPOINT, "float32")
            self.assertEqual(recognizer._network.blocks[0].up.weight.is_mkldnn, kernel != "torch")
            logits.append(recognizer.logits(heard))
        for other in logits[1:]:
            numpy.testing.assert_allclose(other, logits[0], rtol=1e-3, atol=1e-3)

    def test_packedWeightsBeginWithACacheLine(self) -> None:
        self.use("onednn")
        for dtype in ("float32", "int8"):
            path = Path(models.resolve(str(CHECKPOINT), str(self.root), dtype).converted)
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            begins = [header[n]["data_offsets"][0] for n in header if n.endswith(".packed")]
            self.assertTrue(begins)
            self.assertEqual({(8 + size + begin) % packed.ALIGNMENT for begin in begins}, {0})

    def test_packedWeightsThatAreIncomplete(self) -> None:
        self.use("onednn")
        model = models.resolve(str(CHECKPOINT), str(self.root), "float32")
        self.patch(native, "mapped", lambda room, *rest: packed.mapped(room[:-8], *rest))
        error = self.assertRaises(ModelUnavailable, load, model, 1, "")
        self.assertEqual(
            str(error), f"{model.converted}: packed weights are incomplete: delete it and restart"
        )


def mappings(folder: Path) -> list[tuple[int, int, int]]:
    """Where this process has files of `folder` mapped: start, end, KiB of private copies."""
    found: list[tuple[int, int, int]] = []
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            inside = bool(rest) and rest[-1].startswith(str(folder))
            if inside:
                start, end = (int(part, 16) for part in first.split("-"))
                found.append((start, end, 0))
        elif inside and first == "Anonymous:":
            start, end, _ = found[-1]
            found[-1] = (start, end, int(rest[0]))
    return found


class ShapeTests(Case):
    """Networks of the real shapes, with weights from a seed."""

    def compare(self, kind: str, dtype: str, seconds: float) -> tuple[float, float]:
        """Our error and that of transformers in `dtype`, both against transformers' float32."""
        {"large": seeded_large, "base": seeded_base}[kind](self.root / kind)
        network = transformers.Wav2Vec2ForCTC.from_pretrained(self.root / kind).eval()
        ours = self.load(self.root / kind, dtype)
        generator = numpy.random.default_rng(1)
        samples = generator.normal(0, 0.1, int(seconds * RATE)).astype(numpy.float32)
        inputs = transformers.Wav2Vec2FeatureExtractor.from_pretrained(self.root / kind)(
            samples, sampling_rate=RATE, return_tensors="pt"
        ).input_values
        with torch.inference_mode():
            exact = network(inputs).logits[0].numpy()
            theirs = exact
            if dtype == "bfloat16":
                network.bfloat16()
                theirs = network(inputs.bfloat16()).logits[0].float().numpy()
        size = numpy.linalg.norm(exact)
        own = ours.logits(samples)
        return (
            float(numpy.linalg.norm(own - exact) / size),
            float(numpy.linalg.norm(theirs - exact) / size),
        )

    def test_largeInBfloat16(self) -> None:
        ours, theirs = self.compare("large", "bfloat16", 1)
        self.assertGreater(ours, 0)
        self.assertLessEqual(ours, theirs)

    def test_largeInFloat32(self) -> None:
        ours, _ = self.compare("large", "float32", 1)
        self.assertLess(ours, 1e-5)

    def test_base(self) -> None:
        # Long enough to be done in pieces.
        for kernel in ("torch", "onednn"):
            self.use(kernel)
            ours, _ = self.compare("base", "float32", 10)
            self.assertLess(ours, 1e-5)

    def test_baseInBfloat16(self) -> None:
        ours, theirs = self.compare("base", "bfloat16", 1)
        self.assertLessEqual(ours, theirs)


class ConvertedTests(Case):
    """:mod:`transcribed.speech.converted`."""

    def files(self) -> list[str]:
        folder = self.root / converted.FOLDER
        return sorted(p.name for p in folder.iterdir() if p.name != ".lock")

    def copy(self) -> Path:
        place = self.root / "checkpoint"
        shutil.copytree(CHECKPOINT, place)
        return place

    def resolve(self, place: Path = CHECKPOINT, dtype: str = "float32") -> Model:
        return models.resolve(str(place), str(self.root), dtype)

    def count(self) -> list[Path]:
        """Counts the conversions from now on."""
        made: list[Path] = []
        convert = conversion.convert

        def counting(
            model: Model, precision: converted.Precision, device: str, target: Path
        ) -> None:
            made.append(target)
            convert(model, precision, device, target)

        self.patch(conversion, "convert", counting)
        return made

    def test_onceForEachCheckpointAndDtype(self) -> None:
        made = self.count()
        model = self.resolve()
        self.assertEqual((model.kind, model.size, len(made)), ("wav2vec2", 0, 1))
        self.assertEqual(model.shared, Path(model.converted).stat().st_size)
        self.assertEqual(self.resolve(), model)
        self.assertEqual(len(made), 1)
        other = self.resolve(dtype="int8")
        self.assertEqual((other.size, len(made)), (0, 2))
        self.assertLess(other.shared, model.shared / 2)
        self.assertNotEqual(other.mark, model.mark)
        self.assertEqual(self.files(), [Path(other.converted).name], "one is kept")

    def test_otherWeightsAreConvertedAnew(self) -> None:
        made = self.count()
        place = self.copy()
        self.resolve(place)
        weights = place / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        self.resolve(place)
        self.assertEqual(len({*made}), 2)

    def test_onAnotherCPU(self) -> None:
        made = self.count()
        self.resolve()
        self.patch(converted, "cpu", lambda: "another")
        self.resolve()
        self.assertEqual(len({*made}), 2)

    def test_aCUDADeviceIsUsedWhereThereIsOne(self) -> None:
        self.assertEqual(self.resolve().device, "cpu")
        self.patch(converted, "has_cuda", lambda: True)
        self.assertEqual(self.resolve().device, "cuda")
        self.assertEqual(self.resolve(dtype="int8").device, "cpu")

    def test_aBrokenFileIsReplaced(self) -> None:
        # Which one is measured, and may be another one the next time on a busy machine.
        self.patch(conversion, "fastest", lambda dtype: "torch")
        model = self.resolve()
        for broken in (b"", b"rubbish", Path(model.converted).read_bytes()[:-1]):
            Path(model.converted).write_bytes(broken)
            self.assertRaises(ModelUnavailable, converted.read, Path(model.converted))
            self.assertEqual(self.resolve(), model)
            converted.read(Path(model.converted))

    def test_aFailureLeavesNothing(self) -> None:
        """What safetensors leaves of a file that it could not write is deleted by the next try."""

        def fail(tensors: object, path: Path, metadata: object) -> None:
            (path.parent / ".tmpabc123").write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")

        patch = self.patch(conversion, "save_file", fail)
        error = self.assertRaises(ModelUnavailable, self.resolve)
        patch.restore()
        self.assertIn("No space left", str(error))
        model = self.resolve()
        self.assertEqual(self.files(), [Path(model.converted).name])

    def test_aFileThatWentAway(self) -> None:
        model = self.resolve()
        Path(model.converted).unlink()
        error = self.assertRaises(ModelUnavailable, load, model, 1, "")
        self.assertIn("missing", str(error))

    def test_notWhatItSaysItIs(self) -> None:
        place = self.copy()
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
        error = self.assertRaises(ModelUnavailable, self.resolve, place)
        self.assertIn("layers.4", str(error))

    def test_whatIsNotOurs(self) -> None:
        config = json.loads((CHECKPOINT / "config.json").read_text())
        self.assertTrue(converted.supported(config))
        for change in (
            {"architectures": ["HubertForCTC"]},
            {"hidden_act": "relu"},
            {"feat_extract_activation": "relu"},
            {"add_adapter": True},
            {"adapter_attn_dim": 16, "do_stable_layer_norm": False},
        ):
            self.assertFalse(converted.supported({**config, **change}), change)

    def test_theDtypeIsWhatTheCPUDoesFast(self) -> None:
        cases = {
            "avx2 fma": "float32",
            "avx512f avx512_vnni": "float32",
            "avx512f avx512_bf16": "bfloat16",
            "amx_bf16 amx_tile amx_int8": "bfloat16",
        }
        cpuinfo = self.root / "cpuinfo"
        for flags, precision in cases.items():
            cpuinfo.write_text(f"processor\t: 0\nmodel name\t: A\nflags\t\t: fpu {flags}\n\n" * 2)
            self.assertEqual(converted.choose("auto", cpuinfo), precision)
            self.assertEqual(converted.choose("int8", cpuinfo), "int8")
        self.assertEqual(converted.cpu(cpuinfo), "A/fpu amx_bf16 amx_tile amx_int8////")
        cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n")
        self.patch(os, "environ", {"ONEDNN_MAX_CPU_ISA": "AVX2"})
        self.assertEqual(converted.cpu(cpuinfo), "//0xd0c/fp asimd/AVX2/")
        self.assertEqual(converted.choose("auto", self.root / "none"), "float32")
