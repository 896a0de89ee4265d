"""Steps that are not `loss(model(x), y)`: other batches, several optimizers, a whole step of one's own; all as by hand.

The capabilities "the user can write the whole step" and "several optimizers" of docs/comparison.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, StackDataset, TensorDataset

from framework import Trainer, hookimpl
from framework.testing import tiny_data

X, Y = tiny_data(11)


class StopAt:
    """Saves and stops after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.step == self.step:
            trainer.save()
            trainer.stop("to be resumed")


def mean(losses: Iterable[tuple[float, int]]) -> float:
    """Over samples, as the trainer adds up."""
    total, count = 0.0, 0
    for loss, samples in losses:
        total, count = total + loss * samples, count + samples
    return total / count


# ------------------------------------------------------------------------------------- batches that are no pair (x, y)


class OfDicts:
    """Takes batches {"image", "label"}; `predict` gives the images alone."""

    def forward(self, model: nn.Module, split: str, batch: Any) -> Any:
        return model(batch[0] if split == "predict" else batch["image"])

    def compute_loss(self, trainer: Trainer, output: Any, batch: Any) -> Any:
        return trainer.loss(output, batch["label"])


class OfTriples:
    """Takes batches (x1, x2, y): whether the difference of two answers is y. `predict` takes the pair (x1, x2)."""

    def forward(self, model: nn.Module, split: str, batch: Any) -> Any:
        first, second = batch[0] if split == "predict" else batch[:2]
        return model(first) - model(second)

    def compute_loss(self, trainer: Trainer, output: Any, batch: Any) -> Any:
        return trainer.loss(output, batch[2])


class Named(Dataset[Any]):
    """Samples that are dicts, with a part that is no tensor."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": X[row], "label": Y[row], "file": f"{row}.png"}


KINDS: dict[str, tuple[Any, Any, Any, Any]] = {  # plugin, data, output of a model for a batch, what predict is given
    "dict": (OfDicts, StackDataset(image=X, label=Y), lambda model, batch: model(batch["image"]), X),
    "dict with names": (OfDicts, Named(), lambda model, batch: model(batch["image"]), X),
    "triple": (
        OfTriples, TensorDataset(X, X.flip(0), Y), lambda model, batch: model(batch[0]) - model(batch[1]), (X, X + 1),
    ),
}  # fmt: skip


def target_of(batch: Any) -> Tensor:
    return batch["label"] if isinstance(batch, dict) else batch[2]


def by_hand(oracle: Any, data: Any, output_of: Any) -> tuple[nn.Module, torch.optim.Optimizer, list[dict[str, float]]]:
    model = oracle.mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    train, val, rows = DataLoader(data, 3, shuffle=True), DataLoader(data, 3), []
    for _ in range(3):
        model.train()
        losses = {"train_loss": [], "val_loss": []}  # type: dict[str, list[tuple[float, int]]]
        for batch in train:
            optimizer.zero_grad()
            loss = F.mse_loss(output_of(model, batch), target_of(batch))
            loss.backward()
            optimizer.step()
            losses["train_loss"].append((loss.item(), len(target_of(batch))))
        model.eval()
        with torch.no_grad():
            for batch in val:
                loss = F.mse_loss(output_of(model, batch), target_of(batch))
                losses["val_loss"].append((loss.item(), len(target_of(batch))))
        rows.append({name: mean(parts) for name, parts in losses.items()})
    return model, optimizer, rows


@pytest.mark.parametrize("loader", ["auto", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_batches_train_validate_evaluate_and_predict_as_by_hand(oracle: Any, kind: str, loader: str) -> None:
    plugin, data, output_of, inputs = KINDS[kind]
    model, optimizer, rows = by_hand(oracle, data, output_of)
    expected = oracle.state(model, optimizer)
    got = oracle.mlp()
    trainer = Trainer(got, F.mse_loss, torch.optim.Adam(got.parameters(), lr=0.1), [plugin()], "cpu")
    torch.manual_seed(1)
    result = trainer.fit(data, data, epochs=3, batch_size=3, loader=loader)
    oracle.assert_same(expected, oracle.state(got, trainer.optimizer))
    assert [{name: row[name] for name in rows[0]} for row in result.history] == rows
    assert trainer.evaluate(data, batch_size=3) == {"test_loss": rows[-1]["val_loss"]}
    with torch.no_grad():
        answer = output_of(model, inputs if kind == "triple" else {"image": inputs})
    assert torch.equal(trainer.predict(inputs), answer)


@pytest.mark.parametrize("kind", KINDS)
def test_other_batches_accumulate_by_their_samples(oracle: Any, kind: str) -> None:
    plugin, data, _, _ = KINDS[kind]
    models = [oracle.mlp().double() for _ in range(2)]
    for model, sizes in zip(models, ({"batch_size": 2, "accumulate": 3}, {"batch_size": 6}), strict=True):
        whole = [{k: v.double() if isinstance(v, Tensor) else v for k, v in s.items()} if isinstance(s, dict)
                 else tuple(part.double() for part in s) for s in data]  # fmt: skip
        trainer = Trainer(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1), [plugin()], "cpu")
        trainer.fit(Rows(whole), epochs=3, shuffle=False, **sizes)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


class Rows(Dataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]


def test_a_collate_fn_makes_pairs_for_plugins_that_read_x_and_y(oracle: Any) -> None:
    def collate(samples: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([sample["image"] for sample in samples]), torch.stack([s["label"] for s in samples])

    torch.manual_seed(1)
    expected = oracle.mlp()
    rows = oracle.by_hand(expected, F.mse_loss, torch.optim.SGD(expected.parameters(), lr=0.1), (X, Y), batch_size=3)
    got = oracle.mlp()
    trainer = Trainer(got, F.mse_loss, torch.optim.SGD(got.parameters(), lr=0.1), device="cpu")
    assert trainer.fit(DataLoader(Named(), 3, shuffle=True, collate_fn=collate)).history == rows


# --------------------------------------------------------------------------------------------------- several optimizers


class Gan:
    """A generator against a critic; each has an optimizer, and the critic steps first.

    The optimizer of the Trainer is that of the generator; the other one is made and remembered here. `train_loss` is
    the loss of the generator, `critic_loss` that of the critic.
    """

    def __init__(self, lr: float = 0.02) -> None:
        self.lr = lr

    def on_fit_start(self, trainer: Trainer) -> None:
        self.optimizer = torch.optim.Adam(trainer.model.get_submodule("critic").parameters(), lr=self.lr)
        self.losses = torch.zeros(2)  # their sum over the samples of the epoch, and how many there were

    def on_epoch_start(self) -> None:
        self.losses.zero_()

    def forward(self, model: Any, split: str, batch: Any) -> Tensor:
        noise = batch[0] if split == "predict" else torch.randn(len(batch[0]), 2)
        return model["generator"](noise)  # type: ignore[no-any-return]

    def compute_loss(self, trainer: Trainer, split: str, output: Tensor, batch: Any) -> Tensor:
        critic, losses = trainer.model.get_submodule("critic"), F.binary_cross_entropy_with_logits
        if split == "train":
            real, fake = critic(batch[0]), critic(output.detach())
            loss = losses(real, torch.ones_like(real)) + losses(fake, torch.zeros_like(fake))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses += torch.stack([loss.detach() * len(real), torch.tensor(float(len(real)))])
        fooled = critic(output)
        return losses(fooled, torch.ones_like(fooled))

    def metric_names(self, split: str) -> list[str]:
        return ["critic_loss"] if split == "train" else []

    @hookimpl(split="train")
    def on_split_end(self, metrics: Any) -> None:
        total, count = self.losses.tolist()
        metrics["critic_loss"] = total / count

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = state["losses"]


REAL = TensorDataset(torch.randn(11, 2, generator=torch.Generator().manual_seed(2)) + 3)  # a batch is a list of one


def networks() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({
        "generator": nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)),
        "critic": nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1)),
    })  # fmt: skip


def gan_by_hand() -> tuple[nn.ModuleDict, torch.optim.Optimizer, torch.optim.Optimizer, list[tuple[float, float]]]:
    model, rows = networks(), []
    generator, critic = model["generator"], model["critic"]
    of_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
    of_critic = torch.optim.Adam(critic.parameters(), lr=0.02)
    losses = F.binary_cross_entropy_with_logits
    torch.manual_seed(1)
    loader = DataLoader(REAL, batch_size=3, shuffle=True)
    for _ in range(3):
        of_this_epoch, total = [], torch.zeros(())
        for (x,) in loader:
            of_generator.zero_grad()
            made = generator(torch.randn(len(x), 2))
            real, fake = critic(x), critic(made.detach())
            loss = losses(real, torch.ones_like(real)) + losses(fake, torch.zeros_like(fake))
            of_critic.zero_grad()
            loss.backward()
            of_critic.step()
            total += loss.detach() * len(x)
            fooled = critic(made)
            loss = losses(fooled, torch.ones_like(fooled))
            loss.backward()
            of_generator.step()
            of_this_epoch.append((loss.item(), len(x)))
        rows.append((mean(of_this_epoch), total.item() / 11))
    return model, of_generator, of_critic, rows


def gan(run_dir: Path | None = None, resume: Path | None = None, stop: int = 0) -> tuple[Trainer, list[Any]]:
    model = networks()
    optimizer = torch.optim.Adam(model["generator"].parameters(), lr=0.01)
    plugins = [Gan(), *([StopAt(stop)] if stop else [])]
    trainer = Trainer(model, F.binary_cross_entropy_with_logits, optimizer, plugins, "cpu", run_dir)
    torch.manual_seed(1 if resume is None else 99)
    result = trainer.fit(REAL, epochs=3, batch_size=3, resume=resume)
    return trainer, [(row["train_loss"], row["critic_loss"]) for row in result.history]


def test_two_networks_with_an_optimizer_each_train_as_by_hand(oracle: Any) -> None:
    model, of_generator, of_critic, rows = gan_by_hand()
    expected = [oracle.state(model, of_generator), of_critic.state_dict()]
    trainer, got = gan()
    own = trainer.plugins["gan"].optimizer
    oracle.assert_same(expected, [oracle.state(trainer.model, trainer.optimizer), own.state_dict()])
    assert got == rows


def test_stopped_after_any_step_both_optimizers_go_on(oracle: Any, tmp_path: Path) -> None:
    alone, rows = gan()
    expected = [dict(alone.model.state_dict()), alone.optimizer.state_dict(), alone.plugins.states()]
    drawn = torch.get_rng_state()
    for step in range(1, alone.step):
        gan(tmp_path / str(step), stop=step)
        trainer, got = gan(resume=tmp_path / str(step))
        assert got == rows
        states = {"gan": trainer.plugins.states()["gan"]}
        oracle.assert_same(expected, [dict(trainer.model.state_dict()), trainer.optimizer.state_dict(), states])
        assert torch.equal(torch.get_rng_state(), drawn)


def test_what_it_makes_is_evaluated_and_predicted_without_a_step() -> None:
    trainer, _ = gan()
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    noise = torch.randn(4, 2)
    assert trainer.predict(noise).shape == (4, 2)
    assert set(trainer.evaluate(REAL, batch_size=3)) == {"test_loss"}
    assert all(map(torch.equal, before, trainer.model.parameters()))


# ------------------------------------------------------------------------------------------- a whole step of one's own


class OwnStep:
    """Sharpness-aware minimization: a step by the gradients of the place where the loss is highest nearby.

    All of the step is in `forward`; what comes after it has nothing left to do.
    """

    def __init__(self, radius: float = 0.05) -> None:
        self.radius = radius

    @hookimpl(split="train")
    def forward(self, trainer: Trainer, model: nn.Module, batch: Any) -> Any:
        x, y = batch
        output = model(x)
        self.loss = trainer.loss(output, y)
        sharp_step(model, self.loss, lambda: trainer.loss(model(x), y), trainer.optimizer, self.radius)
        return output

    @hookimpl(split="train")
    def compute_loss(self) -> Tensor:
        return self.loss.detach()

    def backward(self) -> bool:
        return True

    def optimizer_step(self) -> bool:
        return True


def sharp_step(model: nn.Module, loss: Any, again: Any, optimizer: torch.optim.Optimizer, radius: float) -> None:
    loss.backward()
    parameters = list(model.parameters())
    with torch.no_grad():
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        moves = [radius * parameter.grad / norm for parameter in parameters]
        for parameter, move in zip(parameters, moves, strict=True):
            parameter += move
    optimizer.zero_grad()
    again().backward()
    with torch.no_grad():
        for parameter, move in zip(parameters, moves, strict=True):
            parameter -= move
    optimizer.step()


def test_a_whole_step_of_ones_own_is_the_step_by_hand(oracle: Any) -> None:
    model, rows = oracle.mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
    for _ in range(3):
        losses = []
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            sharp_step(model, loss, lambda x=x, y=y: F.mse_loss(model(x), y), optimizer, 0.05)
            losses.append((loss.item(), len(x)))
        rows.append(mean(losses))
    expected = oracle.state(model, optimizer)
    got = oracle.mlp()
    own = torch.optim.SGD(got.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(got, F.mse_loss, own, [OwnStep()], "cpu")
    torch.manual_seed(1)
    result = trainer.fit((X, Y), epochs=3, batch_size=3)
    oracle.assert_same(expected, oracle.state(got, own))
    assert [row["train_loss"] for row in result.history] == rows
    assert trainer.evaluate((X, Y)).keys() == {"test_loss"}  # there it is left to the loop
