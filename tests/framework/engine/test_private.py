"""The private ways against the public ones, bit for bit, and with each private name missing."""

from __future__ import annotations

import copy
import functools
import inspect
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import default_collate

from framework.engine import private

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

KINDS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and name not in ("Optimizer", "LBFGS")
}


def model_for(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "SparseAdam":
        return nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(9, 2).requires_grad_(False))
    if name == "Muon":  # takes matrices alone
        return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False))
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def optimizer_for(name: str, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return KINDS[name]([p for p in model.parameters() if p.requires_grad], lr=0.05, **options)


def inputs_for(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(7, (5, 3), generator=generator) if name == "SparseAdam" else torch.randn(5, 3)


Way = Callable[[torch.optim.Optimizer], Callable[[], Any]]


def trained(name: str, way: Way, steps: int = 5, between: Any = None, **options: Any) -> Any:
    model = model_for(name)
    optimizer = optimizer_for(name, model, **options)
    torch.manual_seed(1)
    x = inputs_for(name)
    y, step, clear, backward = torch.randn(5, 2), way(optimizer), private.clearing(optimizer), private.backward()
    for index in range(steps):
        clear()
        backward(F.mse_loss(model(x), y))
        step()
        if between is not None:
            between(index, optimizer)
    return {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()}


def public(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    return lambda: optimizer.step()


def ours(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    bare = private.bare_step(optimizer)
    if bare is None:  # torch's compiler, once it has been imported, puts something around the steps of these
        assert type(optimizer).__name__ in ("SparseAdam", "LBFGS")
        return lambda: optimizer.step()
    return private.stepping(optimizer, lambda: bare(optimizer))


# ------------------------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_bare_step_of_every_optimizer_of_torch_gives_the_bits_of_its_public_one(oracle: Any, name: str) -> None:
    oracle.assert_same(trained(name, public), trained(name, ours))


def test_the_bare_step_of_lbfgs_takes_no_closure_either() -> None:
    optimizer = torch.optim.LBFGS(nn.Linear(1, 1).parameters())

    with pytest.raises(TypeError, match="closure"):  # in torch's own words
        ours(optimizer)()


class Slower(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] *= 0.5
        return super().step(closure)


def test_there_is_no_bare_step_of_an_optimizer_of_ones_own_or_a_differentiable_one() -> None:
    parameters = list(nn.Linear(1, 1).parameters())

    assert private.bare_step(Slower(parameters, lr=0.1)) is None
    assert private.bare_step(torch.optim.SGD(parameters, lr=0.1, differentiable=True)) is None


def test_there_is_no_bare_step_where_torch_wraps_it_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, closure=None: None)

    assert private.bare_step(optimizer) is None


@pytest.mark.parametrize("when", ["before", "later"])
@pytest.mark.parametrize("where", ["pre", "post", "everywhere pre", "everywhere post"])
def test_hooks_of_an_optimizer_are_called_as_ever(where: str, when: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls: list[Any] = []
    register: Any = {
        "pre": optimizer.register_step_pre_hook,
        "post": optimizer.register_step_post_hook,
        "everywhere pre": register_optimizer_step_pre_hook,
        "everywhere post": register_optimizer_step_post_hook,
    }[where]
    handle = register(lambda *values: calls.append(values[0])) if when == "before" else None
    step = ours(optimizer)
    model(torch.ones(1, 3)).sum().backward()
    step()
    handle = handle or register(lambda *values: calls.append(values[0]))
    step()
    handle.remove()
    step()

    assert calls == [optimizer] * (2 if when == "before" else 1)


def test_a_scheduler_finds_that_the_optimizer_has_stepped(oracle: Any) -> None:
    def scheduled(way: Way) -> Any:
        schedulers: list[Any] = []

        def step_it(index: int, optimizer: torch.optim.Optimizer) -> None:
            schedulers.append(torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)) if index == 0 else None
            if index > 0:
                schedulers[0].step()  # warns, which is an error here, where no step was seen before it

        return trained("SGD", way, between=step_it)

    oracle.assert_same(scheduled(public), scheduled(ours))


def test_a_step_put_on_the_instance_is_the_one_that_is_called() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    step, calls = ours(optimizer), []
    optimizer.step = lambda: calls.append("own")  # type: ignore[method-assign, assignment]
    step()

    assert calls == ["own"]


def test_a_profiler_sees_its_ranges() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step, clear = ours(optimizer), private.clearing(optimizer)
    model(torch.ones(1, 3)).sum().backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert private.profiling()
        step()
        clear()

    names = {event.key for event in profile.key_averages()}
    assert {"Optimizer.step#SGD.step", "Optimizer.zero_grad#SGD.zero_grad"} <= names
    assert not private.profiling()


def test_gradients_are_on_again_after_a_step_that_failed() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)

    def fails() -> None:
        assert not torch.is_grad_enabled()
        raise RuntimeError("in the step")

    with pytest.raises(RuntimeError, match="in the step"):
        private.stepping(optimizer, fails)()
    assert torch.is_grad_enabled()


def test_a_zero_grad_put_on_the_instance_is_the_one_that_is_called() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 1)).sum().backward()
    clear, calls = private.clearing(optimizer), []
    optimizer.zero_grad = lambda: calls.append("own")  # type: ignore[method-assign, assignment]
    clear()
    assert calls == ["own"]
    assert model.weight.grad is not None
    del optimizer.zero_grad
    clear()
    assert model.weight.grad is None


@pytest.mark.parametrize("name", ["add", "mul", "div", "lerp", "addcmul", "addcdiv"])
def test_an_operation_on_lists_gives_the_same_bits_where_torch_has_none(
    oracle: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def results() -> Any:
        private.foreach.cache_clear()
        torch.manual_seed(0)
        a, b, c = ([torch.rand(n) + 0.1 for n in (1, 5, 33)] for _ in range(3))
        if name.startswith("addc"):
            private.foreach(name)(a, b, c, 0.3)
            private.foreach(name)(a, b, c, [0.1, 0.2, 0.3]) if name == "addcdiv" else None
        elif name == "lerp":
            private.foreach(name)(a, b, 0.3)
        else:
            private.foreach(name)(a, [torch.tensor(0.3)] * 3)
            private.foreach(name)(a, torch.tensor(0.7))
            private.foreach(name)(a, [0.1, 0.2, 0.3])
        return a

    with_it = results()
    monkeypatch.delattr(torch, f"_foreach_{name}_")
    without = results()
    private.foreach.cache_clear()

    oracle.assert_same(with_it, without)


# ------------------------------------------------------------------------------------------------------ backward


def losses() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    return {
        "plain": lambda x: (x**2).mean(),
        "double": lambda x: (x.double() ** 2).mean(),
        "half": lambda x: (x.to(torch.bfloat16) ** 2).mean(),
        "one element": lambda x: (x**2).mean().reshape(1),
        "the parameter itself": lambda x: x.sum() * 1,
    }


def grad_of(loss: Callable[[torch.Tensor], torch.Tensor], backward: Callable[[torch.Tensor], Any]) -> Any:
    x = torch.linspace(-1, 1, 7, requires_grad=True)
    for _ in range(2):  # accumulates
        backward(loss(x))
    return x.grad


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", sorted(losses()))
def test_backward_gives_the_bits_of_the_public_one(
    oracle: Any, monkeypatch: pytest.MonkeyPatch, name: str, missing: bool
) -> None:
    expected = grad_of(losses()[name], lambda loss: loss.backward())
    if missing:
        monkeypatch.setattr(torch.autograd, "Variable", object)

    oracle.assert_same(expected, grad_of(losses()[name], private.backward()))


class ScalesItsGradient(torch.autograd.Function):
    """Changes the gradient that it is given in place, which torch's documentation forbids and does not prevent."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.mul_(2)


def test_a_gradient_that_was_changed_in_place_is_not_used_again(oracle: Any) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return ScalesItsGradient.apply((x**2).mean())  # type: ignore[no-any-return, no-untyped-call]

    backward = private.backward()
    expected = [grad_of(loss, lambda value: value.backward()) for _ in range(3)]

    oracle.assert_same(expected, [grad_of(loss, backward) for _ in range(3)])


def test_a_loss_without_a_gradient_is_refused_in_torchs_words() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        private.backward()(torch.tensor(1.0))


# -------------------------------------------------------------------------------------------------- modes, compiler


class KeepsItsMode(nn.Linear):
    def train(self, mode: bool = True) -> Any:
        return super().train(False)


def models() -> list[nn.Module]:
    frozen = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(1)))
    frozen[1][1].eval()  # type: ignore[index]
    hole = nn.Sequential(nn.Linear(1, 1))
    hole.register_module("nothing", None)
    return [frozen, hole, nn.Sequential(KeepsItsMode(1, 1), nn.Dropout()), KeepsItsMode(1, 1)]


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("mode", [True, False])
def test_set_mode_leaves_every_module_as_train_does(index: int, mode: bool) -> None:
    expected, got = models()[index], models()[index]
    expected.train(mode)
    private.set_mode(got, mode)

    assert [m.training for m in got.modules()] == [m.training for m in expected.modules()]


def test_training_does_not_import_torchs_compiler() -> None:
    script = (
        "import sys, torch\n"
        "from framework import Trainer\n"
        "model = torch.nn.Linear(3, 1)\n"
        "trainer = Trainer(model, torch.nn.functional.mse_loss, torch.optim.Adam(model.parameters()), device='cpu')\n"
        "trainer.fit((torch.randn(5, 3), torch.randn(5, 1)), epochs=3, batch_size=2)\n"
        "trainer.snapshot()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_torch_has_its_own_methods_back_as_soon_as_the_compiler_is_there() -> None:
    script = (
        "import torch\n"
        "from framework import Trainer\n"
        "optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)\n"
        "method = torch.optim.Optimizer.zero_grad.__wrapped__\n"
        "ours = getattr(method, '__dynamo_disable')\n"
        "optimizer.zero_grad()\n"
        "assert getattr(method, '__dynamo_disable') is ours\n"
        "import torch._dynamo\n"
        "optimizer.zero_grad()\n"
        "assert getattr(method, '__dynamo_disable') is not ours\n"
        "optimizer.zero_grad()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# ---------------------------------------------------------------------------------------------------------- the rest


def test_collates_plainly_tells_torchs_own_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert private.collates_plainly(default_collate)
    assert not private.collates_plainly(lambda samples: samples)
    known = sys.modules[default_collate.__module__].default_collate_fn_map
    monkeypatch.setitem(known, torch.Tensor, lambda batch, **_: torch.stack(list(batch)) + 1)
    assert not private.collates_plainly(default_collate)


def test_version_counts_changes_in_place() -> None:
    tensor = torch.zeros(3)
    before = private.version(tensor)
    tensor.add_(1)

    assert private.version(tensor) > before
    with torch.inference_mode():
        assert private.version(torch.zeros(3)) == -1


def test_a_copy_of_an_optimizer_steps_by_itself() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 1)).sum().backward()
    other = copy.deepcopy(optimizer)
    before = model.weight.detach().clone()
    ours(other)()

    assert torch.equal(model.weight, before)


# ------------------------------------------------------------------------------------------- calling model and loss


def graph_of(loss: torch.Tensor) -> list[str]:
    """The names of the nodes that autograd has made."""
    names, nodes = [], [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.append(node.name())
            nodes += [following for following, _ in node.next_functions]
    return names


class Squares(nn.MSELoss):
    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return super().forward(input, target) * 2


def own(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).abs().mean()


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(), nn.MSELoss(reduction="sum"), F.mse_loss, Squares(), own, nn.L1Loss(), nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1), F.cross_entropy, F.l1_loss,
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), ignore_index=1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_the_loss_gives_the_bits_and_the_gradients_of_torchs_own(oracle: Any, loss: Any, kind: str) -> None:
    if kind == "classes" and (isinstance(loss, nn.MSELoss | nn.L1Loss) or loss in (F.mse_loss, F.l1_loss, own)):
        pytest.skip("takes numbers alone")
    if kind == "probabilities" and getattr(loss, "ignore_index", -100) >= 0:
        pytest.skip("ignores classes alone")

    def result(call: Any) -> Any:
        torch.manual_seed(0)
        output = torch.randn(5, 3, requires_grad=True)
        target = torch.randint(3, (5,)) if kind == "classes" else torch.rand(5, 3).softmax(dim=1)
        value = call(output, target)
        value.backward()
        return [value.detach(), output.grad, graph_of(value)]

    oracle.assert_same(result(loss), result(private.loss_of(loss)))


def test_outputs_and_targets_of_different_shapes_reach_torchs_own_loss() -> None:
    for loss in (F.mse_loss, nn.MSELoss()):
        with pytest.warns(UserWarning, match="target size"):
            private.loss_of(loss)(torch.ones(4, 1), torch.ones(4))


@pytest.mark.parametrize("module", [nn.Linear(3, 2), nn.MSELoss()])
@pytest.mark.parametrize("where", ["forward", "forward pre", "backward", "backward pre", "everywhere"])
def test_hooks_of_a_module_are_called_as_ever_also_when_they_come_later(module: nn.Module, where: str) -> None:
    call = private.loss_of(module) if isinstance(module, nn.MSELoss) else private.calling(module)
    values = [torch.ones(4, 3, requires_grad=True), torch.ones(4, 3)][: 2 if isinstance(module, nn.MSELoss) else 1]
    calls: list[Any] = []
    call(*values).sum().backward()
    register: Any = {
        "forward": module.register_forward_hook,
        "forward pre": module.register_forward_pre_hook,
        "backward": module.register_full_backward_hook,
        "backward pre": module.register_full_backward_pre_hook,
        "everywhere": nn.modules.module.register_module_forward_hook,
    }[where]
    handle = register(lambda *given: calls.append(given[0]))
    call(*values).sum().backward()
    handle.remove()
    call(*values).sum().backward()

    assert calls == [module]


def test_a_module_with_a_call_of_its_own_and_a_function_are_called_themselves() -> None:
    class Calls(nn.Linear):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return super().__call__(x) + 1

    module = Calls(3, 2)
    assert private.calling(module) is module
    assert private.calling(own) is own


def test_a_forward_put_on_the_instance_is_the_one_that_is_called() -> None:
    module, loss = nn.Linear(3, 2), nn.MSELoss()
    call, loss_of = private.calling(module), private.loss_of(loss)
    module.forward = lambda x: x  # type: ignore[method-assign, assignment]
    x = torch.ones(1, 3)
    assert call(x) is x
    loss.forward = lambda output, target: output  # type: ignore[method-assign]
    assert private.loss_of(loss)(x, x) is x
    assert loss_of(x, x) is x


def test_the_loss_is_called_as_ever_where_torch_has_no_such_kernels(
    oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    expected = F.mse_loss(x, y)
    monkeypatch.setattr(private, "torch", SimpleNamespace(_C=object()))

    oracle.assert_same(expected, private.loss_of(F.mse_loss)(x, y))


# ------------------------------------------------------------------------------------------------------ the small ones


def test_modes_and_profilers_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    assert private.undisturbed()
    with torch.device("cpu"):
        assert private.overridden()
        assert not private.undisturbed()
    monkeypatch.setattr(private, "_functions", None)  # a torch that does not tell
    assert private.overridden()


def test_copy_over_leaves_no_trace_in_autograd(oracle: Any) -> None:
    sources = [nn.Parameter(torch.randn(3)), torch.randn(2, 2)]
    targets = [torch.zeros(3), torch.zeros(2, 2)]
    private.copy_over(targets, sources)

    oracle.assert_same([source.detach() for source in sources], targets)
    assert not any(target.requires_grad for target in targets)
    assert torch.is_grad_enabled()


def test_hooks_around_a_state_dict_are_seen() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    assert not private.hooks_of_state_dict(optimizer)
    handle = optimizer.register_state_dict_post_hook(lambda optimizer, state: None)
    assert private.hooks_of_state_dict(optimizer)
    handle.remove()
    assert not private.hooks_of_state_dict(optimizer)
    optimizer.state_dict = dict  # type: ignore[method-assign, assignment]
    assert private.hooks_of_state_dict(optimizer)


# ------------------------------------------------------------------------------------------- what was found by looking


def test_a_train_put_on_an_instance_and_an_eval_of_ones_own_are_asked() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].eval()
    model[1].train = lambda mode=True: model[1]  # type: ignore[method-assign, assignment]
    private.set_mode(model, True)
    assert model[0].training
    assert not model[1].training

    class Asked(nn.Sequential):
        def eval(self) -> Any:
            calls.append("eval")
            return super().eval()

    calls: list[str] = []
    own = Asked(nn.Dropout())
    private.set_mode(own, False)
    assert calls == ["eval"]
    assert not own[0].training


@pytest.mark.parametrize("first", ["scheduler", "wrapper"])
def test_a_wrapper_around_a_step_is_called_also_beside_a_scheduler(first: str) -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    calls: list[str] = []

    def wrap() -> None:
        inner = optimizer.step

        @functools.wraps(inner)
        def step(self: Any = None, *values: Any) -> Any:
            calls.append("wrapper")
            return inner(*values)

        optimizer.step = types.MethodType(step, optimizer) if first == "wrapper" else step  # type: ignore[method-assign]

    update = ours(optimizer)
    if first == "wrapper":
        wrap()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    if first == "scheduler":
        wrap()
    update()

    assert calls == ["wrapper"]
    assert private.step_hooked(optimizer)


def test_gradients_are_on_after_a_ctrl_c_right_after_they_were_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = torch._C._set_grad_enabled
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)

    def interrupted(mode: bool) -> None:
        switch(mode)
        if not mode:
            raise InterruptedError

    monkeypatch.setattr(torch._C, "_set_grad_enabled", interrupted)
    update = ours(optimizer)
    with pytest.raises(InterruptedError):
        update()
    on = torch.is_grad_enabled()
    monkeypatch.undo()

    assert on


def test_a_gradient_that_was_changed_past_torchs_count_is_not_used_again(oracle: Any) -> None:
    class Halves(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            gradient.data.mul_(0.5)
            return gradient

    def loss(x: torch.Tensor) -> torch.Tensor:
        return Halves.apply((x**2).mean())  # type: ignore[no-any-return, no-untyped-call]

    backward = private.backward()
    expected = [grad_of(loss, lambda value: value.backward()) for _ in range(3)]

    oracle.assert_same(expected, [grad_of(loss, backward) for _ in range(3)])


def test_constants_stay_on_the_cpu_whatever_the_default_device_is() -> None:
    with torch.device("meta"):
        backward = private.backward()
    x = torch.ones(2, requires_grad=True)
    backward(x.sum())

    assert torch.equal(x.grad, torch.ones(2))


@pytest.mark.parametrize("reduction", ["elementwise_mean", "none"])
def test_reductions_that_torch_knows_by_other_names_reach_it(reduction: str) -> None:
    loss = nn.MSELoss()
    loss.reduction = reduction
    x, y = torch.randn(3), torch.randn(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(private.loss_of(loss)(x, y), loss(x, y))
    loss.reduction = "avg"
    with pytest.raises(ValueError, match="avg is not a valid value"):
        private.loss_of(loss)(x, y)


def test_a_zero_grad_put_on_torchs_class_is_the_one_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", lambda self: calls.append("zero_grad"))
    private.clearing(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1))()
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: calls.append("backward"))
    private.backward()(torch.ones(()))

    assert calls == ["zero_grad", "backward"]


def test_what_a_state_dict_is_made_of(oracle: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    model.register_buffer("passing", torch.ones(1), persistent=False)
    held = private.held_by(model)

    assert held is not None
    oracle.assert_same([h.detach() for h in held], list(model.state_dict().values()))
    model[1].register_state_dict_post_hook(lambda *values: None)
    assert private.held_by(model) is None


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (sys.modules["torch.optim.optimizer"], "_global_optimizer_pre_hooks"),
        (torch.autograd.profiler, "_is_profiler_enabled"),
        (torch._C, "_set_grad_enabled"),
    ],
)
def test_without_a_name_that_a_step_looks_at_it_is_torchs_own(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    assert private.bare_step(optimizer) is not None
    monkeypatch.delattr(owner, name)
    found = private.bare_step(optimizer)
    monkeypatch.undo()

    assert found is None


def test_without_a_name_that_a_call_looks_at_the_module_is_called() -> None:
    module = nn.Linear(1, 1)
    del module.__dict__["_backward_pre_hooks"]
    assert private.calling(module) is module
    del module.__dict__["_non_persistent_buffers_set"]
    assert private.held_by(module) is None
