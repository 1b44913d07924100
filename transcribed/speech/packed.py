"""Weights as oneDNN wants them for its products, in a file that all workers map.

From plain weights oneDNN makes such a copy in each call: for a message of a second that takes a
good part of the time of the product. torch keeps a packed copy for its own compiler only, in memory
of its own, one for each process; how it loads compiled models again is the way used here to have
them in memory of ours. (``aoti_torch_create_tensor_from_blob_v2``, of torch's stable C interface.)

What is packed is for one version of torch on one kind of CPU.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes: a cache line."""

ROWS = 256
"""How many rows are packed for; others are computed from the same."""


def pack(weight: Tensor) -> Tensor:
    """Weights of shape (out, in), packed: opaque, but of the same shape and dtype.

    :raises RuntimeError: where oneDNN has no products of that dtype on this CPU.
    """
    packed: Tensor
    if weight.dtype == torch.int8:
        packed = torch.ops.onednn.qlinear_prepack(weight, [ROWS, weight.shape[1]])
    else:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    return packed


def content(packed: Tensor) -> tuple[Tensor, Tensor]:
    """What is in packed weights, and oneDNN's description of how: for :func:`mapped`.

    :returns: int64 and uint8, of one dimension each.
    """
    size = torch.ops.mkldnn._nbytes(packed)
    # Whole cache lines, in the largest dtype, as that is what safetensors puts first in a file:
    # so they all begin with a cache line if the first does.
    room = torch.zeros(-(-size // ALIGNMENT) * ALIGNMENT // 8, dtype=torch.int64)
    ctypes.memmove(room.data_ptr(), torch.ops.mkldnn.data_ptr(packed), size)
    return room, torch.ops.mkldnn._get_mkldnn_serialized_md(packed)


def mapped(room: Tensor, description: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The packed weights that are in `room`, which is not copied."""
    library = _library()
    handle = ctypes.c_void_p()
    described = description.numpy().tobytes()
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(room.data_ptr()),
        ctypes.c_int64(2),
        (ctypes.c_int64 * 2)(*shape),
        (ctypes.c_int64 * 2)(shape[1], 1),
        ctypes.c_int64(0),
        ctypes.c_int32(getattr(library, f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")()),
        ctypes.c_int32(library.aoti_torch_device_type_cpu()),
        ctypes.c_int32(-1),
        ctypes.byref(handle),
        ctypes.c_int32(library.aoti_torch_layout__mkldnn()),
        ctypes.c_char_p(described),
        ctypes.c_int64(len(described)),
    )
    if failed:
        raise RuntimeError("torch cannot use the packed weights")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
    weights: Any = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(
        capsule(handle, None, None)
    )
    weights.room = room  # to live as long
    tensor: Tensor = weights
    return tensor


@cache
def _library() -> Any:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
