"""Which way a fit takes, what it tells of it, and that every way ends with the bits of the plain loop."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from framework import DataError, Recipe, Trainer, UsageError, run
from framework.engine import Engine, private


def data(samples: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 3, generator=generator), torch.randn(samples, 2, generator=generator)


def trained(train: Any = None, plugins: Any = (), optimizer: str = "Adam", **options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.ReLU(), nn.Linear(4, 2))
    made = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05)
    sizes = {} if isinstance(train, DataLoader) else {"batch_size": 3, "drop_last": True}
    trainer = Trainer(model, F.mse_loss, made, plugins=plugins, device="cpu")
    rows = trainer.fit(data() if train is None else train, data(4), epochs=4, **sizes, **options).history
    return trainer, {"rows": rows, "model": dict(model.state_dict()), "optimizer": made.state_dict(),
                     "random": torch.get_rng_state()}  # fmt: skip


class Squares(Dataset[Any]):
    """Each sample is always the same, and is asked for one by one."""

    def __init__(self, noise: float = 0.0) -> None:
        self.x, self.y = data()
        self.noise, self.asked = noise, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        return self.x[index] + (self.noise * torch.rand(3) if self.noise else 0), self.y[index]


# ---------------------------------------------------------------------------------------------------------- the bits


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop"])
@pytest.mark.parametrize("options", [{}, {"loader": "torch"}, {"fast": "plain"}, {"graph": True}, {"accumulate": 1}])
def test_every_exact_way_ends_with_the_same_bits(oracle: Any, optimizer: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    expected = trained(optimizer=optimizer, fast="plain", loader="torch")[1]

    oracle.assert_same(expected, trained(optimizer=optimizer, **options)[1])


def test_cached_samples_end_with_the_same_bits_and_are_asked_for_before_the_first_step_alone(oracle: Any) -> None:
    class Counts:
        def on_fit_start(self, trainer: Trainer) -> None:
            self.asked = squares.asked

    expected, squares, counts = trained(Squares())[1], Squares(), Counts()
    got = trained(squares, [counts], cache=True)[1]

    oracle.assert_same(expected, got)
    assert squares.asked == counts.asked


def test_fast_plain_calls_nothing_but_torchs_public_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bare_step", "stepping", "clearing", "backward"):
        monkeypatch.setattr(private, name, lambda *_, name=name: pytest.fail(f"{name} was asked for"))
    trained(fast="plain")
    with pytest.raises(pytest.fail.Exception, match="was asked for"):
        trained()


def test_fast_math_learns_as_well_and_says_what_is_on() -> None:
    keeps = Keeps()
    trainer, got = trained(plugins=[keeps], fast="math", optimizer="SGD")
    exact = trained(optimizer="SGD")[1]

    assert [row["val_loss"] for row in got["rows"]] == pytest.approx([r["val_loss"] for r in exact["rows"]], rel=0.2)
    assert list(got["model"]) == list(exact["model"])
    assert keeps.start["math"].startswith("fused SGD")
    assert "torch.compile" in keeps.end["math"]
    assert trainer.optimizer.param_groups[0]["fused"] is None


# ------------------------------------------------------------------------------------------------------ what is told


class Keeps:
    """What the engine tells at the start of the fit and at its end."""

    def on_fit_start(self, trainer: Trainer) -> None:
        self.start = trainer.engine.told()

    def on_fit_end(self, trainer: Trainer) -> None:
        self.end = trainer.engine.told()


def own_collate(rows: Any) -> Any:
    return tuple(torch.stack(part) for part in zip(*rows, strict=True))


@pytest.mark.parametrize(
    ("train", "options", "told"),
    [
        (data(), {}, "from memory"),
        (TensorDataset(*data()), {}, "from memory"),
        (Subset(TensorDataset(*data()), [0, 2, 4, 5]), {}, "from memory"),
        (DataLoader(TensorDataset(*data()), 3, shuffle=True, drop_last=True), {}, "from memory"),
        (data(), {"loader": "torch"}, "by torch's DataLoader: loader='torch'"),
        (data(), {"fast": "plain"}, "by torch's DataLoader: fast='plain'"),
        (DataLoader(TensorDataset(*data(6)), 3, collate_fn=own_collate), {},
         "by torch's DataLoader: its collate_fn is one of your own"),
        (Squares(0.1), {}, "by torch's DataLoader: the data set is a Squares; "
         "cache=True would keep its samples"),
        (Squares(), {"cache": True}, "from memory"),
    ],
)  # fmt: skip
def test_a_fit_tells_where_its_batches_come_from(train: Any, options: dict[str, Any], told: str) -> None:
    keeps = Keeps()
    trained(train, [keeps], optimizer="SGD", **options)

    assert keeps.start["train"] == told
    assert keeps.end["train"] == told


def test_a_whole_set_needs_no_loader_and_tells_of_none() -> None:
    keeps = Keeps()
    model = nn.Linear(3, 2)
    trainer = Trainer(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1), [keeps], "cpu")
    trainer.fit(data(), epochs=2)

    assert "train" not in keeps.start


def test_a_graph_that_was_asked_for_is_told_of_where_there_can_be_none() -> None:
    keeps = Keeps()
    trained(plugins=[keeps], graph=True)

    assert keeps.end["step"] == "no CUDA graph: a CUDA graph needs a CUDA device, this is cpu"


def test_the_loaders_of_a_trainer_stay_torchs_own() -> None:
    trainer = trained()[0]

    assert type(trainer.loaders["train"]) is DataLoader
    assert trainer.engine.told()["train"] == "from memory"


def test_a_recipe_may_ask_for_a_way_too(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def recipe() -> Recipe:
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Recipe(model=model, loss=F.mse_loss, optimizer=optimizer, train=data(), batch_size=2, loader="torch")

    run(recipe, device="cpu", run_dir=tmp_path / "run", plugins=["no:plot"])

    assert "7 samples in 4 batches of 2, by torch's DataLoader: loader='torch'\n" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loader": "memory"}, r"loader='memory': no such way. There is: auto, torch."),
        ({"fast": "exakt"}, r"fast='exakt': no such way. Did you mean 'exact'\?"),
        ({"cache": True, "loader": "torch"}, "cache=True keeps samples in memory, loader='torch' asks for each anew"),
        ({"cache": True, "fast": "plain"}, "cache=True keeps samples in memory, fast='plain' asks for each anew"),
        ({"cache": "no"}, "cache must be True or False, got 'no'"),
        ({"graph": 1}, "graph must be True or False, got 1"),
        ({"graph": True, "fast": "math"}, "graph=True records the exact step, not that of fast='math'"),
    ],
)
def test_ways_that_do_not_exist_or_exclude_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trained(**options)
    with pytest.raises(UsageError, match=message):
        Engine(**options)


def test_samples_that_are_not_always_the_same_are_not_cached() -> None:
    with pytest.raises(DataError, match="cache=True needs samples that are always the same; a Squares draws"):
        trained(Squares(0.1), cache=True)


def test_a_fit_that_fails_leaves_nothing_switched_on() -> None:
    class Fails:
        def on_epoch_end(self) -> None:
            raise RuntimeError("in a plugin")

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters())
    trainer = Trainer(model, F.mse_loss, optimizer, [Fails()], "cpu")
    with pytest.raises(RuntimeError, match="in a plugin"):
        trainer.fit((torch.randn(4, 1, 4, 4), torch.randn(4, 1)), batch_size=2, fast="math")

    assert optimizer.param_groups[0]["fused"] is None
    assert model[0].weight.is_contiguous()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("fast", ["exact", "plain"])
def test_a_model_or_an_optimizer_that_a_plugin_puts_in_another_ones_place_is_taken(oracle: Any, fast: str) -> None:
    class Replaces:
        def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
            if epoch == 2:
                trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
                kept.append([parameter.detach().clone() for parameter in trainer.model.parameters()])

    kept: list[Any] = []
    trainer = trained(plugins=[Replaces()], fast=fast)[0]

    oracle.assert_same(kept[0], [parameter.detach() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("fast", ["exact", "plain"])
def test_a_frozen_layer_stays_frozen(fast: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[1].eval()
    model[1].train = lambda mode=True: model[1]  # type: ignore[method-assign, assignment]
    trainer = Trainer(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
    trainer.fit(data(), epochs=2, batch_size=3, fast=fast)

    assert torch.equal(model[1].running_mean, torch.zeros(2))  # type: ignore[arg-type]


def test_what_hangs_on_a_data_set_need_not_be_comparable(oracle: Any) -> None:
    class Hangs:
        def on_epoch_start(self, trainer: Trainer) -> None:
            trainer.loaders["train"].dataset.note = numpy.ones(3)

    oracle.assert_same(trained()[1], trained(plugins=[Hangs()])[1])


@pytest.mark.parametrize("how", ["fit", "evaluate"])
def test_data_is_not_kept_longer_than_by_the_trainer(how: str) -> None:
    class Kept(Dataset[Any]):
        x, y = data(6)

        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Any:
            return self.x[index], self.y[index]

    trainer = trained()[0]
    data_set = Kept()
    alive = weakref.ref(data_set)
    if how == "fit":
        trainer.fit(data_set, epochs=1, batch_size=3, cache=True)
        trainer.loaders.clear()
    else:
        trainer.evaluate(data_set, batch_size=3)
    del data_set
    gc.collect()

    assert alive() is None
