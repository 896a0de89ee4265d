"""Whether a model can learn one batch by heart, which shows most mistakes in a minute."""

from __future__ import annotations

import contextlib
import io
import statistics
from collections.abc import Generator, Sequence
from typing import Annotated, Any

import tyro
from torch import Tensor
from torch.utils.data import DataLoader

from framework import PluginOption, Trainer, UsageError, assemble, fit_recipe, hookimpl, knobs

CHECK = (
    "the last layer: no softmax before CrossEntropyLoss, no ReLU behind it, as many outputs as classes",
    "the labels: each belongs to its sample, and equal samples have equal labels",
    "the loss: it falls when the output gets better",
    "the rate: lr-find suggests one",
    "the model: it is large enough to tell the samples apart",
)


class _OneBatch:
    """Gives the first batch of the training data again and again, also to an evaluation."""

    name = "overfit"

    def __init__(self) -> None:
        self.batch = None  # type: Any
        self.losses: list[Tensor] = []
        self.right: float | None = None

    @hookimpl(wrapper=True)
    def make_loader(self, data: Any) -> Generator[None, Any, list[Any]]:
        loader = yield
        if self.batch is None:
            self.batch = next(iter(loader), None)  # fetched once: nothing is shuffled or augmented anew
        if self.batch is None:
            raise UsageError(f"the training data, a {type(data).__name__}, gives no batch")
        return [self.batch]

    def on_batch_end(self, split: str, batch: Any, output: Any, loss: Tensor) -> None:
        if split == "train":
            self.losses.append(loss.clone())
        else:
            self.right = _accuracy(output, batch)


def _accuracy(output: Any, batch: Any) -> float | None:
    """The share of right classes, where the targets are numbers of classes and the outputs are scores of them."""
    target = batch[1] if isinstance(batch, (list, tuple)) and len(batch) == 2 else None
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or target.is_floating_point():
        return None
    if output.dim() < 2 or output.shape[:1] + output.shape[2:] != target.shape:
        return None
    return float((output.argmax(1) == target).float().mean())


def overfit(
    recipe: str, knob: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[KNOB=VALUE ...]")] = (),
    steps: int = 200, target: float = 0.01, label: str = "", seed: int = 0, device: str = "auto",
    plugin: PluginOption = (),
) -> int:  # fmt: skip
    """Train on one batch alone and say whether it was learned by heart; what to check if not.

    Args:
        recipe: a recipe file, or the name of an installed one
        knob: settings of its knobs, such as lr=0.1
        steps: how often the batch is trained on
        target: the share of the first loss that counts as learned; all classes right do as well
        label: which variant, of a recipe of several
        seed: set before the recipe builds anything
        device: auto (cuda, else mps, else cpu), or a device by name
    """
    if steps < 10 or not 0 <= target < 1:
        raise UsageError(f"steps must be at least 10 and target a share from 0 to 1, got {steps} and {target:g}")
    made, assembled = assemble(recipe, label=label, seed=seed, device=device, plugins=plugin, **knobs(recipe, knob))
    one, taking_part = _OneBatch(), assembled.plugins.of_a_step()
    trainer = Trainer(made.model, made.loss, made.optimizer, [*taking_part, one], assembled.device)
    with contextlib.redirect_stdout(io.StringIO()):  # a plugin may have something to say about a fit
        fit_recipe(trainer, made, val=None, epochs=steps, accumulate=1)
        figures = trainer.evaluate(made.train, None if isinstance(made.train, DataLoader) else made.batch_size)
    losses = [float(loss) for loss in one.losses]
    print(f"batch     {trainer.count(one.batch)} samples, {steps} steps")
    print(f"loss      {losses[0]:.6g} -> {losses[-1]:.6g}")
    told = "" if one.right is None else f", {one.right:.1%} of the classes right"
    gap = figures["test_loss"] - losses[-1] > 0.05 * abs(losses[0])
    note = "; in training mode it is lower: batch normalization or the like takes other statistics here" * gap
    print(f"in eval   {figures['test_loss']:.6g}{told}{note}")
    learned = losses[-1] <= target * losses[0] < losses[0] or one.right == 1  # of a loss below 0 there is no share
    print(f"verdict   {'learned by heart' if learned else f'not learned by heart: {_why(losses)}'}")
    if not learned:
        print("check     " + "\n          ".join(CHECK))
    return 0 if learned else 1


def _why(losses: Sequence[float]) -> str:
    """What the losses of the steps look like, as far as that tells something."""
    tenth = len(losses) // 10
    last, before = statistics.fmean(losses[-tenth:]), statistics.fmean(losses[-2 * tenth : -tenth])
    if max(losses) - min(losses) <= 1e-6 * abs(losses[0]):
        return "the loss does not move. Do the parameters of the optimizer get gradients, and is its rate above 0?"
    if losses[0] <= 0:
        return "it begins at or below 0, so no share of it tells. See yourself whether it came down far enough"
    if last > losses[0]:
        return "the loss rises. Try a smaller rate"
    if before - last > 0.02 * (losses[0] - last):
        return "the loss still falls. Try more --steps"
    return "the loss has come to a halt"
