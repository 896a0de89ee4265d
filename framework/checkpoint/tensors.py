"""Tensors as the bytes of a safetensors file, and back: https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from framework.checkpoint.codec import bounded, parse
from framework.errors import CheckpointError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
COUNT, RANK = 100_000, 16  # tensors of a file, dimensions of a tensor


def written(tensors: dict[str, Tensor]) -> list[bytes | memoryview]:
    """The pieces of a safetensors file, in order; those of contiguous CPU tensors are their own memory, not copies.

    Raises:
        CheckpointError: a kind of tensor that safetensors does not know, with its name; more than `load` would read
    """
    # the widest kinds first, as the official writer does it, so that each tensor is aligned for its kind
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    pieces = [_memory(name, tensors[name]) for name in names]
    header, end = {}, 0
    for name, piece in zip(names, pieces, strict=True):
        begin, end = end, end + piece.nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _NAMES[tensors[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(names) > COUNT:
        raise CheckpointError(f"{len(names):,} tensors; a checkpoint holds at most {COUNT:,} in a file")
    return [len(text).to_bytes(8, "little") + bounded(text), *pieces]


def _memory(name: str, tensor: Tensor) -> memoryview:
    try:
        if tensor.dtype not in _NAMES or tensor.ndim > RANK or name == "__metadata__":
            raise TypeError
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        flat = plain.as_strided((plain.numel(),), (1,))  # a single number may have any stride, and view minds
        return flat.view(torch.uint8).numpy().data
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"{tensor.layout} {tensor.dtype} on {tensor.device}".replace("torch.", "")
        raise CheckpointError(f"{name} is a tensor ({kind}) that a checkpoint cannot hold") from error


def load(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU, in memory of their own.

    Raises:
        CheckpointError: anything that `written` does not make; safetensors itself is more lenient
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    if data[8:9] != b"{":
        raise CheckpointError("tensors without a header")
    header = parse(data[8:begin])
    if len(header) > COUNT:
        raise CheckpointError(f"{len(header):,} tensors, and at most {COUNT:,} are read")
    for name, entry in header.items():
        if not _is_entry(entry) or name == "__metadata__":
            raise CheckpointError(f"the tensor {name!a:.80} is described by {entry!a:.120}")
    end = 0
    for first, last in sorted(entry["data_offsets"] for entry in header.values()):
        if first != end:
            raise CheckpointError("tensors that overlap, or with a gap between them")
        end = last
    if begin + end != len(data):
        raise CheckpointError(f"{len(data) - begin:,} bytes of tensors, and {end:,} are described")
    for name, entry in header.items():
        if entry["dtype"] == "BOOL":
            first, last = entry["data_offsets"]
            if numpy.frombuffer(data, numpy.uint8, last - first, begin + first).max(initial=0) > 1:
                raise CheckpointError(f"the tensor {name!a:.80} is of bool and has a byte that is neither 0 nor 1")
    try:
        found = safetensors.torch.load(data)
        return {name: found[name] for name in header}
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError, AssertionError) as error:
        raise CheckpointError(f"safetensors cannot read the tensors: {error!s:.200}") from error


def _is_entry(entry: Any) -> bool:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(first), int(last)], **more}:
            whole = [*shape, first, last]
            if more or dtype not in DTYPES or len(shape) > RANK or not all(type(n) is int and n >= 0 for n in whole):
                return False
            # a dimension of 0 may not hide that the others are beyond what 64 bits can count
            fits = math.prod(n for n in shape if n) * DTYPES[dtype].itemsize < 2**63
            return fits and last - first == math.prod(shape) * DTYPES[dtype].itemsize
    return False
