"""Converting a wav2vec2 checkpoint into the file that workers map, once.

Renames nothing that is the same: see :func:`network` for what is read from it.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from transcribed.errors import ModelUnavailable
from transcribed.recognition import Model
from transcribed.speech.checkpoint import Checkpoint, declared_language
from transcribed.speech.converted import Layout, Precision
from transcribed.speech.models import ctc_weights
from transcribed.speech.packed import ALIGNMENT, content, pack
from transcribed.speech.products import Kernel, fastest, quantize

_LINEARS = (
    "attention.out_proj",
    "feed_forward.intermediate_dense",
    "feed_forward.output_dense",
)


def convert(model: Model, precision: Precision, device: str, target: Path) -> None:
    """Write `target`, in one step; the caller holds the folder's lock.

    :param device: of torch, that it is for.
    :raises ModelUnavailable: when the checkpoint is not what its configuration says.
    :raises OSError: when the file cannot be written.
    """
    checkpoint = Checkpoint(model, (model.languages or ("",))[0])
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    if precision == "int8" and torch.cpu._is_avx512_bf16_supported():
        dtype = "bfloat16"
    kernel = fastest(getattr(torch, dtype)) if device == "cpu" else "torch"
    layout = _layout(model, checkpoint, precision, dtype, kernel)
    # Where there are many languages, each one's adapters are in a file of their own.
    adapted = bool(checkpoint.config.adapter_attn_dim) and model.languages is None
    tensors = dict(_tensors(checkpoint.config, _Weights(model), layout, adapted))
    # Its name comes after its content is on disk: what is there under it is whole.
    made = target.with_name(f".{target.name}.new")
    try:
        _save(tensors, made, {"layout": msgspec.json.encode(layout).decode()})
    except SafetensorError as e:
        raise OSError(str(e)) from e
    with made.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(made, target)


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """As ``save_file`` does, but that the tensors begin with a cache line.

    It writes twice in most cases, as only then the header's length is known.
    """
    save_file(tensors, path, metadata)
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if missing := -(8 + header) % ALIGNMENT:
        # An entry more, of which this is what is written beside its value.
        beside = len(',"padding":""')
        save_file(tensors, path, metadata | {"padding": " " * ((missing - beside) % ALIGNMENT)})


def _layout(
    model: Model, checkpoint: Checkpoint, precision: Precision, dtype: Any, kernel: Kernel
) -> Layout:
    config = checkpoint.config
    languages = model.languages or ("",)
    alphabets = {language: checkpoint.alphabet(language) for language in languages}
    return Layout(
        precision=precision,
        dtype=dtype,
        kernel=kernel,
        kernels=list(config.conv_kernel),
        strides=list(config.conv_stride),
        norm_first=config.do_stable_layer_norm,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        groups=config.num_conv_pos_embedding_groups,
        epsilon=config.layer_norm_eps,
        normalize=checkpoint.features.do_normalize,
        field=checkpoint.geometry.field,
        tokens={language: alphabet.tokens for language, alphabet in alphabets.items()},
        delimiter=alphabets[languages[0]].delimiter,
        language=declared_language(model),
    )


class _Weights:
    """A checkpoint's tensors by their names in transformers; raises :exc:`ModelUnavailable`."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._find: dict[str, Callable[[], Tensor]] = {}
        for file in ctc_weights(Path(model.path)):
            if file.suffix == ".safetensors":
                opened: Any = safe_open(file, framework="pt")
                names = opened.keys()  # a list: it is no dictionary
                self._find.update({name: partial(opened.get_tensor, name) for name in names})
            else:
                # Before torch 1.6 it was no zip file, and cannot be mapped.
                mapped = zipfile.is_zipfile(file)
                loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
                self._find.update({name: partial(loaded.get, name) for name in loaded})

    def __call__(self, *names: str) -> Tensor:
        """The tensor of the first of `names` that there is, in float32."""
        for name in names:
            if name in self._find:
                return self._find[name]().float()
        why = "no CTC head: not fine-tuned" if names[0].startswith("lm_head") else f"no {names[0]}"
        raise ModelUnavailable(f"the weights of {self._model.name} have {why}")


def _tensors(
    config: Any, weights: _Weights, layout: Layout, adapted: bool
) -> Iterable[tuple[str, Tensor]]:
    fast: torch.dtype = getattr(torch, layout.dtype)

    def plain(name: str, *sources: str, kind: torch.dtype = fast) -> Iterable[tuple[str, Tensor]]:
        for part in ("weight", "bias"):
            found = [weights(f"{source}.{part}") for source in sources or (f"wav2vec2.{name}",)]
            yield f"{name}.{part}", torch.cat(found).to(kind)

    def exact(name: str, *sources: str) -> Iterable[tuple[str, Tensor]]:
        return plain(name, *sources, kind=torch.float32)

    def packed(name: str, weight: Tensor) -> Iterable[tuple[str, Tensor]]:
        if layout.kernel == "torch" and weight.is_floating_point():
            yield f"{name}.weight", weight.contiguous()
        else:
            room, description = content(pack(weight))
            yield f"{name}.packed", room
            yield f"{name}.description", description

    def linear(name: str, *sources: str) -> Iterable[tuple[str, Tensor]]:
        (_, weight), bias = plain(name, *sources)
        yield from packed(name, weight)
        yield bias

    def product(name: str, *sources: str) -> Iterable[tuple[str, Tensor]]:
        if layout.precision != "int8":
            yield from linear(name, *sources)
        else:
            (_, weight), (_, bias) = exact(name, *sources)
            quantized, scales = quantize(weight)
            yield from packed(name, quantized)
            yield f"{name}.scales", scales
            yield f"{name}.rest", torch.stack([quantized.sum(1) * scales, bias])

    yield from exact("lm_head", "lm_head")
    for i in range(len(config.conv_dim)):
        name = f"feature_extractor.conv_layers.{i}"
        # (out, in, kernel) becomes (out, kernel * in), as the rows of the view on the input are.
        weight = weights(f"wav2vec2.{name}.conv.weight").permute(0, 2, 1).flatten(1).to(fast)
        # The first one is small, and a group norm is folded into it.
        yield from packed(f"{name}.conv", weight) if i else [(f"{name}.conv.weight", weight)]
        if config.conv_bias:
            yield f"{name}.conv.bias", weights(f"wav2vec2.{name}.conv.bias").to(fast)
        if config.feat_extract_norm == "layer":
            yield from plain(f"{name}.layer_norm")
        elif i == 0:
            yield from exact(f"{name}.time_norm", f"wav2vec2.{name}.layer_norm")
    yield from plain("feature_projection.layer_norm")
    yield from linear("feature_projection.projection")
    yield from _position(weights, fast)
    yield from exact("encoder.layer_norm")
    for i in range(config.num_hidden_layers):
        name = f"encoder.layers.{i}"
        parts = [f"wav2vec2.{name}.attention.{part}_proj" for part in "qkv"]
        yield from product(f"{name}.attention.qkv", *parts)
        for part in _LINEARS:
            yield from product(f"{name}.{part}")
        yield from exact(f"{name}.layer_norm")
        yield from exact(f"{name}.final_layer_norm")
        if adapted:
            for part in ("norm", "linear_1", "linear_2"):
                yield from exact(f"{name}.adapter_layer.{part}")


def _position(weights: _Weights, kind: torch.dtype) -> Iterable[tuple[str, Tensor]]:
    """The positional convolution with its weight norm folded: g * v / |v|, a norm for each tap.

    Salimans & Kingma 2016, "Weight normalization".
    """
    name = "encoder.pos_conv_embed.conv"
    base = f"wav2vec2.{name}"
    g = weights(f"{base}.parametrizations.weight.original0", f"{base}.weight_g")
    v = weights(f"{base}.parametrizations.weight.original1", f"{base}.weight_v")
    weight = v * (g / torch.linalg.vector_norm(v, dim=(0, 1), keepdim=True))
    yield f"{name}.weight", weight.to(kind).contiguous()
    yield f"{name}.bias", weights(f"{base}.bias").to(kind)
