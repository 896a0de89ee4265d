"""freeze: the loop by hand with the same requires_grad, gradual unfreezing, resuming, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.freeze import Freeze
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from framework import Trainer, UsageError, hookimpl

X = torch.randn(14, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(14) % 3
EPOCHS, STEPS = 4, 5
OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU())
        self.layer1 = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layer2(self.layer1(self.stem(x))))


def objects(make: str = "Adam") -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = Net()
    return model, OPTIMIZERS[make](model.parameters())


def fitted(plugins: Any, make: str = "Adam", run_dir: Path | None = None, **options: Any) -> tuple[Trainer, Any]:
    model, optimizer = objects(make)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, plugins, "cpu", run_dir)
    return trainer, trainer.fit((X, Y), (X[:5], Y[:5]), **{"epochs": EPOCHS, "batch_size": 3, **options})


def by_hand(frozen: dict[str, int], make: str = "Adam", accumulate: int = 1) -> tuple[Net, torch.optim.Optimizer]:
    """The loop with the modules of these names frozen until an epoch."""
    model, optimizer = objects(make)
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
    val = DataLoader(TensorDataset(X[:5], Y[:5]), batch_size=3)
    for epoch in range(EPOCHS):
        model.train()
        for name, until in frozen.items():
            model.get_submodule(name).requires_grad_(epoch >= until).train(epoch >= until)
        batches = list(loader)
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            optimizer.zero_grad()
            for x, y in window:
                weight = len(x) / sum(len(part) for part, _ in window)
                loss = nn.functional.cross_entropy(model(x), y)
                (loss if weight == 1 else loss * weight).backward()
            optimizer.step()
        model.eval()
        for _ in val:
            pass
    model.requires_grad_(True)
    return model, optimizer


CASES: dict[str, tuple[Any, dict[str, int]]] = {
    "for good": (lambda: [Freeze(["stem"])], {"stem": 99}),
    "until an epoch": (lambda: [Freeze("stem", 2)], {"stem": 2}),
    "by a pattern": (lambda: [Freeze(["layer*"], until_epoch=1)], {"layer1": 1, "layer2": 1}),
    "one after the other": (
        lambda: [Freeze(["layer1"], 1), Freeze(["stem"], 2, "deeper"), Freeze(["layer2.0"], name="for_good")],
        {"layer1": 1, "stem": 2, "layer2.0": 99},
    ),
}


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_loop_by_hand_to_the_bit(oracle: Any, case: str, make: str) -> None:
    """Momentum and weight decay too: Adam's steps of a parameter begin where it is trained first."""
    plugins, frozen = CASES[case]
    trainer, _ = fitted(plugins(), make)
    mine = oracle.state(trainer.model, trainer.optimizer)
    oracle.assert_same(oracle.state(*by_hand(frozen, make)), mine)


def test_it_is_the_loop_by_hand_with_windows_too(oracle: Any) -> None:
    plugins, frozen = CASES["one after the other"]
    trainer, _ = fitted(plugins(), accumulate=3)
    mine = oracle.state(trainer.model, trainer.optimizer)
    oracle.assert_same(oracle.state(*by_hand(frozen, accumulate=3)), mine)


def test_what_is_frozen_stays_as_it_is_to_the_bit(oracle: Any) -> None:
    before = dict(objects()[0].stem.state_dict())
    trainer, _ = fitted([Freeze(["stem"])], "SGD")
    oracle.assert_same(before, dict(trainer.model.get_submodule("stem").state_dict()))


def test_a_gradient_that_is_left_over_moves_nothing(oracle: Any) -> None:
    """Also where zero_grad leaves zeros: weight decay would move what has them."""

    class Zeros(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = False) -> None:
            super().zero_grad(set_to_none=False)

    model = Net()
    model(X).sum().backward()
    before = {name: value.clone() for name, value in model.stem.state_dict().items()}
    optimizer = Zeros(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    Trainer(model, nn.CrossEntropyLoss(), optimizer, [Freeze(["stem"])], "cpu").fit((X, Y), epochs=2, batch_size=3)
    oracle.assert_same(before, dict(model.stem.state_dict()))


def test_a_single_parameter_can_be_frozen_and_its_module_trains_on() -> None:
    class Modes:
        @hookimpl(split="train")
        def on_batch_end(self, trainer: Trainer) -> None:
            self.training = trainer.model.training and trainer.model.get_submodule("stem.1").training

    modes = Modes()
    trainer, _ = fitted([Freeze(["stem.1.weight", "*.bias"]), modes])
    start = objects()[0].state_dict()
    same = [name for name, value in trainer.model.state_dict().items() if torch.equal(value, start[name])]
    assert same == ["stem.0.bias", "stem.1.weight", "stem.1.bias", "layer1.0.bias", "layer1.1.bias", "layer2.0.bias",
                    "head.bias"]  # fmt: skip
    assert modes.training


@pytest.mark.parametrize("step", [3, 5, 7, 10, 12])
def test_interrupted_and_resumed_it_ends_as_it_does_alone(oracle: Any, tmp_path: Path, step: int) -> None:
    """In the middle of an epoch on_split_start is not called again; and after an epoch's last batch."""

    class StopAt:
        @hookimpl(split="train")
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == step:
                trainer.save()
                trainer.stop("to be resumed")

    plugins, _ = CASES["one after the other"]
    alone, whole = fitted(plugins())
    fitted([*plugins(), StopAt()], run_dir=tmp_path)
    resumed, result = fitted(plugins(), run_dir=tmp_path, resume=tmp_path)
    oracle.assert_same(whole.history, result.history)
    oracle.assert_same(oracle.state(alone.model, alone.optimizer), oracle.state(resumed.model, resumed.optimizer))


@pytest.mark.parametrize("until", [None, 2])
@pytest.mark.parametrize("fails", [False, True], ids=["to its end", "with an error"])
def test_every_parameter_has_again_what_it_had_before_the_fit(until: int | None, fails: bool) -> None:
    class Fails:
        def on_epoch_end(self) -> None:
            if fails:
                raise ValueError("the disk fell off")

    model, optimizer = objects()
    weight = model.get_parameter("stem.0.weight").requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, [Freeze(["stem", "layer1"], until), Fails()], "cpu")
    numbers = weight.clone()
    if fails:
        with pytest.raises(ValueError, match="the disk fell off"):
            trainer.fit((X, Y), epochs=EPOCHS)
    else:
        trainer.fit((X, Y), epochs=EPOCHS)
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert torch.equal(weight, numbers)


def test_one_instance_freezes_anew_in_a_second_fit(oracle: Any) -> None:
    plugin = Freeze(["stem"], 2)
    first, second = (fitted([plugin])[0] for _ in range(2))
    oracle.assert_same(dict(first.model.state_dict()), dict(second.model.state_dict()))


def test_a_tied_weight_is_frozen_by_either_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Any:
            return self.head(self.second(self.first(x)))

    model = Tied()
    before = model.first.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(model, nn.CrossEntropyLoss(), optimizer, [Freeze(["second"])], "cpu").fit((X, Y))
    assert torch.equal(before, model.first.weight)


def test_a_tied_weight_that_two_freeze_by_different_names_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    plugins = [Freeze("0.weight", 1), Freeze("1.weight", 2, name="b")]
    trainer = Trainer(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), plugins, "cpu")
    with pytest.raises(UsageError, match=r"freeze and b both freeze 1\.weight"):
        trainer.fit((X, Y), epochs=3)


def test_a_layer_without_numbers_before_its_first_batch_is_frozen_too() -> None:
    class Looks:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def on_epoch_end(self, trainer: Trainer) -> None:
            self.seen.append(next(trainer.model.parameters()).detach().clone())

    looks = Looks()
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(model, nn.CrossEntropyLoss(), optimizer, [Freeze(["0"], 2), looks], "cpu").fit((X, Y), epochs=3)
    assert [torch.equal(*pair) for pair in itertools.pairwise(looks.seen)] == [True, False]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_costs_no_call_a_batch() -> None:
    hooks = fitted([Freeze(["stem"], 1)])[0].plugins.frozen("train")
    hot = "on_batch_start", "forward", "compute_loss", "backward", "on_gradients", "optimizer_step", "on_batch_end"
    assert [name for name in hot if getattr(hooks, name)] == []


@pytest.mark.parametrize(
    ("plugins", "said"),
    [
        ([Freeze(["stm"])], r"freeze: the model has no 'stm'. Did you mean 'stem' or 'stem.3' or 'stem.2'\?"),
        ([Freeze(["encoder"])], r"freeze: the model has no 'encoder'. It has stem, stem.0, stem.1, .*, \.\.\."),
        ([Freeze(["stem.5*"])], r"the model has no 'stem.5\*'"),
        ([Freeze(["*"])], "freeze: nothing is left to train in epoch 0: all of it is frozen"),
        ([Freeze(["stem", "layer*"], 1), Freeze(["head"], name="b")], "nothing is left to train in epoch 0"),
        (
            [Freeze(["layer*"], 1), Freeze(["layer1.0"], name="b")],
            "freeze and b both freeze layer1.0.bias: name it in one of them",
        ),
    ],
    ids=["misspelt", "unknown", "a pattern of nothing", "everything", "everything, by two", "twice"],
)
def test_what_cannot_be_frozen_is_refused_before_the_first_step(plugins: Any, said: str) -> None:
    model, optimizer = objects()
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, plugins, "cpu")
    with pytest.raises(UsageError, match=said):
        trainer.fit((X, Y))
    assert trainer.step == 0
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), r"freeze: say what is to be frozen, by name: Freeze\(\['backbone'\]\)"),
        (([0],), r"freeze: modules are given by their names, such as Freeze\(\['backbone'\]\), got 0"),
        ((nn.Linear(4, 4),), r"modules are given by their names, .*, got Linear\(in_features=4"),
        ((["stem"], 0), "until_epoch must be an epoch, a whole number from 1 up, got 0"),
        ((["stem"], 1.5), "until_epoch must be an epoch, a whole number from 1 up, got 1.5"),
    ],
    ids=["nothing", "a number", "a module", "epoch 0", "half an epoch"],
)
def test_what_says_nothing_is_refused(arguments: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Freeze(*arguments)
