"""Graphs against the plain loop, bit for bit; on a CPU with a tape that keeps operations as CUDA keeps kernels."""

from __future__ import annotations

import contextlib
import copy
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

from framework.engine.graph import FEW, WARM_UP, Graphs, Recorder, refusal
from framework.engine.step import Step

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


class Tape(TorchDispatchMode):
    """Keeps each operation with the memory that it works on, and runs it again there: what a CUDA graph does.

    Python runs once, numbers are frozen, results come to the same memory, and reading a number is not possible.
    """

    def __init__(self, device):
        super().__init__()
        self.operations, self.runs = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nand a second line")
        made = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, made))
        return made

    def beside(self):
        return contextlib.nullcontext()

    def record(self, function):
        with self:
            made = function()
        return self.replay, made

    @torch.no_grad()
    def replay(self):
        self.runs += 1
        for function, args, kwargs, made in self.operations:
            memory = {part.untyped_storage().data_ptr() for part in args if isinstance(part, torch.Tensor)}
            again = function(*args, **kwargs)
            many = made if isinstance(made, (tuple, list)) else [made]
            for old, new in zip(many, again if isinstance(again, (tuple, list)) else [again], strict=True):
                if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() not in memory:
                    old.copy_(new)


def recorders(device):
    """The recorder for a device, and the list of those that were made."""
    made, kind = [], Tape if device == "cpu" else Recorder

    def record(where):
        made.append(kind(where))
        return made[-1]

    return record, made


def plain(model, loss, optimizer):
    return Step(
        clear=lambda: optimizer.zero_grad(),
        forward=lambda batch: model(batch[0]),
        loss=lambda output, batch: loss(output, batch[1]),
        backward=lambda loss: loss.backward(),
        update=lambda: optimizer.step(),
    )


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3))


def linear():
    return nn.Sequential(nn.Linear(6, 3))


def data(sizes, device="cpu"):
    made = torch.Generator().manual_seed(3)
    return [
        (torch.randn(size, 6, generator=made).to(device), torch.randint(3, (size,), generator=made).to(device))
        for size in sizes
    ]


SIZES = [8, 8, 8, 5]


def train(make, optimizer_of, device="cpu", sizes=SIZES, epochs=8, graphs=False, loss=None, each=None, epoch=None):
    """A loop as the core's, with the plain step or with graphs; everything that must be the same, and the graphs."""
    torch.manual_seed(7)
    random.seed(7)
    loss = loss or nn.CrossEntropyLoss()
    model = make().to(device)
    optimizer = optimizer_of(model.parameters())
    usual = plain(model, loss, optimizer)
    record, made = recorders(device)
    chosen = Graphs(model, loss, optimizer, usual, record) if graphs else SimpleNamespace(step=lambda: usual, why="")
    losses, outputs, gradients = [], [], []
    scheduler = StepLR(optimizer, 3, gamma=0.5) if epoch == "scheduler" else None
    for number in range(epochs):
        model.train()
        step = chosen.step()
        for index, batch in enumerate(data(sizes, device)):
            output = None
            step.clear()
            output = step.forward(batch)
            value = step.loss(output, batch)
            losses.append(value.detach())
            step.backward(value)
            step.update()
            outputs.append(output.detach().clone())
            gradients += [held.grad.clone() for held in model.parameters() if held.grad is not None]
            if each:
                each(model, optimizer, number * len(sizes) + index)
        if scheduler:
            scheduler.step()
        elif epoch:
            epoch(model, optimizer, number)
    state = [part.clone() for kept in optimizer.state.values() for part in kept.values() if torch.is_tensor(part)]
    drawn = [torch.rand(3), torch.rand(3, device=device), torch.tensor(random.random())]
    everything = [*losses, *outputs, *gradients, *model.state_dict().values(), *state, *drawn]
    return everything, chosen, made


def assert_same(make, optimizer_of, **settings):
    expected, _, _ = train(make, optimizer_of, **settings)
    got, graphs, made = train(make, optimizer_of, graphs=True, **settings)
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other), graphs.why
    return graphs, made


OPTIMIZERS = {
    "sgd": lambda held: torch.optim.SGD(held, 0.1),
    "momentum": lambda held: torch.optim.SGD(held, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda held: torch.optim.Adam(held, 0.01),
    "adamw": lambda held: torch.optim.AdamW(held, 0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", [linear, mlp])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_graphs_leave_what_the_plain_loop_leaves(name, make, device):
    graphs, made = assert_same(make, OPTIMIZERS[name], device=device)

    assert graphs.why.startswith("one CUDA graph for forward, loss, backward")
    assert ("update by itself" in graphs.why.replace("updates", "update")) == ("adam" in name)
    assert len(made) == 2  # one for the full batches, one for the last
    if device == "cpu":
        assert [tape.runs for tape in made] == [8 * 3 - WARM_UP, 8 - WARM_UP]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_scheduler_may_change_the_rate_of_a_recorded_step(name, device):
    graphs, made = assert_same(mlp, OPTIMIZERS[name], device=device, epoch="scheduler", epochs=9)

    assert "updates by itself" in graphs.why
    assert len(made) == (2 if "adam" in name else 3)


def test_the_rate_may_change_in_every_step():
    def each(model, optimizer, step):
        optimizer.param_groups[0]["lr"] *= 0.99

    assert_same(mlp, OPTIMIZERS["momentum"], each=each)


def frozen(model, optimizer, epoch):
    model[0].weight.requires_grad_(epoch != 3)


def less_dropout(model, optimizer, epoch):
    model[3].p = 0.4 - 0.05 * epoch


def half_evaluating(model, optimizer, epoch):
    model[1].eval()


def reloaded(model, optimizer, epoch):
    if epoch == 4:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def moved(model, optimizer, epoch):
    if epoch == 4:
        model[0].weight.data = model[0].weight.data.clone()


def another_layer(model, optimizer, epoch):
    if epoch == 4:
        model[2] = nn.Tanh()


def another_weight(model, optimizer, epoch):
    if epoch == 4:
        optimizer.param_groups[0]["params"][-1] = model[4].bias = nn.Parameter(model[4].bias.detach() + 1)


@pytest.mark.parametrize(
    "change", [frozen, less_dropout, half_evaluating, reloaded, moved, another_layer, another_weight]
)
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_what_a_plugin_changes_between_epochs_is_seen(name, change):
    assert_same(mlp, OPTIMIZERS[name], epoch=change)


@pytest.mark.parametrize("change", [frozen, less_dropout, reloaded, moved])
def test_what_a_plugin_changes_between_batches_is_seen(change):
    assert_same(mlp, OPTIMIZERS["momentum"], each=lambda model, optimizer, step: change(model, optimizer, step // 6))


def test_a_fit_that_changes_again_and_again_goes_on_without_graphs():
    graphs, made = assert_same(
        mlp, OPTIMIZERS["adam"], sizes=[8] * 6, epochs=FEW + 3,
        epoch=lambda model, optimizer, epoch: setattr(model[3], "p", 0.01 * epoch + 0.1),
    )  # fmt: skip

    assert "again and again" in graphs.why
    assert len(made) == FEW + 1


def test_gradients_that_were_dropped_are_there_again_after_the_next_step():
    def each(model, optimizer, step):
        optimizer.zero_grad()

    assert_same(mlp, OPTIMIZERS["adam"], each=each)


def test_there_are_few_graphs():
    _, made = assert_same(linear, OPTIMIZERS["sgd"], sizes=[2, 3, 4, 5, 6, 7])

    assert len(made) == FEW


class Noisy(nn.Module):
    """Random numbers of Python, which a graph would freeze."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) * (0.5 + random.random())


class Counting(Noisy):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return self.layer(x) / self.calls


class Reading(Noisy):
    def forward(self, x):
        return self.layer(x) * float(x.detach().abs().max())


class Writing(Noisy):
    def forward(self, x):
        return self.layer(x.mul_(2))


class Skipping(Noisy):
    """Draws on the CPU by torch, and takes another way for it."""

    def forward(self, x):
        return self.layer(x) if torch.rand(()) < 2 else x


class Caching(Noisy):
    def __init__(self):
        super().__init__()
        self.seen = torch.zeros(())

    def forward(self, x):
        self.seen.add_(1)
        return self.layer(x) * self.seen


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Noisy, "RuntimeError: the bits of a replayed step differ"),
        (Counting, "RuntimeError: a step changes more than"),
        (Writing, "RuntimeError: a step changes more than"),
        (Reading, "RuntimeError: operation not permitted when stream is capturing"),
        (Skipping, "RuntimeError: operation not permitted when stream is capturing"),
        (Caching, "one CUDA graph"),
    ],
)
def test_a_model_that_cannot_be_recorded_trains_as_ever(make, why):
    graphs, _ = assert_same(make, OPTIMIZERS["momentum"])

    assert graphs.why.startswith(why)
    assert "\n" not in graphs.why


def test_graphs_are_given_up_where_one_bit_differs(monkeypatch):
    def replay(tape):
        right(tape)
        tape.operations[-1][1][0].view(-1)[:1].mul_(1.0000001)

    right = Tape.replay
    monkeypatch.setattr(Tape, "replay", torch.no_grad()(replay))

    graphs, made = assert_same(linear, OPTIMIZERS["sgd"])

    assert "bits" in graphs.why
    assert len(made) == 1


@pytest.mark.parametrize("where", ["__init__", "beside"])
def test_memory_that_does_not_suffice_for_a_second_copy_is_no_error(where, monkeypatch):
    @contextlib.contextmanager
    def beside(tape):
        yield
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch")

    def make(tape, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch")

    monkeypatch.setattr(Tape, where, make if where == "__init__" else beside)

    graphs, _ = assert_same(mlp, OPTIMIZERS["momentum"])

    assert graphs.why == "OutOfMemoryError: CUDA out of memory. Tried to allocate"


def test_an_interruption_while_recording_leaves_the_plain_step(monkeypatch):
    def record(tape, function):
        function()
        raise KeyboardInterrupt

    torch.manual_seed(0)
    model, batch = mlp(), data([8])[0]
    other = copy.deepcopy(model)
    monkeypatch.setattr(Tape, "record", record)
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    step = Graphs(model, nn.CrossEntropyLoss(), optimizer, plain(model, nn.CrossEntropyLoss(), optimizer), Tape).step()
    for _ in range(WARM_UP):
        one_step(step, batch)
    with pytest.raises(KeyboardInterrupt):
        one_step(step, batch)
    drawn = torch.rand(1)

    torch.manual_seed(0)
    mlp()
    optimizer = OPTIMIZERS["momentum"](other.parameters())
    for _ in range(WARM_UP + 1):
        one_step(plain(other, nn.CrossEntropyLoss(), optimizer), batch)

    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    assert torch.equal(drawn, torch.rand(1))


def one_step(step, batch):
    step.clear()
    loss = step.loss(step.forward(batch), batch)
    step.backward(loss)
    step.update()
    return loss


def graphs_of(model, optimizer, loss=None):
    loss = loss or nn.CrossEntropyLoss()
    tapes = []
    return Graphs(
        model, loss, optimizer, plain(model, loss, optimizer), lambda _: tapes.append(Tape(_)) or tapes[-1]
    ), tapes


def test_an_error_of_the_plain_step_is_the_users():
    class Failing(Noisy):
        def forward(self, x):
            self.seen = getattr(self, "seen", 0) + 1
            if self.seen > WARM_UP:
                raise ValueError("mine")
            return self.layer(x)

    with pytest.raises(ValueError, match="mine"):
        train(Failing, OPTIMIZERS["sgd"], graphs=True)


@pytest.mark.parametrize(
    "unfit",
    [
        lambda x, y: [x, y],
        lambda x, y: (x, y, y),
        lambda x, y: (x.requires_grad_(), y),
        lambda x, y: (torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x), y),
    ],
)
def test_other_batches_are_taken_as_they_are(unfit):
    torch.manual_seed(0)
    model = linear()
    graphs, tapes = graphs_of(model, OPTIMIZERS["sgd"](model.parameters()))
    for _ in range(WARM_UP + 3):
        one_step(graphs.step(), unfit(*data([8])[0]))

    assert tapes == []
    assert graphs.why == "no shape of a batch has come often enough to be recorded"


def test_a_loss_is_still_the_same_when_others_have_come():
    torch.manual_seed(0)
    model = linear()
    graphs, _ = graphs_of(model, OPTIMIZERS["sgd"](model.parameters()))
    step, losses, read = graphs.step(), [], []
    for batch in data([8] * 9):
        losses.append(one_step(step, batch))
        read.append(losses[-1].item())

    assert [loss.item() for loss in losses] == read
    assert not any(loss.requires_grad for loss in losses)


def test_a_loss_with_parameters_is_part_of_the_step():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, output, y):
            self.calls += 1
            return nn.functional.cross_entropy(output * self.scale, y) + self.calls * 0.01

    def run(graphs):
        torch.manual_seed(0)
        model, loss = linear(), Scaled()
        optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], 0.1)
        step = graphs_of(model, optimizer, loss)[0].step() if graphs else plain(model, loss, optimizer)
        return [one_step(step, batch).detach() for batch in data([8] * 9)], loss.calls, loss.scale

    (losses, calls, scale), (others, other_calls, other_scale) = run(False), run(True)

    assert all(map(torch.equal, losses, others))
    assert torch.equal(calls, other_calls)
    assert torch.equal(scale, other_scale)


# ------------------------------------------------------------------------------------------------------------- refusals


NO_HOOKS = SimpleNamespace(on_batch_end=print)
CUDA = torch.device("cuda:0")


def asked(model=None, loss=nn.functional.cross_entropy, kind=torch.optim.SGD, device=CUDA, hooks=NO_HOOKS, **settings):
    model = model or mlp()
    vouched, accumulate = settings.pop("asked", False), settings.pop("accumulate", 1)
    optimizer = kind(model.parameters(), **{"lr": 0.1, **settings})
    return refusal(model, loss, optimizer, device, hooks, accumulate, vouched)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_a_model_and_a_loss_of_torch_are_recorded(kind):
    assert asked(kind=kind) is None
    assert asked(kind=kind, loss=nn.CrossEntropyLoss()) is None


class MyLoss(nn.MSELoss):
    pass


class MySGD(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"device": torch.device("cpu")}, "a CUDA graph needs a CUDA device, this is cpu"),
        ({"accumulate": 2}, "gradients are accumulated over 2 batches"),
        ({"hooks": SimpleNamespace(on_gradients=print)}, "a plugin has on_gradients, which cannot run inside a graph"),
        ({"hooks": SimpleNamespace(forward=print)}, "a plugin has forward, which cannot run inside a graph"),
        ({"kind": MySGD}, "the optimizer MySGD is not torch's SGD, Adam or AdamW"),
        ({"kind": torch.optim.RMSprop}, "the optimizer RMSprop is not torch's SGD, Adam or AdamW"),
        ({"lr": torch.tensor(0.1)}, "the optimizer has its own lr"),
        ({"kind": torch.optim.Adam, "amsgrad": True}, "the optimizer has its own amsgrad"),
        ({"kind": torch.optim.Adam, "fused": True}, "the optimizer has its own fused"),
        ({"model": Noisy()}, "the layer Noisy is not one of torch.nn"),
        ({"model": nn.Sequential(nn.Sequential(Noisy()))}, "the layer Noisy is not one of torch.nn"),
        ({"model": nn.LSTM(2, 2, 2, dropout=0.5)}, "the layer LSTM has random states or devices of its own"),
        ({"loss": lambda output, y: output.mean()}, "the loss is not one of torch.nn or torch.nn.functional"),
        ({"loss": MyLoss()}, "the layer MyLoss is not one of torch.nn"),
    ],
)
def test_what_is_not_recorded(settings, why):
    assert asked(**settings) == why


@pytest.mark.parametrize(
    "settings", [{"model": Noisy()}, {"loss": lambda output, y: output.mean()}, {"loss": MyLoss()}]
)
def test_a_user_may_vouch_for_a_model_and_a_loss(settings):
    assert asked(asked=True, **settings) is None


def instance_forward():
    model = linear()
    model[0].forward = lambda x: x
    return model


HOOKINGS = {
    "forward": lambda model: model[0].register_forward_hook(lambda *_: None),
    "forward_pre": lambda model: model[0].register_forward_pre_hook(lambda *_: None),
    "backward": lambda model: model[0].register_full_backward_hook(lambda *_: None),
    "backward_pre": lambda model: model[0].register_full_backward_pre_hook(lambda *_: None),
    "tensor": lambda model: model[0].weight.register_hook(lambda gradient: None),
    "accumulated": lambda model: model[0].weight.register_post_accumulate_grad_hook(lambda held: None),
    "everywhere": lambda model: nn.modules.module.register_module_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", HOOKINGS)
def test_layers_with_hooks_are_not_recorded(name):
    model = linear()
    hook = HOOKINGS[name](model)
    try:
        assert "has hooks" in asked(model, asked=True)
    finally:
        hook.remove()
    assert asked(model) is None


def test_a_layer_whose_forward_was_replaced_is_not_one_of_torch():
    assert asked(instance_forward()) == "the layer Linear is not one of torch.nn"


def test_what_is_put_around_a_step_is_not_lost():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def why():
        return refusal(model, nn.functional.mse_loss, optimizer, CUDA, NO_HOOKS)

    StepLR(optimizer, 1)
    assert why() is None
    hook = optimizer.register_step_pre_hook(lambda *_: None)
    assert why() == "something has been put around the step of SGD"
    hook.remove()
    everywhere = register_optimizer_step_post_hook(lambda *_: None)
    assert why() == "something has been put around the step of SGD"
    everywhere.remove()
    optimizer.step = lambda: None
    assert why() == "something has been put around the step of SGD"


def test_gradients_that_nobody_clears_are_not_recorded():
    model = mlp()
    optimizer = torch.optim.SGD(model[0].parameters(), 0.1)

    assert refusal(model, nn.functional.mse_loss, optimizer, CUDA, NO_HOOKS) == "gradients outside it add up"


def test_nothing_is_recorded_under_a_profiler_or_autocast():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert asked() == "a profiler listens"
    with autocast():
        assert asked() == "autocast is on around the fit, and keeps copies of the weights"


@contextlib.contextmanager
def autocast():  # torch.autocast("cuda") turns itself off where there is no GPU
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


# ------------------------------------------------------------------------------------------------ needs a CUDA device


@needs_cuda
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_convolutions_on_a_gpu(name, monkeypatch):
    def make():
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    graphs, _ = assert_same(make, OPTIMIZERS[name], device="cuda", epoch="scheduler")

    assert graphs.why.startswith("one CUDA graph")


@needs_cuda
@pytest.mark.parametrize("make", [Noisy, Reading, Skipping, Writing])
def test_a_capture_that_fails_leaves_the_device_usable(make):
    graphs, _ = assert_same(make, OPTIMIZERS["momentum"], device="cuda")

    assert not graphs.why.startswith("one CUDA graph")
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(3, device="cuda").sum() > 0  # the generator draws
    assert_same(mlp, OPTIMIZERS["sgd"], device="cuda")  # and the next fit is recorded


@needs_cuda
def test_graphs_of_one_fit_outlive_its_changes():
    graphs, _ = assert_same(mlp, OPTIMIZERS["momentum"], device="cuda", epoch=less_dropout, sizes=[8] * 6 + [5] * 5)

    assert graphs.why
