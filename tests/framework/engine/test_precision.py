"""fast="math": that it learns as well, gives the same dtypes, and leaves nothing behind."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework.engine.precision import FastMath, switch_flags

CPU = torch.device("cpu")
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 0.01),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, 0.05),
}


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Compiled models run as they are: a compile takes long, and is looked at in a test of its own."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def images() -> tuple[Tensor, Tensor]:
    """Bright and dark squares."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(16) % 2
    return torch.randn(16, 3, 8, 8, generator=generator) + y[:, None, None, None], y


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(256, 2)
    )


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> float:
    x, y = images()
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(x)
        assert output.dtype is torch.float32
        loss = F.cross_entropy(output, y)
        loss.backward()
        optimizer.step()
    return loss.item()


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def layout(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[bool]:
    """How all that a fit changes lies in memory; the strides of a gradient may differ where a size is 1."""
    kept = [state[key] for state in optimizer.state.values() for key in sorted(state) if torch.is_tensor(state[key])]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [tensor.is_contiguous() for tensor in (*model.parameters(), *gradients, *kept)]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.usefixtures("uncompiled")
def test_it_learns_as_well_and_the_next_fit_is_exact(name: str) -> None:
    plain, model = network(), network()
    plain_optimizer, optimizer = OPTIMIZERS[name](plain.parameters()), OPTIMIZERS[name](model.parameters())
    train(plain, plain_optimizer, 2)
    train(model, optimizer, 2)
    names, before, strides = list(model.state_dict()), settings(optimizer), layout(model, optimizer)

    with ExitStack() as undo:
        fast = FastMath(model, optimizer, CPU, undo)
        assert {"channels_last", f"fused {name}", "torch.compile"} <= set(fast.taken)
        assert all(group["fused"] for group in optimizer.param_groups)
        loss = train(fast, optimizer, 20)
        assert list(model.state_dict()) == names
        assert [group["fused"] for group in optimizer.state_dict()["param_groups"]] == [None]

    assert loss == pytest.approx(train(plain, plain_optimizer, 20), abs=0.02)
    assert loss < 0.2
    assert settings(optimizer) == before
    assert layout(model, optimizer) == strides
    again = network()
    again.load_state_dict(model.state_dict())
    again_optimizer = OPTIMIZERS[name](again.parameters())
    again_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(again, again_optimizer, 2) == train(model, optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.usefixtures("uncompiled")
def test_what_the_optimizer_keeps_lies_in_memory_as_the_weight_does() -> None:
    model = network()
    optimizer = OPTIMIZERS["Adam"](model.parameters())
    train(model, optimizer, 1)
    weight = next(model.parameters())
    kept = optimizer.state[weight]["exp_avg"].clone()

    with ExitStack() as undo:
        FastMath(model, optimizer, CPU, undo)

        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert optimizer.state[weight]["exp_avg"].stride() == weight.stride() != kept.stride()
        assert torch.equal(optimizer.state[weight]["exp_avg"], kept)


@pytest.mark.usefixtures("uncompiled")
def test_an_error_leaves_nothing_behind_either() -> None:
    model = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    before, strides, flags = settings(optimizer), layout(model, optimizer), read_flags()

    def fit() -> None:
        with ExitStack() as undo:
            switch_flags(undo)
            FastMath(model, optimizer, CPU, undo)(torch.zeros(2, 5, 8, 8))

    with pytest.raises(RuntimeError, match="channels"):
        fit()

    assert (settings(optimizer), layout(model, optimizer), read_flags()) == (before, strides, flags)
    assert optimizer.state_dict()["param_groups"][0]["fused"] is None


def read_flags() -> tuple[Any, ...]:
    backends: Any = torch.backends
    owners = backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv
    return (
        torch.get_float32_matmul_precision(), backends.cudnn.benchmark, *(owner.fp32_precision for owner in owners)
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_the_flags_of_a_gpu_are_put_back_as_they_were(precision: str) -> None:
    found = read_flags()
    with ExitStack() as undo:
        undo.callback(setattr, torch.backends.mkldnn.matmul, "fp32_precision", found[3])
        undo.callback(setattr, torch.backends.cuda.matmul, "fp32_precision", found[2])
        undo.callback(torch.set_float32_matmul_precision, found[0])
        torch.set_float32_matmul_precision(precision)
        before = read_flags()

        with ExitStack() as switched:
            switch_flags(switched)
            assert read_flags()[:3] == ("high", True, "tf32")

        assert read_flags() == before
    assert read_flags() == found


def test_steps_are_not_fused_where_torch_cannot_or_the_user_chose_another_kind() -> None:
    linear, sparse = nn.Linear(3, 1), nn.Embedding(5, 2, sparse=True)
    for model, optimizer in (
        (linear, torch.optim.RMSprop(linear.parameters())),
        (linear, torch.optim.SGD(linear.parameters(), foreach=True)),
        (linear, torch.optim.Adam(linear.parameters(), fused=True)),
        (sparse, torch.optim.SGD(sparse.parameters())),
    ):
        before = settings(optimizer)
        with ExitStack() as undo:
            fast = FastMath(model, optimizer, CPU, undo)

            assert not [word for word in fast.taken if word.startswith("fused")]
            assert settings(optimizer) == before


@pytest.mark.usefixtures("uncompiled")
def test_each_output_has_the_dtype_that_the_model_would_give() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: dict[str, Tensor]) -> dict[str, Any]:
            scores = self.linear(x["x"])
            return {"scores": [scores], "best": scores.argmax(1)}

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = Two().to(dtype)
        with ExitStack() as undo:
            fast = FastMath(model, torch.optim.SGD(model.parameters()), CPU, undo)
            output = fast({"x": torch.zeros(4, 3, dtype=dtype)})

        assert output["scores"][0].dtype is dtype
        assert output["best"].dtype is torch.int64


def test_without_a_compiler_it_goes_on_and_says_so(tmp_path: Path) -> None:
    script = (
        "import torch\nfrom contextlib import ExitStack\nfrom framework.engine.precision import FastMath\n"
        "model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())\n"
        "with ExitStack() as undo:\n"
        "    fast = FastMath(model, torch.optim.SGD(model.parameters()), torch.device('cpu'), undo)\n"
        "    print(tuple(fast(torch.zeros(2, 3)).shape), fast.taken[-1])\n"
    )
    env = {**os.environ, "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(2, 4) no torch.compile (")
    assert len(done.stdout) < 150


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_learns_takes_other_sizes_and_tells_errors_as_the_model_does() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(32, 3)
    y = x.sum(1, keepdim=True)
    before = F.mse_loss(model(x), y).item()

    with ExitStack() as undo:
        fast = FastMath(model, optimizer, CPU, undo)
        for part in [slice(32), slice(7)] * 10:
            optimizer.zero_grad()
            F.mse_loss(fast(x[part]), y[part]).backward()
            optimizer.step()
        assert fast.taken[-1] == "torch.compile"
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
            fast(torch.zeros(4, 5))

        assert fast.taken[-1] == "torch.compile"
        assert torch.allclose(fast(x), model(x), atol=0.05)
    assert F.mse_loss(model(x), y).item() < before / 2
