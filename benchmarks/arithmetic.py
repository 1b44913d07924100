"""How much there is to compute, and how fast the cores can: the yardstick beside the peers."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# Frames of 10 s of audio, and the feed-forward layer of wav2vec2-large.
_ROWS, _INNER, _OUTER = 499, 1024, 4096
_TIMES = 10


def operations(checkpoint: Path, samples: int) -> float:
    """Multiplications and additions of one window in its convolutions and matrix products."""
    shape = json.loads((checkpoint / "config.json").read_text())
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    frames, channels, total = samples, 1, 0
    for outputs, kernel, stride in zip(
        shape["conv_dim"], shape["conv_kernel"], shape["conv_stride"], strict=True
    ):
        frames = (frames - kernel) // stride + 1
        total += frames * kernel * channels * outputs
        channels = outputs
    total += frames * channels * width
    grouped = width // shape["num_conv_pos_embedding_groups"]
    total += frames * shape["num_conv_pos_embeddings"] * grouped * width
    products = 4 * width * width + 2 * width * inner
    attention = 2 * frames * width  # scores, and values by scores
    total += shape["num_hidden_layers"] * frames * (products + attention)
    total += frames * width * shape["vocab_size"]
    return 2.0 * float(total)


class Peak:
    """What torch's and oneDNN's matrix products reach, in 10^9 operations a second."""

    def __init__(self, threads: int, precisions: Iterable[str]) -> None:
        """Make ready to measure with `threads` threads."""
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(1)
        with torch.inference_mode():
            self._ways = {p: _quantized() if p == "int8" else _floating(p) for p in precisions}

    def rates(self) -> dict[str, float]:
        """The rate of the fastest way for each precision, now."""
        return {precision: max(map(_rate, ways)) for precision, ways in self._ways.items()}


def _floating(precision: str) -> list[Callable[[], object]]:
    import torch

    dtype = getattr(torch, precision)
    x, weight = torch.randn(_ROWS, _INNER).to(dtype), torch.randn(_OUTER, _INNER).to(dtype)
    ways: list[Callable[[], object]] = [lambda: torch.nn.functional.linear(x, weight)]
    # oneDNN's own arrangement of the weights, where the processor is one that it has it for.
    if precision == "float32" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    return ways


def _quantized() -> list[Callable[[], object]]:
    import torch

    x = torch.randint(0, 255, (_ROWS, _INNER), dtype=torch.uint8)
    weight = torch.randint(-127, 127, (_OUTER, _INNER), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [_ROWS, _INNER])
    scales, zeros = torch.rand(_OUTER) * 0.01, torch.zeros(_OUTER, dtype=torch.int32)
    return [
        lambda: torch.ops.onednn.qlinear_pointwise(
            x, 0.02, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
    ]


def _rate(way: Callable[[], object]) -> float:
    import torch

    seconds = []
    with torch.inference_mode():
        way()
        for _ in range(_TIMES):
            started = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - started)
    return 2e-9 * _ROWS * _INNER * _OUTER / statistics.median(seconds)
