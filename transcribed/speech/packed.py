"""Weights as oneDNN wants them for its products, in a file that all workers map.

From plain weights oneDNN makes such a copy in each call, which takes the longer, next to the
product, the shorter a window is. torch packs weights for its own compiler, in memory of each
process; the way by which it loads what it has compiled is used here to have them in a mapped file.
(``aoti_torch_create_tensor_from_blob_v2``, of its C interface for compiled models.)

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
"""For how many rows weights are packed. Products of any other number are right as well."""

_CAPSULE = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


def pack(weight: Tensor) -> Tensor:
    """Weights of shape (out, in), packed: opaque, for oneDNN's products only.

    :param weight: int8, float32, or, where the CPU has instructions for it, bfloat16.
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


def mapped(room: Tensor, description: Tensor, dtype: torch.dtype) -> Tensor:
    """The packed weights that are in `room`, which is not copied, and lives as long as they do.

    :param room: int64, on the CPU; best at an address that is a multiple of :data:`ALIGNMENT`.
    :param description: uint8. It is what shape, arrangement and size are taken from.
    :param dtype: of the weights.
    :raises ValueError: when `room` is smaller than what is described.
    :raises RuntimeError: when torch cannot use it.
    """
    library = _library()
    handle = ctypes.c_void_p()
    described = description.numpy().tobytes()
    nothing = (ctypes.c_int64 * 2)()
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(room.data_ptr()),
        ctypes.c_int64(2),
        nothing,
        nothing,
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
        raise RuntimeError("torch cannot use packed weights")
    # It does not steal, in spite of its name: it makes another reference.
    weights: Any = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(
        _CAPSULE(handle, None, None)
    )
    library.aoti_torch_delete_tensor_object(handle)
    if torch.ops.mkldnn._nbytes(weights) > room.nbytes:
        raise ValueError("packed weights are incomplete")
    weights.room = room
    tensor: Tensor = weights
    return tensor


@cache
def _library() -> Any:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
