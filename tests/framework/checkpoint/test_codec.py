"""Trees as JSON beside tensors: what comes back is what went in, and what is not of the codec's making is refused."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from framework import CheckpointError
from framework.checkpoint import decode, encode
from framework.checkpoint.codec import DEPTH, parse, text
from framework.checkpoint.tensors import load, written

PROFILE = settings(
    max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def there_and_back(tree: Any) -> Any:
    """Through the bytes of both files; every tensor of the file is named by the JSON."""
    held: dict[str, Tensor] = {}
    state = text(encode(tree, held))
    loaded = load(b"".join(written(held)))
    back = decode(parse(state), loaded)
    assert loaded == {}
    return back


def kinds(tree: Any) -> Any:
    """The types of a tree, of its containers and keys too."""
    if isinstance(tree, dict):
        return type(tree), [(kinds(key), kinds(value)) for key, value in tree.items()]
    if isinstance(tree, (list, tuple)):
        return type(tree), [kinds(value) for value in tree]
    return type(tree)


# ----------------------------------------------------------------------------------------------------- there and back

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
]  # fmt: skip


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Any bits at all, nans among them."""
    count = math.prod(shape)
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


tensors = st.builds(
    filled, st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=4).map(tuple), st.integers(0, 9)
)
words = st.text(max_size=5) | st.sampled_from(["$tensor", "$map", "$", "a.b", "a", "b", "0", "", "\n", "\x00"])
numbers = st.integers() | st.integers(2**62, 2**65) | st.integers(-(2**65), -(2**62)) | st.floats()
scalars = st.sampled_from([
    numpy.int64(-3), numpy.uint8(255), numpy.float64(0.1), numpy.float32("inf"), numpy.float16(-0.0),
    numpy.bool_(True), numpy.complex64(1 - 2j), numpy.complex128(-0.0, math.inf),
])  # fmt: skip
others = st.sampled_from([
    torch.float32, torch.complex32, torch.int64, torch.device("cpu"), torch.device("cuda:3"), torch.device("mps"),
    torch.Size([]), torch.Size([2, 0]),
])  # fmt: skip
plain = st.none() | st.booleans() | numbers | words | st.binary(max_size=4) | st.complex_numbers(allow_nan=False)
hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=2).map(tuple) | st.frozensets(inner, max_size=2),
    max_leaves=3,
)


def maps(keys: Any, values: Any) -> Any:
    pairs = st.dictionaries(keys, values, max_size=4)
    return pairs | pairs.map(OrderedDict) | pairs.map(Counter) | pairs.map(lambda held: defaultdict(None, held))


trees = st.recursive(
    plain | scalars | others | tensors | st.sets(hashable, max_size=3) | st.frozensets(hashable, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | maps(words, inner)
        | maps(hashable, inner)
    ),
    max_leaves=12,
)


@given(tree=trees)
@PROFILE
def test_every_tree_comes_back_bit_by_bit_and_of_the_same_types(oracle: Any, tree: Any) -> None:
    back = there_and_back(tree)
    oracle.assert_same(tree, back)
    assert kinds(back) == kinds(tree)


@given(tree=trees)
@PROFILE
def test_the_same_tree_is_the_same_bytes(tree: Any) -> None:
    held, again = {}, {}
    assert text(encode(tree, held)) == text(encode(tree, again))
    assert b"".join(written(held)) == b"".join(written(again))


def test_a_set_is_the_same_bytes_in_whatever_order_its_elements_lie() -> None:
    numbers = [8, 0, 16, 1, 24]  # those that leave the same rest lie in the order of their coming
    assert text(encode(set(numbers), {})) == text(encode({*reversed(numbers)}, {}))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -0.0, 5e-324, 1.7976931348623157e308, 0.1])
def test_every_double_comes_back_with_its_bits(value: float) -> None:
    plain, pair, scalar = there_and_back([value, complex(1.0, value), numpy.float64(value)])
    assert struct.pack("3d", plain, pair.imag, scalar) == struct.pack("3d", value, value, value)


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**100, -(10**100)])
def test_integers_around_64_bits_come_back(number: int) -> None:
    assert there_and_back(number) == number


def test_what_is_nearly_plain_comes_back_plain() -> None:
    class Text(str):
        pass

    class Pairs(dict):  # type: ignore[type-arg]
        pass

    back = there_and_back({Text("a"): Text("b"), "pairs": Pairs(x=1)})
    assert (back, [type(key) for key in back], type(back["pairs"])) == ({"a": "b", "pairs": {"x": 1}}, [str, str], dict)


def test_the_milestones_of_multi_step_lr_come_back_as_the_counter_that_they_are() -> None:
    def schedule(weight: Tensor) -> torch.optim.lr_scheduler.MultiStepLR:
        return torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([weight], lr=1.0), [2, 2, 5])

    before, after = schedule(torch.ones(1)), schedule(torch.ones(1))
    after.load_state_dict(there_and_back(before.state_dict()))
    assert type(after.milestones) is Counter
    assert after.milestones == Counter({2: 2, 5: 1})


# ------------------------------------------------------------------------------------------------------------- tensors


def strided(tensor: Tensor) -> dict[str, Tensor]:
    """Views of all sorts; those that are dense keep their strides."""
    four = tensor.reshape(2, 3, 2, 2)
    return {
        "whole": four,
        "channels_last": four.to(memory_format=torch.channels_last),
        "one_channel": four[:, :1].to(memory_format=torch.channels_last),
        "one_pixel": four[..., :1, :1].to(memory_format=torch.channels_last),
        "transposed": tensor.reshape(4, 6).t(),
        "permuted": four.permute(3, 1, 0, 2),
        "no_dimension": four[1, 2, 1, 1],
        "empty": four[:, :0],
        "part": tensor.reshape(-1)[5:7],
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dense_tensors_of_each_kind_come_back_with_bits_and_strides(oracle: Any, dtype: torch.dtype) -> None:
    views = strided(filled(dtype, (24,)))
    oracle.assert_same(views, there_and_back(views))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_with_gaps_or_overlaps_come_back_as_what_they_show(oracle: Any, dtype: torch.dtype) -> None:
    base = filled(dtype, (24,))
    views = {
        "gaps": base[::3], "one_of_gaps": base[1::3].as_strided((1, 1), (2, 7)),
        "overlapping": base.as_strided((4, 6), (3, 1)), "expanded": base[:1].expand(5),
        "expanded_twice": base[:2].reshape(2, 1, 1).expand(2, 3, 2), "transposed_part": base.reshape(4, 6).t()[:3],
    }  # fmt: skip
    back = there_and_back(views)
    whole = torch.contiguous_format
    oracle.assert_same({name: view.clone(memory_format=whole) for name, view in views.items()}, back)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_conjugates_and_negatives_come_back_as_the_numbers_that_they_stand_for(dtype: torch.dtype) -> None:
    base = torch.tensor([[1 + 2j, 3 - 4j]], dtype=dtype)
    back = there_and_back({"conj": base.conj(), "neg": base.conj().imag, "turned": base.conj().t()})
    assert back["conj"].tolist() == [[1 - 2j, 3 + 4j]]
    assert back["neg"].tolist() == [[-2.0, 4.0]]
    assert back["turned"].tolist() == [[1 - 2j], [3 + 4j]]


def test_tensors_that_share_memory_come_back_apart() -> None:
    shared = torch.arange(4.0)
    back = there_and_back({"a": shared, "b": [shared, shared[1:]]})
    back["a"].zero_()
    assert [value.tolist() for value in back["b"]] == [[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]


def test_an_ordinary_tensor_is_told_by_its_name_alone() -> None:
    for tensor in (torch.ones(2, 3), torch.ones(()), torch.ones(3, 1, 1), torch.ones(2, 3)[:, :2], torch.ones(4)[::2]):
        assert encode([tensor], {}) == [{"$tensor": "state.0"}]


def test_a_dense_tensor_is_not_copied() -> None:
    four = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    held: dict[str, Tensor] = {}
    encode({"a": four, "b": nn.Parameter(four[0])}, held)
    assert [tensor.data_ptr() for tensor in held.values()] == [four.data_ptr(), four.data_ptr()]
    assert not any(tensor.requires_grad for tensor in held.values())


def test_tensors_whose_paths_read_alike_stay_apart(oracle: Any) -> None:
    one, two, three = torch.ones(1), torch.zeros(1), torch.full((1,), 2.0)
    for tree in (
        {"a.b": one, "a": {"b": two}, "a.b+": three}, {1: one, "1": two}, {None: one, "None": two, "$": 1},
        {"a": [one], "a.0": two}, {(1, 2): one, "(1, 2)": two}, {b"x": one, "b'x'": two},
    ):  # fmt: skip
        oracle.assert_same(tree, there_and_back(tree))


def test_a_number_that_python_will_not_print_is_a_key_all_the_same() -> None:
    assert there_and_back({10**5000: torch.ones(1)}).keys() == {10**5000}


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "plugins.ema.0.x is of type object, which a checkpoint cannot hold; keep numbers, text and tensors"),
        (len, "plugins.ema.0.x is of type builtin_function_or_method"),
        (lambda: 1, "plugins.ema.0.x is of type function"),
        (numpy.ones(2), "plugins.ema.0.x is of type ndarray"),
        (numpy.datetime64(0, "s"), "plugins.ema.0.x is of type datetime64"),
        (numpy.longdouble(1), "plugins.ema.0.x is of type longdouble"),
        (Path("x"), "Path, which a checkpoint cannot hold"),
        (nn.Linear, "plugins.ema.0.x is of type type"),
        (defaultdict(int), "plugins.ema.0.x is a defaultdict that makes values by itself; keep it as a dict"),
        ("\ud800", r"plugins.ema.0.x is text that is not Unicode, '\ud800'; keep it as bytes"),
        ({"\udfff": 1}, r"a key of plugins.ema.0.x is text that is not Unicode, '\udfff'"),
        ({torch.ones(1): 1}, "a key of plugins.ema.0.x is a tensor, which would be another one when it comes back"),
        ({(1, torch.ones(1)): 1}, "a key of plugins.ema.0.x.1 is a tensor"),
        ({torch.ones(1)}, "an element of plugins.ema.0.x is a tensor"),
        ({len}, "an element of plugins.ema.0.x is of type builtin_function_or_method"),
    ],
)
def test_a_value_that_cannot_be_held_is_named_with_its_path(value: Any, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        encode({"ema": [{"x": value}]}, {}, "plugins")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(2).to_sparse(), lambda: torch.ones(2, 3, device="meta").t(),
        lambda: torch.eye(2, dtype=torch.complex128).to_sparse(),
        lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_tensor_without_plain_memory_is_refused_with_its_path(make: Any) -> None:
    held: dict[str, Tensor] = {}
    with pytest.raises(CheckpointError, match=r"plugins\.ema\.x is a tensor \(.*\) that a checkpoint cannot hold"):
        encode({"ema": {"x": make()}}, held, "plugins") and written(held)


def nested(levels: int, kind: Any, tree: Any = 1) -> Any:
    for _ in range(levels):
        tree = kind(tree)
    return tree


KINDS = [lambda t: [t], lambda t: {"a": t}, lambda t: (t,), lambda t: {1: t}, lambda t: OrderedDict(a=t),
         lambda t: frozenset([t]), lambda t: ({t: 1},) if isinstance(t, int) else [t]]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leaf", [1, math.inf, numpy.int8(1), {1j}, torch.ones(2, 3, 4, dtype=torch.complex128).mT])
def test_what_is_nested_is_either_refused_at_once_or_comes_back(oracle: Any, kind: Any, leaf: Any) -> None:
    """Never is something written that cannot be read, also where other brackets surround it."""
    outcomes = set()
    for levels in range(DEPTH + 2):
        try:
            tree = nested(levels, kind, leaf)
        except TypeError:  # a set is not hashable
            return
        held: dict[str, Tensor] = {}
        try:
            state = text([{"plugins": [encode(tree, held)]}])
        except CheckpointError as error:
            assert "contains itself, or is nested too deep" in str(error) or "is a tensor" in str(error)  # noqa: PT017
            outcomes.add("refused")
            continue
        assert "refused" not in outcomes
        oracle.assert_same(tree, decode(parse(state), held)[0]["plugins"][0])
        outcomes.add("back")
    assert "refused" in outcomes


def test_what_is_nested_in_a_key_is_either_refused_at_once_or_comes_back() -> None:
    back, refused = range(1, 27), range(27, 40)
    for levels in back:
        tree = {nested(levels, lambda inner: (inner,)): 1}
        assert there_and_back(tree) == tree
    for levels in refused:
        with pytest.raises(CheckpointError, match=r"a key of state.* contains itself, or is nested too deep"):
            encode({nested(levels, lambda inner: (inner,)): 1}, {})


def test_a_tree_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append({"again": (endless,)})
    with pytest.raises(CheckpointError, match=r"state\.0\.again\.0.* contains itself, or is nested too deep"):
        encode(endless, {})


@pytest.mark.parametrize(
    "tree",
    [
        {"$nosuch": 1}, {"$": 1}, {"$class": "os.system", "args": ["exit 1"]}, {"$tensor": "x", "more": 1},
        {"a": 1, "$tensor": "x"}, {"$tensor": "absent"}, {"$tensor": None}, {"$tensor": ["x"]}, {"$tensor": {"x": 1}},
        [{"$tensor": "x"}, {"$tensor": "x"}],
        {"$size": [{"$tensor": "x"}]}, {"$map": [[{"$tensor": "x"}, 1]]},
        {"$order": [[0, 0], {"$tensor": "x"}]}, {"$order": [[0], {"$tensor": "x"}]}, {"$order": [[0, 1], 3]},
        {"$order": [[0, 1]]}, {"$order": [[1, 0], {"$tensor": "x"}, 1]}, {"$order": [["0", "1"], {"$tensor": "x"}]},
        {"$order": [[2**62, 0], {"$tensor": "x"}]}, {"$order": {"0": 1}}, {"$order": [[0, -1], {"$tensor": "x"}]},
        {"$order": [[1, 0, 1], {"$tensor": "x"}]},
        {"$complex128": {"$tensor": "x"}}, {"$complex128": "x"}, {"$complex128": {"$tensor": "odd"}},
        {"$map": 3}, {"$map": [[1]]}, {"$map": [[1, 2, 3]]}, {"$map": [[[1], 2]]}, {"$map": ["ab"]},
        {"$map": [{"a": 1, "b": 2}]}, {"$map": [[1, 2], [1, 3]]}, {"$map": [[1, 2], [True, 3]]}, {"$Counter": {"a": 1}},
        {"$OrderedDict": [["a", 1], ["a", 1]]}, {"$defaultdict": [["a"]]}, {"$tuple": 1}, {"$tuple": {"a": 1}},
        {"$size": ["a"]}, {"$size": [1.5]}, {"$size": [{"$int": "0x8000000000000000"}]}, {"$size": 2},
        {"$set": [[1]]}, {"$set": "ab"}, {"$frozenset": [{}]},
        {"$float": "high"}, {"$float": "1.5"}, {"$float": " nan"}, {"$float": None}, {"$float": 1.5},
        {"$float": 10**400}, {"$float": "NaN"},
        {"$int": "0x1"}, {"$int": 2**63}, {"$int": "9" * 30}, {"$int": "0x" + "F" * 20}, {"$int": "0x0" + "f" * 20},
        {"$int": "0x1_" + "0" * 16}, {"$complex": "1"}, {"$complex": 1}, {"$complex": "1+2j"}, {"$complex": "(1+2j) "},
        {"$bytes": "YWJ"}, {"$bytes": "YWJj\n"}, {"$bytes": "é"}, {"$bytes": 1}, {"$bytes": "YWJ*j"}, {"$bytes": [1]},
        {"$dtype": "float32"}, {"$dtype": "torch.nosuch"}, {"$dtype": "torch.Tensor"}, {"$dtype": ["torch.int8"]},
        {"$device": "nosuch"}, {"$device": "cuda:-1"}, {"$device": "cuda:01"}, {"$device": 0}, {"$device": "cuda:9999"},
        {"$numpy": ["int64", "00"]}, {"$numpy": ["int8", "0000"]}, {"$numpy": ["bool", "02"]}, {"$numpy": ["int8"]},
        {"$numpy": ["object", "0000000000000000"]}, {"$numpy": ["U1", "61000000"]}, {"$numpy": "int8"},
        {"$numpy": ["int8", ""]}, {"$numpy": ["int8", "0g"]}, {"$numpy": ["int8", "01", "02"]},
    ],
)  # fmt: skip
def test_what_the_codec_does_not_make_is_refused(tree: Any) -> None:
    held = {"x": torch.ones(2, 2), "odd": torch.ones(2, 3, dtype=torch.float64)}
    with pytest.raises(CheckpointError, match="a value that no checkpoint has"):
        decode({"around": [tree]}, held)


@pytest.mark.parametrize("tree", [{"$device": "x" * 10_000}, {"$dtype": "x" * 10_000}, {"$nosuch": ["x"] * 10_000}])
def test_what_is_refused_is_told_in_short(tree: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        decode(tree, {})
    assert len(str(caught.value)) < 300


def test_decode_refuses_what_is_nested_deeper_than_any_file() -> None:
    with pytest.raises(CheckpointError, match="nested too deep"):
        decode(nested(100_000, lambda inner: [inner]), {})


# ------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("data", "tree"),
    [
        (b'{"a": [1, -2.5e3, true, null, "\\u00e9"]}', {"a": [1, -2500.0, True, None, "é"]}),
        ('"\\ud83d\\ude00 \U0001f600"'.encode(), "\U0001f600 \U0001f600"),
        (b'"' + b"[" * 99 + b'\\"' + b"[" * 99 + b'"', "[" * 99 + '"' + "[" * 99),
        (b" 9223372036854775807", 2**63 - 1), (b"-9223372036854775808", -(2**63)),
        (b'"\\\\ud800"', "\\ud800"), (b"[" * DEPTH + b"]" * DEPTH, nested(DEPTH - 1, lambda inner: [inner], [])),
    ],
)  # fmt: skip
def test_what_is_json_is_read(data: bytes, tree: Any) -> None:
    assert parse(data) == tree


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"{", b"[1,]", b"{'a': 1}", b"1 2", b"nan", b"\xef\xbb\xbf1", b'"\xff"', b'"\xed\xa0\x80"', b'"\n"',
        b"NaN", b"[Infinity]", b'{"a": -Infinity}', b"1e999", b"[-1e400]", b"9223372036854775808",
        b"-9223372036854775809", b"1" * 5000, b"[" + b"1" * 30 + b"]", b'{"a": 1, "a": 1}',
        b'[{"b": {"a": 1, "a": 2}}]',
        b'{"a": 1, "\\u0061": 2}', b'"\\ud800"', b'{"\\udc00": 1}', b'["\\ude00\\ud83d"]', b'"\\ud83d\\\\ude00"',
        b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1), b'{"a":' * (DEPTH + 1) + b"1" + b"}" * (DEPTH + 1), b"[" * 100_000,
        b'["\\"", ' + b"[" * 100_000, b'{"a":' * 100_000, b'"' + b"[" * 100_000,
        b"]" * 1000 + b"[" * 1000, "é".encode("utf-16"),
    ],
)  # fmt: skip
def test_what_readers_of_json_differ_about_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="JSON"):
        parse(data)


def test_json_above_the_size_is_neither_read_nor_written() -> None:
    assert parse(b"[1, 2]", size=6) == [1, 2]
    with pytest.raises(CheckpointError, match="7 bytes of JSON, 2 values, are too much"):
        parse(b"[1, 2] ", size=6)
    assert len(text("x" * 10, size=12)) == 12
    with pytest.raises(CheckpointError, match="13 bytes of JSON, 0 values, are too much; a tensor is for numbers"):
        text("x" * 11, size=12)


@pytest.mark.parametrize("tree", [[0] * 100, [[]] * 50, [{}] * 50, ["," * 10] * 10])
def test_json_of_too_many_values_is_neither_read_nor_written(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = text(tree)
    monkeypatch.setattr("framework.checkpoint.codec.VALUES", 100 + (tree == ["," * 10] * 10) * 10)
    assert parse(data) == tree
    monkeypatch.setattr("framework.checkpoint.codec.VALUES", 99)
    for refused in (lambda: parse(data), lambda: text(tree)):
        with pytest.raises(CheckpointError, match=r"bytes of JSON, 1.. values, are too much"):
            refused()


@given(data=st.binary(max_size=30) | st.text(alphabet='[]{}",:\\u0d8e+-.1 naNIf', max_size=30).map(str.encode))
@PROFILE
def test_any_bytes_are_read_as_json_reads_them_or_refused(data: bytes) -> None:
    try:
        tree = parse(data)
    except CheckpointError:
        return
    assert json.loads(data) == tree
    assert parse(text(tree)) == tree
