"""Packed weights: the same products, of memory that is not copied."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import torch
from twisted.trial.unittest import SynchronousTestCase

from transcribed.speech.conversion import _save
from transcribed.speech.packed import ALIGNMENT, content, mapped, pack
from transcribed.speech.products import Linear, QuantizedLinear, quantize

SHAPES = [(1, 3), (46, 70), (70, 100), (128, 64), (512, 1536)]
"""Of weights: (out, in)."""


class PackedTests(SynchronousTestCase):
    """What is mapped is what was packed."""

    def setUp(self) -> None:
        torch.manual_seed(1)

    def weights(self, shape: tuple[int, int]) -> torch.Tensor:
        return torch.randn(shape)

    def test_products(self) -> None:
        for shape in SHAPES:
            weight = self.weights(shape)
            dtypes = [torch.float32]
            if torch.ops.mkldnn._is_mkldnn_bf16_supported():
                dtypes.append(torch.bfloat16)
            for dtype in dtypes:
                plain = weight.to(dtype)
                again = mapped(*content(pack(plain)), dtype)
                for rows in (1, 7, 300):
                    x = torch.randn(rows, shape[1]).to(dtype)
                    with torch.inference_mode():
                        product = Linear(again, None, "onednn")(x).double()
                    exact = x.double() @ plain.double().t()
                    most = x.double().abs() @ plain.double().abs().t() * torch.finfo(dtype).eps * 4
                    self.assertTrue(((product - exact).abs() <= most).all())

    def test_quantizedProducts(self) -> None:
        for shape in SHAPES:
            weight, scales = quantize(self.weights(shape))
            bias = torch.arange(shape[0]) / 10
            rest = torch.stack([weight.sum(1) * scales, bias])
            product = QuantizedLinear.of(mapped(*content(pack(weight)), torch.int8), scales, rest)
            for rows in (1, 7, 300):
                x = torch.randn(rows, shape[1])
                exact = x @ (weight * scales[:, None]).t() + bias
                with torch.inference_mode():
                    # A step of the input's range, for each of the weights that it is multiplied by.
                    step = (x.amax() - x.amin()) / product.levels
                    most = step * (weight.abs() * scales[:, None]).sum(1)
                    self.assertTrue(((product(x) - exact).abs() <= most + 1e-4).all())

    def test_theRoomIsNotCopied(self) -> None:
        room, description = content(pack(self.weights((64, 64))))
        weights = mapped(room, description, torch.float32)
        self.assertEqual(torch.ops.mkldnn.data_ptr(weights), room.data_ptr())

    def test_theRoomLivesAsLong(self) -> None:
        room, description = content(pack(self.weights((64, 64))))
        weights = mapped(room, description, torch.float32)
        alive = weakref.ref(weights), weakref.ref(room)
        del room
        gc.collect()
        self.assertIsNotNone(alive[1]())
        del weights
        gc.collect()
        self.assertEqual([reference() for reference in alive], [None, None])

    def test_memoryIsGivenBack(self) -> None:
        """No reference is left behind in torch, where no garbage collector sees it."""
        packed = content(pack(self.weights((512, 512))))
        before = pages()
        for _ in range(100):
            room, description = packed[0].clone(), packed[1]
            mapped(room, description, torch.float32)
        # A hundred would be 100 MB.
        self.assertLess((pages() - before) * 4096, 20e6)

    def test_tooLittleRoom(self) -> None:
        room, description = content(pack(self.weights((64, 64))))
        self.assertRaises(ValueError, mapped, room[:-8], description, torch.float32)

    def test_tensorsInAFileBeginWithACacheLine(self) -> None:
        path = Path(self.mktemp())
        tensors = {"a": torch.zeros(3, dtype=torch.int64), "b": torch.zeros(5)}
        for length in range(ALIGNMENT + 1):
            _save(tensors, path, {"layout": json.dumps({"some": "x" * length})})
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            self.assertEqual((8 + size) % ALIGNMENT, 0)
            self.assertEqual(header["a"]["data_offsets"], [0, 24])


def pages() -> int:
    """How many of its own pages this process has in memory."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return resident - shared
