"""Recognizing real speech: audio from the spool, CTC models of several families, Whisper."""

from __future__ import annotations

import difflib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file
from twisted.trial.unittest import SynchronousTestCase

from tests.speech import CHECKPOINT, RATE, STEADY, clip, recording, texts
from transcribed.errors import ModelUnavailable, RecognitionFailed
from transcribed.recognition import CTCResult, Transcription, Window, WindowResult, cut, stitch
from transcribed.speech import Recognizer, Sound, Span, audio, load, models

WHOLE = Span(0, 0, math.inf)
SWEDISH = dict.fromkeys(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyzåäö"])
VOCABULARY = {token: i for i, token in enumerate(SWEDISH)}
VOCABULARY_BY_ID = {i: token for token, i in VOCABULARY.items()}


class Case(SynchronousTestCase):
    """Has a directory of its own."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, self.root)

    def spool(self, samples: Any) -> str:
        path = self.root / "audio"
        path.write_bytes(numpy.asarray(samples, "<i2").tobytes())
        return str(path)

    def load(self, directory: Path, language: str = "") -> Recognizer:
        return load(models.resolve(str(directory), str(self.root), "float32"), 2, language)

    def hear(
        self, recognizer: Recognizer, samples: Any, rate: int, core: int, language: str = ""
    ) -> Transcription:
        """What a daemon would make of a mono recording at `rate` Hz."""
        path = self.spool(samples)
        results = []
        for window in cut(len(samples), rate, core, 3):
            heard = audio.read(path, rate, 1, window.start, window.stop)
            results += [*recognizer.transcribe([Sound(heard, Span.of(window, rate), language)])]
        return stitch(results)


def to_rate(samples: Any, rate: int) -> Any:
    """int16 samples at 16 kHz, at another rate."""
    # Backwards through the function under test would prove nothing: by straight lines instead,
    # which is true enough for tones far below half the rate.
    at = numpy.arange(len(samples) * rate // RATE) * (RATE / rate)
    return numpy.interp(at, numpy.arange(len(samples)), samples).astype("<i2")


def one(recognizer: Recognizer, samples: Any, span: Span, language: str = "") -> WindowResult:
    """What is heard in a window by itself."""
    (result,) = recognizer.transcribe([Sound(samples, span, language)])
    return result


def letters(text: str) -> str:
    return "".join(filter(str.isalpha, text.lower()))


class AudioTests(Case):
    """:mod:`transcribed.speech.audio`."""

    def test_framesOfAllChannelsAreAveraged(self) -> None:
        path = self.spool([[1000, 3000], [-32768, -32768], [32767, 32767], [0, 1]])
        samples = audio.read(path, 16000, 2, 0, 4)
        self.assertEqual(samples.dtype, numpy.float32)
        numpy.testing.assert_allclose(
            samples, [2000 / 32768, -1.0, 32767 / 32768, 0.5 / 32768], atol=1e-7
        )
        numpy.testing.assert_array_equal(audio.read(path, 16000, 2, 1, 3), samples[1:3])
        self.assertEqual(len(audio.read(path, 16000, 2, 2, 2)), 0)

    def test_everyRateGivesTheSameToneAndTheExactLength(self) -> None:
        for rate in (8000, 11025, 16000, 22050, 32000, 44100, 48000):
            for frames in (rate, 3 * rate + 7):
                tone = 10000 * numpy.sin(2 * math.pi * 440 * numpy.arange(frames) / rate)
                samples = audio.read(self.spool(tone), rate, 1, 0, frames)
                self.assertEqual(len(samples), round(frames * 16000 / rate))
                inner = slice(1600, -1600)
                expected = (
                    10000 / 32768 * numpy.sin(2 * math.pi * 440 * numpy.arange(len(samples)) / RATE)
                )
                numpy.testing.assert_allclose(samples[inner], expected[inner], atol=2e-3)

    def test_aPieceIsWhatTheWholeHasThere(self) -> None:
        noise = numpy.random.default_rng(1).integers(-9000, 9000, 5 * 44100)
        path = self.spool(noise)
        whole = audio.read(path, 44100, 1, 0, 5 * 44100)
        piece = audio.read(path, 44100, 1, 2 * 44100, 4 * 44100)
        numpy.testing.assert_allclose(
            piece[1600:-1600], whole[2 * RATE + 1600 : 4 * RATE - 1600], atol=1e-4
        )

    def test_missingAndShortFiles(self) -> None:
        path = self.spool([1, 2, 3])
        self.assertRaises(RecognitionFailed, audio.read, path, 16000, 1, 1, 4)
        self.assertRaises(RecognitionFailed, audio.read, path, 16000, 2, 0, 2)
        self.assertRaises(RecognitionFailed, audio.read, path + "no", 16000, 1, 0, 1)


class SpanTests(SynchronousTestCase):
    """:class:`Span`."""

    def test_isInSeconds(self) -> None:
        windows = cut(int(70.5 * 44100), 44100, 20, 3)
        self.assertEqual(
            [Span.of(w, 44100) for w in windows],
            [Span(0, 0, 23), Span(20, 23, 43), Span(40, 43, 63), Span(60, 63, math.inf)],
        )

    def test_anEmptyRecordingIsOneLastWindow(self) -> None:
        self.assertEqual(Span.of(Window(0, 0, 0, 0, 0), 8000), WHOLE)


class TrainedTests(Case):
    """The tiny trained checkpoint, which knows the words of its clips."""

    recognizer: Recognizer

    def setUp(self) -> None:
        super().setUp()
        if not hasattr(TrainedTests, "recognizer"):
            TrainedTests.recognizer = self.load(CHECKPOINT)

    def test_clips(self) -> None:
        said = texts()
        self.assertGreater(len(said), 5)
        for name, text in said.items():
            samples = clip(name)
            result = self.hear(self.recognizer, samples, RATE, 20)
            self.assertEqual(result.text, text)
            self.assertEqual([w.word for w in result.words], text.split())
            times = [t for w in result.words for t in (w.start, w.end)]
            self.assertEqual(times, sorted(times))
            self.assertLessEqual(times[-1], len(samples) / RATE)
            for word in result.words:
                self.assertTrue(0.3 < word.confidence <= 1, word)

    def test_otherRates(self) -> None:
        name, text = next(iter(texts().items()))
        for rate in (44100, 48000):
            heard = self.hear(self.recognizer, to_rate(clip(name), rate), rate, 20)
            self.assertEqual(heard.text, text)

    def test_tenMinutesInWindows(self) -> None:
        samples, text = recording(600, clips=STEADY)
        self.assertGreater(len(cut(len(samples), RATE, 20, 3)), 25)
        self.assertEqual(self.hear(self.recognizer, samples, RATE, 20).text, text)

    def test_cutOrNot(self) -> None:
        """The windows' frames are those of the uncut recording, times and all."""
        samples, _ = recording(60, seed=2)
        uncut = self.hear(self.recognizer, samples, RATE, 60)
        result = self.hear(self.recognizer, samples, RATE, 5)
        self.assertEqual(result.text, uncut.text)
        for one, other in zip(result.words, uncut.words, strict=True):
            self.assertTrue(abs(one.start - other.start) <= 0.041, (one, other))

    def test_theCoreIsAnsweredForAndNoMore(self) -> None:
        samples, _ = recording(20)
        floats = (samples / 32768).astype(numpy.float32)
        every = one(self.recognizer, floats, WHOLE)
        core = one(self.recognizer, floats, Span(100, 103, 110))
        assert isinstance(every, CTCResult) and isinstance(core, CTCResult)
        self.assertGreaterEqual(min(r.start for r in core.runs), 103 * 50)
        self.assertLessEqual(max(r.start + r.frames for r in core.runs), 110 * 50)
        inside = [r for r in every.runs if r.start >= 150 and r.start + r.frames < 500]
        moved = [r for r in core.runs if r.start > 103 * 50 and r.start + r.frames < 110 * 50]
        self.assertTrue(
            {(r.token, r.start + 5000) for r in inside} >= {(r.token, r.start) for r in moved}
        )
        self.assertGreater(len(moved), 20)

    def test_nextToNothing(self) -> None:
        for length in (0, 1, 399, 400, 401, 719, 720):
            samples = numpy.ones(length, numpy.float32)
            for span in (WHOLE, Span(0, 10, 20)):
                result = one(self.recognizer, samples, span)
                self.assertEqual(stitch([result]).text, "")

    def test_anyLanguageIsTaken(self) -> None:
        """The checkpoint does not say which it has."""
        name, text = next(iter(texts().items()))
        self.assertEqual(self.hear(self.recognizer, clip(name), RATE, 20, "sv").text, text)
        self.assertEqual(self.recognizer.precision, "float32")

    def test_oldWeights(self) -> None:
        """As KBLab published them: ``pytorch_model.bin``, weight norm by its old names."""
        for file in CHECKPOINT.iterdir():
            shutil.copy(file, self.root)
        (self.root / "model.safetensors").unlink()
        weights = load_file(CHECKPOINT / "model.safetensors")
        old = {}
        for name, value in weights.items():
            name = name.replace("parametrizations.weight.original0", "weight_g")
            old[name.replace("parametrizations.weight.original1", "weight_v")] = value
        processor = json.loads((self.root / "processor_config.json").read_text())
        (self.root / "processor_config.json").unlink()
        (self.root / "preprocessor_config.json").write_text(
            json.dumps({**processor["feature_extractor"], "processor_class": "ProcessorWithLM"})
        )
        self.assertTrue(any(name.endswith("weight_g") for name in old))
        name, text = next(iter(texts().items()))
        for as_zip in (True, False):
            path = self.root / "pytorch_model.bin"
            torch.save(old, path, _use_new_zipfile_serialization=as_zip)
            recognizer = self.load(self.root)
            self.assertEqual(self.hear(recognizer, clip(name), RATE, 20).text, text)

    def test_weightsWithoutAHead(self) -> None:
        """A pretrained checkpoint that was never fine-tuned would answer noise."""
        for file in CHECKPOINT.iterdir():
            shutil.copy(file, self.root)
        weights = load_file(CHECKPOINT / "model.safetensors")
        rest = {name: v for name, v in weights.items() if not name.startswith("lm_head")}
        save_file(rest, self.root / "model.safetensors", {"format": "pt"})
        self.assertRaises(ModelUnavailable, self.load, self.root)

    def test_anotherRate(self) -> None:
        for file in CHECKPOINT.iterdir():
            shutil.copy(file, self.root)
        path = self.root / "processor_config.json"
        path.write_text(path.read_text().replace("16000", "8000"))
        self.assertRaises(ModelUnavailable, self.load, self.root)


SMALL = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "pad_token_id": 0,
}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


class FamilyTests(Case):
    """Checkpoints of other families, small and with random weights, against their own decoding."""

    def make(self, kind: str, masked: bool, **options: Any) -> Path:
        torch.manual_seed(1)
        config = getattr(transformers, f"{kind}Config")(**SMALL, **options)
        network = getattr(transformers, f"{kind}ForCTC")(config)
        # Louder, or the same token would win every frame.
        network.lm_head.weight.data *= 100
        network.save_pretrained(self.root)
        transformers.Wav2Vec2FeatureExtractor(
            sampling_rate=RATE, do_normalize=masked, return_attention_mask=masked
        ).save_pretrained(self.root)
        (self.root / "vocab.json").write_text(json.dumps(VOCABULARY))
        transformers.Wav2Vec2CTCTokenizer(self.root / "vocab.json").save_pretrained(self.root)
        return self.root

    def compare(self, directory: Path, kind: str) -> None:
        noise = numpy.random.default_rng(1).normal(0, 0.1, 3 * RATE).astype(numpy.float32)
        result = one(self.load(directory), noise, WHOLE)
        network = getattr(transformers, f"{kind}ForCTC").from_pretrained(directory).eval()
        processor = transformers.Wav2Vec2Processor.from_pretrained(directory)
        with torch.inference_mode():
            logits = network(**processor(noise, sampling_rate=RATE, return_tensors="pt")).logits
        # Special tokens are left out afterwards: they part equal letters, as blanks do.
        text = re.sub("<s>|</s>|<unk>", "", processor.batch_decode(logits.argmax(-1))[0])
        self.assertEqual(stitch([result]).text, " ".join(text.split()))
        self.assertGreater(len(text), 10)
        assert isinstance(result, CTCResult)
        best = logits[0].argmax(-1).tolist()
        for run in result.runs:
            held = best[run.start : run.start + run.frames]
            self.assertEqual(held, [VOCABULARY[run.token]] * run.frames)

    def test_wav2vec2Base(self) -> None:
        self.compare(self.make("Wav2Vec2", False), "Wav2Vec2")

    def test_wav2vec2Large(self) -> None:
        self.compare(self.make("Wav2Vec2", True, **LAYER_NORM), "Wav2Vec2")

    def test_hubert(self) -> None:
        self.compare(self.make("Hubert", True, **LAYER_NORM), "Hubert")

    def test_wavlm(self) -> None:
        self.compare(self.make("WavLM", True, **LAYER_NORM), "WavLM")

    def test_data2vec(self) -> None:
        self.compare(self.make("Data2VecAudio", True, conv_pos_kernel_size=3), "Data2VecAudio")

    def test_unispeech(self) -> None:
        self.compare(self.make("UniSpeechSat", True, **LAYER_NORM), "UniSpeechSat")

    def test_framesOffTheGrid(self) -> None:
        """A convolutional adapter makes frames of 160 ms, which do not fit into a second."""
        directory = self.make("Wav2Vec2", True, add_adapter=True, output_hidden_size=32)
        self.assertRaises(ModelUnavailable, self.load, directory)

    def test_adaptersOfOneLanguage(self) -> None:
        """Fine-tuned from MMS, with a plain vocabulary."""
        self.compare(self.make("Wav2Vec2", True, **LAYER_NORM, adapter_attn_dim=8), "Wav2Vec2")

    def test_mmsSwitchesItsAdapters(self) -> None:
        directory = self.make("Wav2Vec2", True, **LAYER_NORM, adapter_attn_dim=8)
        # Each language has an output layer of its own size, and its own letters.
        swapped = dict(zip(VOCABULARY, [0, 1, 2, 3, 4, *range(33, 4, -1)], strict=True))
        few = {token: i for token, i in VOCABULARY.items() if i < 20}
        vocabulary = {"swe": VOCABULARY, "eng": few, "yws": swapped}
        (directory / "vocab.json").write_text(json.dumps(vocabulary))
        config = json.loads((directory / "tokenizer_config.json").read_text())
        config["target_lang"] = "swe"
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        network = transformers.Wav2Vec2ForCTC.from_pretrained(directory)
        adapters = {name: value.clone() for name, value in network._get_adapters().items()}
        save_file(adapters, directory / "adapter.swe.safetensors", {"format": "pt"})
        save_file(adapters, directory / "adapter.yws.safetensors", {"format": "pt"})
        for name in ("lm_head.weight", "lm_head.bias"):
            adapters[name] = adapters[name][:20].clone()
        save_file(adapters, directory / "adapter.eng.safetensors", {"format": "pt"})

        recognizer = self.load(directory)
        noise = numpy.random.default_rng(1).normal(0, 0.1, 3 * RATE).astype(numpy.float32)

        def hear(language: str) -> str:
            return stitch([one(recognizer, noise, WHOLE, language)]).text

        swedish = hear("")
        self.assertGreater(len(swedish), 10)
        reverse = {token: VOCABULARY_BY_ID[i] for token, i in swapped.items()}
        mirrored = "".join(reverse.get(c, c) for c in hear("yws"))
        self.assertEqual(mirrored, swedish)
        english = hear("eng")
        self.assertNotEqual(english, swedish)
        self.assertTrue(set(english) <= set(few) | {" "}, english)
        self.assertEqual(hear("swe"), swedish)
        self.assertEqual(hear(""), swedish)
        self.assertRaises(RecognitionFailed, hear, "fra")
        self.assertEqual(hear("swe"), swedish)

        recognizer = self.load(directory, "eng")
        self.assertEqual(hear(""), english)
        for other in ("swe", "yws"):
            (directory / f"adapter.{other}.safetensors").unlink()
        recognizer = self.load(directory, "eng")
        self.assertEqual(hear(""), english, "it need not have the language that it declares")
        self.assertRaises(ModelUnavailable, self.load, directory, "fra")
        config["target_lang"] = "fra"
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        self.assertRaises(ModelUnavailable, self.load, directory)


class WhisperTests(Case):
    """The embedded Whisper base."""

    def test_hearsSpeechAndNoSilence(self) -> None:
        model = models.resolve("embedded", str(self.root))
        recognizer = load(model, 2, "sv")
        self.assertEqual(recognizer.precision, "int8")
        names = ("11.flac", "04.flac")
        pause = numpy.zeros(RATE, numpy.int16)
        samples = numpy.concatenate([clip(names[0]), pause, clip(names[1])])
        spoken = "".join(texts()[name] for name in names)
        result = self.hear(recognizer, samples, RATE, model.core, "sv")
        # It was not made for a robot that says words without a sense: most letters are enough.
        alike = difflib.SequenceMatcher(None, letters(spoken), letters(result.text)).ratio()
        self.assertGreater(alike, 0.6, result.text)
        times = [t for w in result.words for t in (w.start, w.end)]
        self.assertEqual(times, sorted(times))
        self.assertLessEqual(times[-1], len(samples) / RATE + 0.5)

        floats = (samples / 32768).astype(numpy.float32)
        middle = (result.words[0].start + result.words[-1].end) // 2
        core = stitch([one(recognizer, floats, Span(100, 100, 100 + middle), "sv")])
        self.assertEqual(
            core.words[0].start, round(result.words[0].start + 100, 3), "times are the recording's"
        )
        for word in core.words:
            self.assertLess((word.start + word.end) / 2, 100 + middle)
        self.assertLess(len(core.words), len(result.words))

        noise = numpy.random.default_rng(1).normal(0, 0.02, 5 * RATE).astype(numpy.float32)
        for silent in (noise, numpy.zeros(20 * RATE, numpy.float32), noise[:10], noise[:0]):
            self.assertEqual(stitch([one(recognizer, silent, WHOLE, "sv")]).text, "")
        self.assertRaises(RecognitionFailed, one, recognizer, noise, WHOLE, "tlh")
        self.assertRaises(ModelUnavailable, load, model, 2, "tlh")

    def test_importsNoTorch(self) -> None:
        code = "import sys, transcribed.speech.whisper; sys.exit('torch' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKPOINT.parent.parent)
