"""safetensors files: written as the official library would, read more strictly than it does."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import torch as official
from torch import Tensor, nn

from framework import CheckpointError
from framework.checkpoint.tensors import DTYPES, RANK, load, written

PROFILE = settings(
    max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Any bits at all, nans among them."""
    count = math.prod(shape)
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def file_of(tensors: dict[str, Tensor]) -> bytes:
    return b"".join(written(tensors))


def values(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the tensors show, each in memory of its own."""
    shown = {name: held.detach().resolve_conj().resolve_neg() for name, held in sorted(tensors.items())}
    return {name: held.clone(memory_format=torch.contiguous_format) for name, held in shown.items()}


# ------------------------------------------------------------------------------------------------------------- written


def views(dtype: torch.dtype) -> dict[str, Tensor]:
    base = filled(dtype, (24,))
    four = base.reshape(2, 3, 2, 2)
    made = {
        "whole": four, "none": base[0], "empty": four[:, :0],
        "channels_last": four.to(memory_format=torch.channels_last), "tied": four, "part": base[3:], "gaps": base[::5],
        "one_of_gaps": base[1::3][:1],
        "overlapping": base.as_strided((4, 6), (3, 1)),
        "expanded": base[:1].expand(7), "transposed": base.reshape(4, 6).t(), "é\n\x00\x7f/../\U0001f600": base[1:2],
        "": base[:2],
    }  # fmt: skip
    if dtype.is_complex:
        made |= {"conj": four.conj(), "neg": four.conj().imag, "conj_part": base[::2].conj()}
        made |= {"dense_neg": base[:1].conj().imag}
    if dtype.is_floating_point and dtype.itemsize > 1:
        made["parameter"] = nn.Parameter(four)
    return made


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_what_is_written_is_read_by_the_official_library_bit_by_bit(oracle: Any, dtype: torch.dtype) -> None:
    tensors = views(dtype)
    file = file_of(tensors)
    for read in (official.load, load):
        oracle.assert_same(values(tensors), dict(sorted(read(file).items())))


def test_a_file_has_the_length_and_the_alignment_of_an_official_one() -> None:
    tensors = {f"{name}{count}": filled(dtype, (count,)) for name, dtype in DTYPES.items() for count in (1, 3)}
    file = file_of(tensors)
    assert len(file) == len(official.save(tensors))
    begin = 8 + int.from_bytes(file[:8], "little")
    assert begin % 8 == 0
    for name, entry in json.loads(file[8:begin]).items():
        assert entry["data_offsets"][0] % tensors[name].itemsize == 0


def test_a_file_of_one_kind_is_the_official_one() -> None:
    tensors = {"b": filled(torch.float32, (2, 3)), "a\n\U0001f600": filled(torch.float32, ()), "": torch.empty(0, 3)}
    assert file_of(tensors) == official.save(tensors)
    assert file_of({}) == official.save({})


def test_the_order_of_the_names_changes_nothing() -> None:
    tensors = views(torch.float16) | {"wide": torch.ones(1, dtype=torch.float64)}
    assert file_of(tensors) == file_of(dict(reversed(tensors.items())))


def test_tensors_come_back_in_the_order_of_the_file() -> None:
    names = [f"{number:03}" for number in range(100)]
    assert list(load(file_of(dict.fromkeys(reversed(names), torch.ones(1))))) == names


def test_contiguous_tensors_on_the_cpu_are_not_copied() -> None:
    tensor = torch.zeros(5)
    _, piece = written({"a": tensor})
    tensor += 1
    assert bytes(piece) == bytes(tensor.numpy())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu_are_written_as_those_on_the_cpu() -> None:
    tensors = views(torch.complex64)
    assert file_of({name: tensor.cuda() for name, tensor in tensors.items()}) == file_of(tensors)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse_coo float32 on cpu"),
        (lambda: torch.eye(2).to_sparse_csr(), "sparse_csr float32 on cpu"),
        (lambda: torch.ones(2, device="meta"), "strided float32 on meta"),
        (lambda: torch.ones(2, dtype=torch.complex128), "strided complex128 on cpu"),
        (lambda: torch.zeros(2, dtype=torch.uint8).view(torch.float8_e8m0fnu), "strided float8_e8m0fnu on cpu"),
        (lambda: torch.ones([1] * (RANK + 1)), "strided float32 on cpu"),
        (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "strided float32 on cpu"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested tensors")
def test_a_tensor_that_cannot_be_held_is_named_with_its_kind(make: Any, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        written({"good": torch.ones(1), "layer.bad": make()})
    assert str(caught.value) == f"layer.bad is a tensor ({said}) that a checkpoint cannot hold"


def test_the_name_that_safetensors_keeps_for_itself_is_refused() -> None:
    with pytest.raises(CheckpointError, match="__metadata__ is a tensor"):
        written({"__metadata__": torch.ones(1)})


def test_more_than_can_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.checkpoint.tensors.COUNT", 3)
    one = torch.ones(1)
    file = file_of(dict.fromkeys("abc", one))
    assert len(load(file)) == 3
    with pytest.raises(CheckpointError, match="4 tensors; a checkpoint holds at most 3 in a file"):
        written(dict.fromkeys("abcd", one))
    with pytest.raises(CheckpointError, match=r"16,777,.* bytes of JSON, .* are too much"):
        written({"x" * 2**24: one})
    monkeypatch.setattr("framework.checkpoint.tensors.COUNT", 2)
    with pytest.raises(CheckpointError, match="3 tensors, and at most 2 are read"):
        load(file)


# ---------------------------------------------------------------------------------------------------------------- load

GOOD = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False]), "c": torch.empty(0, 5)}


def made(header: Any, data: bytes) -> bytes:
    """A file with this header, told as JSON unless it is bytes."""
    told = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(told).to_bytes(8, "little") + told + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


ACCEPTED = [
    made({"a": entry()}, bytes(8)), made({}, b""), made(b"{}   ", b""),
    made({"b": entry(offsets=(8, 16)), "a": entry()}, bytes(16)),
    made({"a": entry(shape=(), offsets=(0, 4))}, bytes(4)),
    made({"a": entry(), "z": entry(shape=(0, 3), offsets=(8, 8)), "b": entry("U8", (1,), (8, 9))}, bytes(9)),
    made({"a": entry(shape=[1] * RANK, offsets=(0, 4))}, bytes(4)), made({"a": entry("BOOL", (2,), (0, 2))}, b"\0\1"),
    made({"z": entry(shape=(0, 2**40), offsets=(0, 0))}, b""),
]  # fmt: skip


@pytest.mark.parametrize("file", ACCEPTED)
def test_what_is_sound_is_read_as_the_official_library_reads_it(oracle: Any, file: bytes) -> None:
    oracle.assert_same(dict(sorted(official.load(file).items())), dict(sorted(load(file).items())))


REFUSED = {
    "nothing": b"", "seven bytes": bytes(7), "no header": bytes(8), "cut off": made({"a": entry()}, bytes(8))[:-1],
    "a byte more": made({"a": entry()}, bytes(9)), "a long header": (2**63).to_bytes(8, "little") + b"{}",
    "header beyond the end": (3).to_bytes(8, "little") + b"{}", "a list": made([], b""), "a number": made(3, b""),
    "white space first": made(b' {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "not JSON": made(b"{a}", b""), "not UTF-8": made(b'{"\xff": {}}', b""),
    "deep": made(b'{"a":' * 70 + b"}" * 70, b""),
    "a name twice": made(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                         b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)),
    "metadata": made({"__metadata__": {"format": "pt"}, "a": entry()}, bytes(8)),
    "a tensor named metadata": made({"__metadata__": entry()}, bytes(8)),
    "a field more": made({"a": entry(more=1)}, bytes(8)), "no fields": made({"a": {}}, b""),
    "no shape": made({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)), "null": made({"a": None}, b""),
    "unknown dtype": made({"a": entry("F31")}, bytes(8)), "half a byte": made({"a": entry("F4", (2,), (0, 1))}, b"\0"),
    "F8_E8M0": made({"a": entry("F8_E8M0", (1,), (0, 1))}, b"\0"), "dtype is no text": made({"a": entry(3)}, bytes(8)),
    "shape is no list": made({"a": entry(shape="2")}, bytes(8)), "true": made({"a": entry(shape=[True, 2])}, bytes(8)),
    "a fraction": made({"a": entry(shape=[2.0])}, bytes(8)), "negative": made({"a": entry(shape=[-2, -1])}, bytes(8)),
    "too small": made({"a": entry(shape=[3])}, bytes(8)), "too large": made({"a": entry(shape=[1])}, bytes(8)),
    "many dimensions": made({"a": entry(shape=[1] * (RANK + 1), offsets=(0, 4))}, bytes(4)),
    "wraps around to 0": made({"a": entry(shape=[2**32, 2**32], offsets=(0, 0))}, b""),
    "too large but for a 0": made({"a": entry(shape=[0, 2**62], offsets=(0, 0))}, b""),
    "beyond 64 bits": made({"a": entry(shape=[0, 2**64], offsets=(0, 0))}, b""),
    "one offset": made({"a": entry(offsets=[0])}, bytes(8)), "three": made({"a": entry(offsets=[0, 8, 8])}, bytes(8)),
    "offsets that are true": made({"a": entry("U8", (1,), (False, True))}, b"\0"),
    "offsets the wrong way": made({"a": entry(shape=(0,), offsets=(8, 0))}, b""),
    "a gap first": made({"a": entry(offsets=(8, 16))}, bytes(16)),
    "a gap": made({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)),
    "overlapping": made({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "the same twice": made({"a": entry(), "b": entry()}, bytes(8)),
    "a bool of 2": made({"a": entry("BOOL", (2,), (0, 2))}, b"\1\2"),
    "the last bool": made({"a": entry(), "b": entry("BOOL", (2,), (8, 10))}, bytes(9) + b"\xff"),
}  # fmt: skip


@pytest.mark.parametrize("file", REFUSED.values(), ids=REFUSED)
def test_what_no_checkpoint_has_is_refused_before_the_official_library_sees_it(
    file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official, "load", None)
    with pytest.raises(CheckpointError, match=r"tensor|JSON") as caught:
        load(file)
    assert "safetensors cannot read" not in str(caught.value)


def test_every_length_but_the_whole_is_refused() -> None:
    file = file_of(GOOD)
    for length in range(len(file)):
        with pytest.raises(CheckpointError):
            load(file[:length])


def test_an_error_of_the_official_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older release of it may know fewer kinds than this one."""
    monkeypatch.delitem(official._TYPES, "F32")
    with pytest.raises(CheckpointError, match="safetensors cannot read the tensors: 'F32'"):
        load(file_of({"a": torch.ones(1)}))


kinds = st.sampled_from([*DTYPES, "F4", "F8_E8M0", "F6_E2M3", "x"])
sizes = st.sampled_from([0, 1, 2, 3, 4, 8, 2**31, 2**40, 2**63 - 1, -1, True, 1.0, None])
entries = st.builds(
    entry, kinds, st.lists(sizes, max_size=3), st.lists(st.integers(0, 24) | sizes, min_size=1, max_size=3)
)
sound = st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 3), max_size=3)), max_size=4)


def laid_out(tensors: list[tuple[str, list[int]]]) -> tuple[dict[str, Any], int]:
    header, end = {}, 0
    for number, (dtype, shape) in enumerate(tensors):
        begin, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[str(number)] = entry(dtype, shape, (begin, end))
    return header, end


@given(tensors=sound, other=st.dictionaries(st.sampled_from(["0", "1", "x", "__metadata__"]), entries, max_size=1),
       more=st.integers(-1, 1) | st.just(0), fill=st.integers(0, 2))  # fmt: skip
@PROFILE
def test_what_is_accepted_the_official_library_accepts_with_the_same_result(
    oracle: Any, tensors: Any, other: Any, more: int, fill: int
) -> None:
    header, end = laid_out(tensors)
    file = made(header | other, bytes([fill]) * max(0, end + more))
    try:
        ours = load(file)
    except CheckpointError:
        assert other or more or (fill == 2 and any("BOOL" in entry["dtype"] for entry in header.values()))
        return
    oracle.assert_same(dict(sorted(official.load(file).items())), dict(sorted(ours.items())))
    for name, tensor in ours.items():
        told = (header | other)[name]
        assert (tensor.dtype, list(tensor.shape)) == (DTYPES[told["dtype"]], list(told["shape"]))
        assert tensor.reshape(-1).view(torch.uint8).tolist() == [fill] * (
            told["data_offsets"][1] - told["data_offsets"][0]
        )
    assert load(file_of(ours)).keys() == ours.keys()
