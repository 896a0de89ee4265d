from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.clip_gradients import ClipGradients
from framework_plugins.lr_find import find_lr
from framework_plugins.schedule import Schedule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from framework import Trainer, UsageError, hookimpl
from framework.cli import main
from framework.testing import tiny_data, tiny_trainer


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 3))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    return TensorDataset(torch.randn(24, 4, generator=generator), torch.arange(24) % 3)


def trainer_of(model: nn.Module, lr: float = 0.01, plugins: Any = (), loss: Any = None) -> Trainer:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Trainer(model, loss or nn.CrossEntropyLoss(), optimizer, plugins, device="cpu")


def everything(trainer: Trainer, *generators: torch.Generator) -> Any:
    """What a range test must leave alone, with the bytes of each tensor."""

    def bits(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return str(tree.dtype), tuple(tree.shape), tree.detach().numpy().tobytes()
        if isinstance(tree, dict):
            return {key: bits(value) for key, value in tree.items()}
        return [bits(value) for value in tree] if isinstance(tree, (list, tuple)) else repr(tree)

    model = trainer.model
    return bits(
        [
            model.state_dict(), trainer.optimizer.state_dict(), [module.training for module in model.modules()],
            [parameter.grad for parameter in model.parameters()], torch.get_rng_state(), random.getstate(),
            [generator.get_state() for generator in generators], trainer.epoch, trainer.step, trainer.history,
            trainer.samples, trainer.weight, list(trainer.loaders), trainer.metric_names,
        ]
    )  # fmt: skip


def test_the_rates_rise_by_a_factor_and_each_loss_is_that_of_a_loop_by_hand() -> None:
    found = find_lr(trainer_of(net(), lr=0.5), data(), 8, shuffle=False, start=1e-4, end=1e-2, steps=11)
    model, torch_state = net(), torch.get_rng_state()
    optimizer, losses = torch.optim.Adam(model.parameters()), []
    batches = [batch for _ in range(4) for batch in DataLoader(data(), 8)]
    torch.set_rng_state(torch_state)
    rates = [1e-4 * 100 ** (step / 10) for step in range(11)]
    # the batches of a DataLoader draw a seed of their own in each pass
    for step, rate in enumerate(rates):
        if step % 3 == 0:
            torch.empty((), dtype=torch.int64).random_()
        x, y = batches[step]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert found.rates == rates
    assert found.losses == losses


# Lightning #6675 and #9672, fastai #3013, pytorch-lr-finder #11
@pytest.mark.parametrize("fitted", [False, True])
def test_it_leaves_everything_as_it_was(fitted: bool) -> None:
    trainer = trainer_of(net())
    if fitted:
        trainer.fit(data(), epochs=2, batch_size=8)
        trainer.model[1].eval()
    before = everything(trainer)
    parameters = [id(parameter) for parameter in trainer.model.parameters()]
    assert len(find_lr(trainer, data(), 8, steps=20).losses) == 20
    assert everything(trainer) == before
    assert [id(parameter) for parameter in trainer.model.parameters()] == parameters


def test_a_fit_after_it_has_the_bits_of_one_without_it(oracle: Any) -> None:
    def fitted(look: bool) -> Any:
        trainer = trainer_of(net())
        torch.manual_seed(1)
        if look:
            find_lr(trainer, data(), 8, steps=15)
        result = trainer.fit(data(), epochs=3, batch_size=8)
        return result.history, everything(trainer)

    assert fitted(True) == fitted(False)


def test_lists_and_dicts_that_modules_and_plugins_add_to_are_as_they_were() -> None:
    """Only the first level of dicts was put back."""

    class Noting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(len(x))
            return super().forward(x)

    class Counting:
        def __init__(self) -> None:
            self.steps, self.deep = [0], {"inner": {"steps": [0]}}

        def on_gradients(self, trainer: Trainer) -> None:
            self.steps.append(1)
            self.deep["inner"]["steps"].append(1)

    model, plugin = Noting(3, 1), Counting()
    model.seen = seen = [0]
    trainer = Trainer(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), plugins=[plugin])
    steps = plugin.steps
    find_lr(trainer, tiny_data(), steps=10)
    assert (seen, steps, plugin.deep) == ([0], [0], {"inner": {"steps": [0]}})
    assert model.seen is seen
    assert plugin.steps is steps


def test_a_lazy_model_that_has_seen_no_batch_is_refused() -> None:
    """It was a ValueError out of detach: what is not there yet cannot be put back."""
    model = nn.Sequential(nn.LazyLinear(1))
    trainer = Trainer(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UsageError, match="the parameters of a lazy module are made by its first batch"):
        find_lr(trainer, tiny_data(), steps=10)
    model(tiny_data()[0])
    assert len(find_lr(trainer, tiny_data(), steps=10).losses) == 10


def test_a_data_loader_of_the_users_goes_on_where_it_was() -> None:
    own, of_sampler = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    sampler = RandomSampler(data(), generator=of_sampler)
    loader = DataLoader(data(), batch_size=8, sampler=sampler, generator=own)
    trainer = trainer_of(net())
    before = everything(trainer, own, of_sampler)
    find_lr(trainer, loader, steps=12)
    assert everything(trainer, own, of_sampler) == before


def test_what_a_plugin_changes_in_the_model_before_a_fit_is_undone() -> None:
    class Replaces:
        def __init__(self) -> None:
            self.seen = 0

        @hookimpl(wrapper=True)
        def prepare_model(self, model: nn.Module) -> Iterator[Any]:
            self.seen += 1
            model[2] = nn.Identity()
            model[0].requires_grad_(False)
            model.register_buffer("extra", torch.ones(1))
            return (yield)

    replaces = Replaces()
    trainer = trainer_of(net(), plugins=[replaces])
    before, layers = everything(trainer), list(trainer.model)
    find_lr(trainer, data(), 8, steps=10)
    assert everything(trainer) == before
    assert list(trainer.model) == layers
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert replaces.seen == 0


class Noisy(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        return x + torch.rand(4), y


def test_workers_that_persist_are_not_those_of_the_users_loader() -> None:
    def fitted(look: bool) -> Any:
        trainer = trainer_of(net())
        loader = DataLoader(Noisy(*data().tensors), batch_size=8, num_workers=1, persistent_workers=True)
        if look:
            find_lr(trainer, loader, steps=10)
        return trainer.fit(loader, epochs=2).history

    assert fitted(True) == fitted(False)


class Breaks(nn.Module):
    """A model that counts its calls and fails in one of them; it cannot be copied either."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self.inner, self.error, self.calls = net(), error, 0
        self.last = self.inner(torch.ones(2, 4))  # no leaf, so that copy.deepcopy refuses the model

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.inner(x)
        if self.calls == 5 and self.error:
            raise self.error
        return self.last


@pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()], ids=["", "error", "Ctrl-C"])
def test_it_leaves_everything_as_it_was_after_an_error_and_ctrl_c(error: BaseException | None) -> None:
    trainer = trainer_of(Breaks(error))
    last = trainer.model.last
    before = everything(trainer)
    if error is None:
        find_lr(trainer, data(), 8, steps=20)
    else:
        with pytest.raises(type(error)):
            find_lr(trainer, data(), 8, steps=20)
    assert everything(trainer) == before
    assert trainer.model.calls == 0
    assert trainer.model.last is last


def test_a_penalty_on_the_models_own_weights_is_trained_on_and_leaves_no_trace() -> None:
    model = net()

    def loss(output: Tensor, target: Tensor) -> Tensor:  # a copy of the model would be none of this
        return nn.functional.cross_entropy(output, target) + sum(p.square().sum() for p in model.parameters())

    trainer = trainer_of(model, loss=loss)
    before = everything(trainer)
    found = find_lr(trainer, data(), 8, steps=40, end=0.1)
    assert found.losses[-1] < found.losses[0] - 1
    assert everything(trainer) == before


def test_it_stops_at_nan_before_the_end_and_says_so() -> None:
    class Overflows(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) * (math.inf if self.calls == 70 else 1)

    model = Overflows(3, 1)
    trainer = Trainer(model, nn.functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
    before = everything(trainer)
    found = find_lr(trainer, tiny_data(), end=0.1)
    assert len(found.rates) == len(found.losses) == 69
    assert all(map(math.isfinite, found.losses))
    assert re.search(r"the loss is (inf|nan) at ", found.reason)
    assert everything(trainer) == before


def test_a_loss_that_is_nan_from_the_first_step_on_is_not_the_rates_fault() -> None:
    trainer = tiny_trainer()
    trainer.loss = lambda output, y: output.sum() * math.nan
    found = find_lr(trainer, tiny_data(), steps=10)
    assert (found.suggestion, found.losses) == (None, [])
    assert found.reason == "the loss is nan at 1e-07, before a step was taken: it is not the rate"


def test_it_stops_when_the_loss_explodes() -> None:
    found = find_lr(tiny_trainer(), tiny_data(), end=1000)
    assert len(found.losses) < 100
    assert "explodes" in found.reason
    assert found.losses[-1] > 4 * min(found.losses)


def test_a_loss_that_falls_fast_does_not_explode() -> None:
    found = find_lr(tiny_trainer(), tiny_data(20), start=0.01, end=0.3, steps=15)
    assert found.losses[-1] < found.losses[0] / 30  # so that the mean of the last ones is many times the last one
    assert len(found.losses) == 15


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    found = find_lr(tiny_trainer(), tiny_data())
    assert found.suggestion is not None
    falls = [a - b for a, b in zip(found.losses, found.losses[1:], strict=False)]
    steepest = found.rates[falls.index(max(falls))]
    assert steepest / 2 < found.suggestion < steepest * 2
    assert found.reason.startswith("where the loss falls fastest; the loss is lowest at")


def test_where_the_loss_falls_at_once_it_is_a_tenth_of_where_it_is_lowest() -> None:
    found = find_lr(tiny_trainer(), tiny_data(20), start=0.02, end=0.06, steps=40)
    assert found.reason.startswith("a tenth of where the loss is lowest")
    assert found.suggestion == pytest.approx(0.006, rel=0.1)


def test_no_rate_is_suggested_where_none_lowers_the_loss() -> None:
    model = nn.Linear(3, 1)
    loss = lambda output, target: output.mean() * 0 + target.mean()  # noqa: E731
    found = find_lr(Trainer(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu"), tiny_data())
    assert found.suggestion is None
    assert found.reason.startswith("no rate lowers the loss: it begins at")


def test_the_noise_of_batches_is_no_fall() -> None:
    class Noise:
        def compute_loss(self, output: Tensor) -> Tensor:
            return output.sum() * 0 + 1 + 0.1 * torch.randn(())

    for seed in range(20):
        torch.manual_seed(seed)
        assert find_lr(tiny_trainer([Noise()]), tiny_data()).suggestion is None


def test_groups_keep_their_ratio_to_the_first() -> None:
    rates: list[tuple[float, ...]] = []

    class Sees:
        def on_gradients(self, trainer: Trainer) -> None:
            rates.append(tuple(float(group["lr"]) for group in trainer.optimizer.param_groups))

    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    groups = [{"params": model[0].parameters(), "lr": torch.tensor(0.1)}, {"params": model[1].parameters(), "lr": 1.0}]
    trainer = Trainer(model, nn.functional.mse_loss, torch.optim.SGD(groups), [Sees()], "cpu")
    find_lr(trainer, tiny_data(), start=1e-4, end=1e-3, steps=10)
    assert [first for first, _ in rates] == pytest.approx([1e-4 * 10 ** (step / 9) for step in range(10)])
    assert all(second == pytest.approx(10 * first) for first, second in rates)
    assert [float(group["lr"]) for group in trainer.optimizer.param_groups] == [pytest.approx(0.1), 1.0]


def test_the_loss_of_a_window_is_the_mean_of_its_batches() -> None:
    alone = find_lr(trainer_of(nn.Linear(4, 3)), data(), 24, False, steps=10)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    both = [find_lr(trainer_of(model), data(), size, False, steps=10, accumulate=24 // size) for size in (24, 8)]
    assert both[0].losses == pytest.approx(both[1].losses, rel=1e-5)
    assert len(alone.losses) == 10


def test_plugins_that_change_a_step_take_part_and_others_do_not() -> None:
    class Decides:
        def on_epoch_end(self, trainer: Trainer) -> None:
            trainer.stop("no more")

    class Doubles:
        def __init__(self) -> None:
            self.asked = 0

        @hookimpl(wrapper=True)
        def compute_loss(self) -> Iterator[Any]:
            self.asked += 1
            return 2 * (yield)

    plain, doubles = trainer_of(net()), Doubles()
    schedule = Schedule(lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=7))
    changed = trainer_of(net(), plugins=[doubles, schedule, Decides(), ClipGradients(norm=1e9)])
    first, second = (find_lr(trainer, data(), steps=10) for trainer in (plain, changed))
    assert second.losses[0] == pytest.approx(2 * first.losses[0])
    assert len(second.losses) == 10
    assert doubles.asked == 0


def test_batches_that_are_dicts_and_data_without_a_length_do_as_well() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return ({"x": x, "y": y} for x, y in data())

    class OfDict:
        def forward(self, model: nn.Module, batch: Any) -> Any:
            return model(batch["x"])

        def compute_loss(self, output: Tensor, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(output, batch["y"])

    assert len(find_lr(trainer_of(net(), plugins=[OfDict()]), Stream(), 8, steps=12).losses) == 12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": 0}, "the rates must rise from a positive start"), ({"start": 1, "end": 0.1}, "start=1, end=0.1"),
        ({"end": math.inf}, "a finite end"), ({"steps": 9}, "steps=9 are too few"),
    ],
)  # fmt: skip
def test_mistakes_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        find_lr(tiny_trainer(), tiny_data(), **options)


# ------------------------------------------------------------------------------------------------------- verb


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    (tmp_path / "한글 폴더").mkdir()
    monkeypatch.chdir(tmp_path / "한글 폴더")

    def told(*words: str) -> tuple[int, str]:
        status = main(["lr-find", *words])
        said = capsys.readouterr()
        return status, said.out + said.err

    return told


def test_the_verb_suggests_draws_and_names_a_command(run: Callable[..., Any]) -> None:
    status, said = run("softmax", "bias_per_class=True", "epochs=5")
    assert status == 0
    assert re.search(r"^rates     1e-07 to 10, of 100 steps \d\d taken$", said, re.M)
    (rate,) = re.findall(r"^suggest   ([\d.]+): where the loss falls fastest", said, re.M)
    assert said.endswith(f"next      python -m framework softmax --bias-per-class --epochs 5 --lr {rate}\n")
    picture = Path("runs/softmax/lr_find.svg").read_text("utf-8")
    assert f"<!-- suggestion {rate} -->" in picture
    assert f"drawn     {Path('runs/softmax/lr_find.svg')}\n" in said


def test_the_verb_takes_a_variant_and_a_folder_and_no_rate(run: Callable[..., Any]) -> None:
    status, said = run("xor", "--label", "one layer", "--to", "here", "--end", "1e-3", "--steps", "20")
    assert status == 0
    assert "suggest   no rate: no rate lowers the loss" in said
    assert "next" not in said
    assert Path("here/lr_find.svg").is_file()


def test_a_recipe_without_a_knob_for_the_rate_gets_no_command(run: Callable[..., Any]) -> None:
    Path("mine.py").write_text(
        "import torch\nfrom framework import Recipe\nfrom framework.testing import tiny_data, tiny_trainer\n\n"
        "def recipe():\n    t = tiny_trainer()\n"
        "    return Recipe(model=t.model, loss=t.loss, optimizer=t.optimizer, train=tiny_data())\n",
        encoding="utf-8",
    )
    status, said = run("mine.py")
    assert status == 0
    assert "suggest   0." in said
    assert "next" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["softmax", "lrr=1"], "no knob 'lrr'. Did you mean 'lr'?"), (["softmax", "epochs=many"], "epochs"),
        (["xor"], "name a variant of xor"), (["tensor_manipulation"], "trains nothing"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line_end_with_status_2(run: Callable[..., Any], words: list[str], said: str) -> None:
    status, told = run(*words)
    assert status == 2
    assert said in told
