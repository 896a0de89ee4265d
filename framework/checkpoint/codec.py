"""A tree of plain values and tensors as JSON beside tensors, and back. No name in it is ever imported or looked up.

What JSON has no word for is an object of one key, a tag::

    {"$tensor": NAME}  {"$order": [[0, 2, 3, 1], TENSOR]}  {"$complex128": TENSOR}
    {"$float": "nan"}  {"$int": "0x8000000000000000"}  {"$complex": "(1-2j)"}  {"$bytes": BASE64}
    {"$tuple": [...]}  {"$size": [...]}  {"$set": [...]}  {"$frozenset": [...]}
    {"$map": [[KEY, VALUE], ...]}  {"$OrderedDict": ...}  {"$Counter": ...}  {"$defaultdict": ...}
    {"$dtype": "torch.float32"}  {"$device": "cuda:0"}  {"$numpy": ["int32", "2a000000"]}

A dict with other keys than text, or with one that begins with `$`, is a `$map`.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy
import torch
from torch import Tensor

from framework.checkpoint.processes import Piece
from framework.errors import CheckpointError

DEPTH, ROOM = 64, 8  # nested brackets in a file; how many of them are for what surrounds a tree, and for its leaves
SIZE, VALUES = 16 * 2**20, 2**20  # bytes of a file, and values that they tell: those take more memory than they look

_NUMPY = {numpy.dtype(code).name: numpy.dtype(code).type for code in (*"?bBhHefdFD", "i4", "u4", "i8", "u8")}
_DTYPES = {str(found): found for found in vars(torch).values() if isinstance(found, torch.dtype)}
_SEQUENCES: dict[str, Any] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}
_MAPS: dict[str, Any] = {"$Counter": Counter, "$defaultdict": defaultdict, "$OrderedDict": OrderedDict, "$map": dict}
_LEAVES: dict[str, tuple[Any, Any, Any]] = {  # a type, how a value of it is told, and how it is read
    "$numpy": (tuple(_NUMPY.values()), lambda value: [value.dtype.name, value.tobytes().hex()],
               lambda told: numpy.frombuffer(bytes.fromhex(told[1]), _NUMPY[told[0]])[0]),
    "$int": (int, hex, lambda told: int(told, 16)),
    "$float": (float, lambda value: repr(float(value)), float),
    "$complex": (complex, repr, complex),
    "$bytes": (bytes, lambda value: base64.b64encode(value).decode(), base64.b64decode),
    "$size": (torch.Size, list, torch.Size),
    "$dtype": (torch.dtype, str, _DTYPES.__getitem__),
    "$device": (torch.device, str, torch.device),
}  # fmt: skip
PIECE = re.compile(r"\|piece (\d{1,2})\+*$")  # the end of the name of a tensor of which a process holds only a part
_NESTING = bytes((byte in b"[{") + 255 * (byte in b"]}") for byte in range(256))  # 1 or -1 where it changes


def encode(tree: Any, tensors: dict[str, Tensor], path: str = "state") -> Any:
    """A tree of plain values as JSON; its tensors go into `tensors` under their paths, not copied unless they must be.

    Raises:
        CheckpointError: a value that is neither plain nor a tensor, with its path; a tree that contains itself
    """
    return _encode(tree, tensors, path, DEPTH - ROOM)


def _encode(tree: Any, tensors: dict[str, Tensor] | None, path: str, depth: int) -> Any:
    if depth < 0:
        raise CheckpointError(f"{path:.200} contains itself, or is nested too deep")
    if isinstance(tree, Tensor):
        return _tensor(tree, tensors, f"{path}." if PIECE.search(path) else path)
    if isinstance(tree, Piece):
        return _tensor(tree.tensor.contiguous(), tensors, f"{path}|piece {tree.dimension}")
    if isinstance(tree, list):
        return [_encode(value, tensors, f"{path}.{index}", depth - 1) for index, value in enumerate(tree)]
    if isinstance(tree, dict):
        return _map(tree, tensors, path, depth)
    if isinstance(tree, tuple) and not isinstance(tree, torch.Size):
        return {"$tuple": _encode(list(tree), tensors, path, depth - 1)}
    if isinstance(tree, (set, frozenset)):
        elements = sorted((_encode(each, None, f"an element of {path}", depth - 2) for each in tree), key=json.dumps)
        return {"$set" if isinstance(tree, set) else "$frozenset": elements}
    if isinstance(tree, str) and re.search("[\ud800-\udfff]", tree):
        raise CheckpointError(f"{path} is text that is not Unicode, {tree!a:.80}; keep it as bytes")
    exact = -(2**63) <= tree < 2**63 if isinstance(tree, int) else isinstance(tree, float) and math.isfinite(tree)
    if tree is None or isinstance(tree, str) or (exact and not isinstance(tree, numpy.generic)):
        return tree
    for tag, (kind, told, _) in _LEAVES.items():
        if isinstance(tree, kind):
            return {tag: told(tree)}
    kind = type(tree).__name__
    raise CheckpointError(f"{path} is of type {kind}, which a checkpoint cannot hold; keep numbers, text and tensors")


def _map(tree: dict[Any, Any], tensors: dict[str, Tensor] | None, path: str, depth: int) -> dict[str, Any]:
    tag = next(tag for tag, kind in _MAPS.items() if isinstance(tree, kind))
    if isinstance(tree, defaultdict) and tree.default_factory is not None:
        raise CheckpointError(f"{path} is a defaultdict that makes values by itself; keep it as a dict")
    keys = [_encode(key, None, f"a key of {path}", depth - 3) for key in tree]
    tagged = tag != "$map" or not all(isinstance(key, str) and not key.startswith("$") for key in keys)
    inner = depth - 3 if tagged else depth - 1
    pairs = [[k, _encode(v, tensors, f"{path}.{k}", inner)] for k, v in zip(keys, tree.values(), strict=True)]
    return {tag: pairs} if tagged else dict(pairs)


def _tensor(tensor: Tensor, tensors: dict[str, Tensor] | None, path: str) -> dict[str, Any]:
    if tensors is None:
        raise CheckpointError(f"{path} is a tensor, which would be another one when it comes back; keep names there")
    while path in tensors:  # {"a.b": ..., "a": {"b": ...}}
        path += "+"
    tag: dict[str, Any] = {"$tensor": path}
    kept = tensor.detach()
    if kept.layout is torch.strided and not kept.is_nested:
        kept, strides = kept.resolve_conj(), kept.stride()
        # channels_last and its like: the dimensions from the outermost to the innermost, and the memory as it is
        order = sorted(range(kept.ndim), key=lambda dimension: (-strides[dimension], -kept.shape[dimension]))
        turned = kept.permute(order)
        if kept.dtype == torch.complex128:  # safetensors does not know it
            kept, turned, tag = torch.view_as_real(kept), torch.view_as_real(turned), {"$complex128": tag}
        if order != sorted(order) and turned.is_contiguous():
            kept, tag = turned, {"$order": [order, tag]}
    tensors[path] = kept
    return tag


def decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `encode`. It takes the tensors out of `tensors`: what is left there is named by no tag.

    Raises:
        CheckpointError: a tag that is none, a value of another form than `encode` gives it, a tensor that is missing or
            named twice
    """
    try:
        return _decode(tree, tensors, DEPTH)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"a value that no checkpoint has: {type(error).__name__}: {error!s:.200}") from error


def _decode(tree: Any, tensors: dict[str, Tensor], depth: int) -> Any:
    if depth < 0:
        raise ValueError("nested too deep")
    if isinstance(tree, list):
        return [_decode(value, tensors, depth - 1) for value in tree]
    if not isinstance(tree, dict):
        return tree
    tag = next((key for key in tree if key.startswith("$")), None)
    if tag is None:
        return {key: _decode(value, tensors, depth - 1) for key, value in tree.items()}
    match tag, tree[tag] if len(tree) == 1 else None:
        case "$tensor", str(name):
            return tensors.pop(name)
        case "$complex128", pairs:
            if (tensor := _decode(pairs, tensors, depth - 1)).dtype == torch.float64:
                return torch.view_as_complex(tensor)
        case "$order", [list(order), turned]:
            tensor = _decode(turned, tensors, depth - 2)
            if sorted(order) == list(range(tensor.ndim)):
                return tensor.permute([order.index(dimension) for dimension in range(tensor.ndim)])
        case _, list(values) if tag in _SEQUENCES:
            return _SEQUENCES[tag](_decode(value, tensors, depth - 2) for value in values)
        case _, list(pairs) if tag in _MAPS and all(type(pair) is list for pair in pairs):
            made = _MAPS[tag]()
            made.update({_decode(key, {}, depth - 3): _decode(value, tensors, depth - 3) for key, value in pairs})
            if len(made) == len(pairs):
                return made
        case _, told if tag in _LEAVES:
            value = _LEAVES[tag][2](told)
            if _encode(value, None, "", 0) == tree:  # there is one way to tell a value
                return value
    raise ValueError(f"{tree!a:.120}")


# ------------------------------------------------------------------------------------------------------ JSON, strictly


def text(tree: Any, size: int = SIZE) -> bytes:
    """JSON as the bytes of a file that `parse` will read.

    Raises:
        CheckpointError: it is above `size` bytes, or of more than `VALUES` values
    """
    return bounded(json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False).encode(), size)


def parse(data: bytes, size: int = SIZE) -> Any:
    """The JSON value of a file, read strictly, in memory and time that its size bounds.

    Raises:
        CheckpointError: it is not UTF-8 JSON, is above `size` bytes, of more than `VALUES` values or nested deeper than
            `DEPTH`, or has what readers differ about: a key twice, NaN and Infinity, numbers beyond 64 bits, half a
            surrogate pair
    """
    bounded(data, size)
    outside = re.sub(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', b"", data).translate(_NESTING)  # of strings
    if numpy.frombuffer(outside, numpy.int8).cumsum(dtype=numpy.int8).max(initial=0) > DEPTH:  # before it can wrap
        raise CheckpointError(f"JSON that is nested deeper than {DEPTH}")
    try:
        tree = _JSON.decode(data.decode())
        if b"\\u" in data:
            json.dumps(tree, ensure_ascii=False).encode()  # fails on half a surrogate pair
    except ValueError as error:
        raise CheckpointError(f"not JSON that a checkpoint has: {error}") from error
    return tree


def bounded(data: bytes, size: int = SIZE) -> bytes:
    """The same bytes.

    Raises:
        CheckpointError: they are too many for `parse`
    """
    values = data.count(b",") + data.count(b"[") + data.count(b"{")  # or more than there are, where text has them
    if len(data) > size or values > VALUES:
        raise CheckpointError(f"{len(data):,} bytes of JSON, {values:,} values, are too much; a tensor is for numbers")
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return made


def _int(told: str) -> int:
    # int() takes long for long text, where somebody has lifted Python's own limit
    if len(told) > 20 or not -(2**63) <= int(told) < 2**63:
        raise ValueError(f"the number {told:.40}")
    return int(told)


def _float(told: str) -> float:
    if not math.isfinite(float(told)):
        raise ValueError(f"the number {told:.40}")
    return float(told)


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_float)
