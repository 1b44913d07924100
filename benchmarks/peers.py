"""The engines that are measured: ours and its peers, each set up as well as it can be.

Nothing is imported before an engine is made, in a process of its own.
"""

# mypy: disable-error-code="import-not-found,import-untyped"
# The peers' packages are not installed where only the daemon is worked on.

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy
import numpy.typing

RATE = 16000

Floats = numpy.typing.NDArray[numpy.float32]


@dataclass(frozen=True)
class Setting:
    """What an engine is made from.

    :ivar checkpoint: the directory of a ``Wav2Vec2ForCTC``.
    :ivar work: a directory for what engines convert it to.
    :ivar threads: how many threads it is to compute with.
    """

    checkpoint: Path
    work: Path
    threads: int


@dataclass(frozen=True)
class Heard:
    """What an engine makes of sounds.

    :ivar logits: for each what the network gives, shape (frames, tokens); None where it is not to
        be had.
    :ivar tokens: for each the most probable token of each frame, the blank as an empty text.
    """

    logits: list[Floats] | None
    tokens: list[list[str]]


class Engine(Protocol):
    """A loaded model.

    :ivar precision: what it computes in, as torch names it.
    """

    precision: str

    def run(self, sounds: Sequence[Floats]) -> object:
        """Hear `sounds`, equally long, at 16 kHz: what is timed."""

    def heard(self, sounds: Sequence[Floats]) -> Heard:
        """The same, for comparing the answers."""


class Ours:
    """The daemon's own recognizer, as its workers use it."""

    def __init__(self, setting: Setting, dtype: str) -> None:
        """Convert the checkpoint, if that was not yet done, and load it."""
        from transcribed import speech
        from transcribed.speech import models

        cache = setting.work / "ours"
        cache.mkdir(exist_ok=True)
        model = models.resolve(str(setting.checkpoint), str(cache), dtype)
        self._recognizer: Any = speech.load(model, setting.threads, "")
        self.precision: str = self._recognizer.precision

    def run(self, sounds: Sequence[Floats]) -> Any:
        """See :class:`Engine`."""
        from transcribed.speech import Sound, Span

        return self._recognizer.transcribe([Sound(s, Span(0, 0, math.inf), "") for s in sounds])

    def heard(self, sounds: Sequence[Floats]) -> Heard:
        """See :class:`Engine`. The tokens end with the last that is not the blank."""
        tokens = []
        for result in self.run(sounds):
            frames: list[str] = []
            for run in result.runs:
                frames += [""] * (run.start - len(frames)) + [run.token] * run.frames
            tokens.append(frames)
        # A checkpoint that cannot be converted runs on transformers, and gives no logits.
        logits = getattr(self._recognizer, "logits", None)
        return Heard(logits and [logits(sound) for sound in sounds], tokens)


class Network:
    """An engine that makes logits from a batch of normalised samples.

    :param forward: from float32 of shape (batch, samples) to (batch, frames, tokens).
    """

    def __init__(self, setting: Setting, precision: str, forward: Callable[[Floats], Any]) -> None:
        from transformers import AutoFeatureExtractor, Wav2Vec2CTCTokenizer

        self.precision = precision
        self._forward = forward
        self._features = AutoFeatureExtractor.from_pretrained(setting.checkpoint)
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(setting.checkpoint)
        special = ("pad_token", "bos_token", "eos_token", "unk_token")
        silent = {getattr(tokenizer, name) for name in special}
        vocabulary = json.loads((setting.checkpoint / "vocab.json").read_text())
        self._tokens = {i: "" if token in silent else token for token, i in vocabulary.items()}

    def run(self, sounds: Sequence[Floats]) -> Floats:
        """See :class:`Engine`."""
        batch = self._features(
            list(sounds), sampling_rate=RATE, return_attention_mask=False, return_tensors="np"
        )
        logits: Floats = self._forward(batch.input_values)
        return logits

    def heard(self, sounds: Sequence[Floats]) -> Heard:
        """See :class:`Engine`."""
        logits = self.run(sounds)
        best = logits.argmax(-1).tolist()
        return Heard(list(logits), [[self._tokens.get(i, "") for i in ids] for ids in best])


def _pretrained(setting: Setting, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCTC

    torch.set_num_threads(setting.threads)
    return AutoModelForCTC.from_pretrained(setting.checkpoint, dtype=getattr(torch, dtype)).eval()


def _torch(setting: Setting, network: Any, precision: str, dtype: str) -> Network:
    import torch

    def forward(batch: Floats) -> Any:
        with torch.inference_mode():
            samples = torch.from_numpy(batch).to(getattr(torch, dtype))
            return network(samples).logits.float().numpy()

    return Network(setting, precision, forward)


def transformers(setting: Setting, dtype: str) -> Network:
    """The library that checkpoints are made with, as most people run it, or in bfloat16."""
    return _torch(setting, _pretrained(setting, dtype), dtype, dtype)


def transformers_int8(setting: Setting) -> Network:
    """The same, its linear layers quantized as they run."""
    import torch

    network = _pretrained(setting, "float32")
    quantized = torch.ao.quantization.quantize_dynamic(
        network, {torch.nn.Linear}, dtype=torch.qint8
    )
    return _torch(setting, quantized, "int8", "float32")


def compiled(setting: Setting, dtype: str) -> Network:
    """The same, compiled by inductor, for one size."""
    import torch

    # The weights are constants: a third faster here, for a few seconds more of compiling.
    torch._inductor.config.freezing = True
    network = torch.compile(_pretrained(setting, dtype), dynamic=False)
    return _torch(setting, network, dtype, dtype)


def openvino(setting: Setting, hint: str) -> Network:
    """Intel's engine, for its own and other processors."""
    from openvino import Core, convert_model, save_model

    model = setting.work / "openvino.xml"
    if not model.exists():
        network, example = _traceable(setting)
        save_model(convert_model(network, example_input=example), model, compress_to_fp16=False)
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": setting.threads,
    }
    compiled = Core().compile_model(model, "CPU", options)
    # It takes float32 without a word where the processor has no bfloat16.
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    request = compiled.create_infer_request()
    return Network(
        setting,
        {"f32": "float32", "bf16": "bfloat16"}[used],
        lambda batch: request.infer([batch])[0].copy(),
    )


def onnxruntime(setting: Setting, precision: str) -> Network:
    """Microsoft's engine, its products quantized as they run where `precision` is int8."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    # Its threads wait actively during a run, but not while it is others' turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    file = _onnx(setting) if precision == "float32" else _onnx_int8(setting)
    session = InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return Network(setting, precision, lambda batch: session.run(None, {"samples": batch})[0])


def _onnx(setting: Setting) -> Path:
    file = setting.work / "float32.onnx"
    if not file.exists():
        import torch

        network, example = _traceable(setting)
        sizes = {0: "batch", 1: "time"}
        # By tracing: what torch.export gives took 5 % longer to run, and longer to make.
        torch.onnx.export(
            network,
            (example,),
            file,
            dynamo=False,
            opset_version=20,
            input_names=["samples"],
            output_names=["logits"],
            dynamic_axes={"samples": sizes, "logits": sizes},
        )
    return file


def _onnx_int8(setting: Setting) -> Path:
    file = setting.work / "int8.onnx"
    if not file.exists():
        from onnxruntime.quantization import quantize_dynamic

        # Not the convolutions: quantized as they run they only get slower.
        quantize_dynamic(_onnx(setting), file, op_types_to_quantize=["MatMul"], per_channel=True)
    return file


def _traceable(setting: Setting) -> tuple[Any, Any]:
    """A module from samples to logits alone, for exporters, and an example of its input."""
    import torch

    class Logits(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = _pretrained(setting, "float32")

        def forward(self, samples: Any) -> Any:
            return self.network(samples).logits

    return Logits().eval().requires_grad_(False), torch.randn(2, 3 * RATE)


def ctranslate2(setting: Setting, precision: str) -> Network:
    """The engine under faster-whisper."""
    from ctranslate2 import StorageView
    from ctranslate2.converters import TransformersConverter
    from ctranslate2.models import Wav2Vec2

    folder = setting.work / "ctranslate2"
    if not folder.exists():
        TransformersConverter(str(setting.checkpoint)).convert(str(folder))
    model = Wav2Vec2(
        str(folder), compute_type=precision, intra_threads=setting.threads, inter_threads=1
    )

    def forward(batch: Floats) -> Any:
        return numpy.array(model.encode(StorageView.from_array(batch[:, None])))

    return Network(setting, precision, forward)


@dataclass(frozen=True)
class Peer:
    """A way to make an engine.

    :ivar packages: what must be installed for it.
    :ivar bf16: whether it computes in bfloat16, which only some processors do fast.
    :ivar one_size: whether it is compiled for a size, and then keeps a copy of all weights that is
        arranged for that: for the next size it is made anew, or would fill the memory.
    """

    make: Callable[[Setting], Engine]
    packages: tuple[str, ...] = ()
    bf16: bool = False
    one_size: bool = False

    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


REFERENCE = "transformers-fp32"
"""What the others' answers are held against."""

OURS = "ours"
"""In the precision that the daemon chooses."""

PEERS = {
    REFERENCE: Peer(partial(transformers, dtype="float32")),
    OURS: Peer(partial(Ours, dtype="auto")),
    "ours-fp32": Peer(partial(Ours, dtype="float32")),
    "ours-bf16": Peer(partial(Ours, dtype="bfloat16"), bf16=True),
    "ours-int8": Peer(partial(Ours, dtype="int8")),
    "transformers-bf16": Peer(partial(transformers, dtype="bfloat16"), bf16=True),
    "transformers-int8": Peer(transformers_int8),
    "compile-fp32": Peer(partial(compiled, dtype="float32"), one_size=True),
    "compile-bf16": Peer(partial(compiled, dtype="bfloat16"), bf16=True, one_size=True),
    "openvino-fp32": Peer(partial(openvino, hint="f32"), ("openvino",)),
    "openvino-bf16": Peer(partial(openvino, hint="bf16"), ("openvino",), bf16=True),
    "onnxruntime-fp32": Peer(partial(onnxruntime, precision="float32"), ("onnx",)),
    "onnxruntime-int8": Peer(partial(onnxruntime, precision="int8"), ("onnx",)),
    "ctranslate2-fp32": Peer(partial(ctranslate2, precision="float32")),
    "ctranslate2-bf16": Peer(partial(ctranslate2, precision="bfloat16"), bf16=True),
    "ctranslate2-int8": Peer(partial(ctranslate2, precision="int8")),
}
