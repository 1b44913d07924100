"""A wav2vec2 checkpoint as one file that every worker maps: where it is, and what its header says.

The first start converts the checkpoint (:mod:`transcribed.speech.conversion`) into a safetensors
file beside the other models of the cache: weights in the dtype that is computed in, laid out as
:mod:`transcribed.speech.wav2vec2` uses them, and in the header all that a worker needs to know.
Workers map it, so that however many there are, there is one copy of the weights in memory.

Imports no torch: a later start finds the file in a moment.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
from safetensors import SafetensorError, safe_open

from transcribed.errors import ModelUnavailable
from transcribed.recognition import Model

FOLDER = "converted"
FORMAT = 2
"""Of the converted files. One of another format is not read, but made again."""
BATCH_SECONDS = 10.0
"""Up to here a batch of short windows is faster than the windows one by one."""

Precision = Literal["float32", "bfloat16", "int8"]

_LOCK = ".lock"
_BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}


class Layout(msgspec.Struct, frozen=True):
    """What the header says beside names and shapes.

    :ivar precision: of the products; with int8, what is not quantized is in `dtype`.
    :ivar kernel: the fastest one on the CPU that it was converted on; torch's for other devices.
    :ivar kernels: of the extractor's convolutions, as `strides` are.
    :ivar norm_first: whether a block's norms come before its parts ("stable layer norm").
    :ivar normalize: whether samples are brought to zero mean and unit variance.
    :ivar tokens: by language, see :class:`transcribed.speech.decoding.Alphabet`; of a checkpoint
        without adapters, by the empty string.
    :ivar language: which of the languages is recognized where nobody asks; empty if there are none.
    """

    precision: Precision
    dtype: Literal["float32", "bfloat16"]
    kernel: Literal["torch", "onednn", "onednn-gelu"]
    kernels: list[int]
    strides: list[int]
    norm_first: bool
    layers: int
    heads: int
    groups: int
    epsilon: float
    normalize: bool
    field: int
    tokens: dict[str, list[str | None]]
    delimiter: str
    language: str


def supported(config: Any) -> bool:
    """Whether a checkpoint's ``config.json`` describes a network that we have."""
    return (
        config.get("architectures") == ["Wav2Vec2ForCTC"]
        and config.get("feat_extract_activation", "gelu") == "gelu"
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("feat_extract_norm", "group") in ("layer", "group")
        and not config.get("add_adapter", False)
        # transformers has the languages' adapters in the blocks with the norms first only.
        and (not config.get("adapter_attn_dim") or bool(config.get("do_stable_layer_norm")))
    )


def find(model: Model, cache_dir: Path, dtype: str) -> Model:
    """`model`, of the kind ``ctc``, as one of the kind ``wav2vec2``: converted, now if need be.

    :param dtype: one of :data:`transcribed.recognition.DTYPES`.
    :raises ModelUnavailable: when it cannot be converted.
    """
    precision = choose(dtype)
    device = "cuda" if has_cuda() and precision != "int8" else "cpu"  # int8 products are oneDNN's
    # Another CPU has another fastest kernel, and weights are packed for it, and for this torch.
    made_for = (FORMAT, model.digest, precision, device, cpu(), version("torch"))
    key = hashlib.sha256("/".join(map(str, made_for)).encode()).hexdigest()[:32]
    folder = cache_dir / FOLDER
    target = folder / f"{key}.safetensors"
    try:
        with _locked(folder):
            layout = _read(target)
            if layout is None:
                # It takes a while to import, and later starts have no use for it.
                from transcribed.speech import conversion

                _clear(folder, target)
                conversion.convert(model, precision, device, target)
                layout = read(target)
                _clear(folder, target)
            size = target.stat().st_size
    except OSError as e:
        reason = e.strerror or str(e) or type(e).__name__
        raise ModelUnavailable(f"{model.name} cannot be converted in {folder}: {reason}") from e
    return msgspec.structs.replace(
        model,
        kind="wav2vec2",
        device=device,
        converted=str(target),
        digest=f"{model.digest}/{layout.precision}",
        size=0,
        shared=size,
        batch=BATCH_SECONDS,
    )


def read(target: Path) -> Layout:
    """The header of a converted file; raises :exc:`ModelUnavailable` when it is none."""
    layout = _read(target)
    if layout is None:
        raise ModelUnavailable(
            f"{target} is missing or damaged: restart the daemon to make it again"
        )
    return layout


def _read(target: Path) -> Layout | None:
    try:
        with safe_open(target, framework="numpy") as file:
            return msgspec.json.decode(file.metadata()["layout"], type=Layout)
    except (FileNotFoundError, SafetensorError, msgspec.MsgspecError, KeyError, TypeError):
        return None


def _clear(folder: Path, target: Path) -> None:
    """Delete what an interrupted conversion left, and the files of other models."""
    for path in folder.iterdir():
        if path.name != _LOCK and path != target:
            path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def choose(dtype: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> Precision:
    """What to compute in: bfloat16 where the machine is fast at it, where nothing else is asked."""
    if dtype in ("float32", "bfloat16", "int8"):
        return dtype  # type: ignore[return-value]
    if has_cuda():
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if _BFLOAT16_FLAGS & set(_fields(cpuinfo, "flags").split()) else "float32"


def has_cuda() -> bool:
    """Whether there is a CUDA device that torch can use."""
    # Importing torch takes seconds; without a driver there is no device.
    if not os.path.exists("/proc/driver/nvidia/version"):
        return False
    import torch

    return bool(torch.cuda.is_available())


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Names the CPU, what it can do, and what oneDNN may use of that."""
    # The latter two are what there is on ARM.
    found = (_fields(cpuinfo, name) for name in ("model name", "flags", "CPU part", "Features"))
    allowed = (os.environ.get(f"{library}_MAX_CPU_ISA", "") for library in ("ONEDNN", "DNNL"))
    return "/".join((*found, *allowed))


def _fields(cpuinfo: Path, name: str) -> str:
    """The first processor's field of that name; empty where there is none."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    return next(
        (v.strip() for k, _, v in (x.partition(":") for x in lines) if k.strip() == name), ""
    )
