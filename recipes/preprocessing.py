"""Lab 07-1: raw against standardized features.

Five students with three scores each, a linear model, and a learning rate of 0.1 that suits features of size 1. Once the
scores go in as they are, around 85; once each has its mean taken off and is divided by its standard deviation.

Expect: raw, the loss is inf from epoch 5 on and nan at the end; standardized, it falls in every epoch, to 6.6.
Mean and standard deviation are those of the training students, and they are part of the model: whoever is predicted
later is moved and scaled by the same numbers. A test set with a mean of its own would be on another scale, and so are
images of 0 to 255 for a model that was trained on 0 to 1.

The best rate follows from the features: raw ones bear at most 4.5e-5, and along the valley nothing moves with that.

Next: --lr 1e-5
Next: --lr 0.3
Next: --epochs 200 --lr 0.3
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from framework import Recipe, Trainer, picture

SCORES = [[73, 80, 75], [93, 88, 93], [89, 91, 90], [96, 98, 100], [74, 66, 70]]
FINAL = [[152], [185], [180], [196], [142]]


class Standardize(nn.Module):
    """Takes off the mean of each feature and divides by its standard deviation (n - 1), those of the x given here."""

    mean: Tensor
    std: Tensor

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", x.mean(dim=0))
        self.register_buffer("std", x.std(dim=0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def recipe(lr: float = 0.1, epochs: int = 20) -> dict[str, Callable[[], Recipe]]:
    """
    Args:
        lr: learning rate of gradient descent, for both
        epochs: passes over the five students, one step each
    """
    x, y = torch.tensor(SCORES, dtype=torch.float32), torch.tensor(FINAL, dtype=torch.float32)

    def line(*before: nn.Module) -> Recipe:
        model = nn.Sequential(*before, nn.Linear(3, 1))
        return Recipe(
            model=model,
            loss=nn.MSELoss(),
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
            train=(x, y),
            epochs=epochs,
            on_nonfinite="continue",  # inf and nan are what the raw variant is about
        )

    return {"raw": line, "standardized": lambda: line(Standardize(x))}


def on_fit_end(trainer: Trainer) -> None:
    score = trainer.predict(torch.tensor([[73.0, 80.0, 75.0]])).item()
    print(f"predict   [73, 80, 75] -> {score:.4f} (152 is right)")
    standardize, x = next(iter(trainer.model.children())), torch.tensor(SCORES, dtype=torch.float32)
    if isinstance(standardize, Standardize) and trainer.run_dir is not None:
        with picture(trainer.run_dir / "features.svg", 8, 3) as figure:
            left, right = figure.subplots(1, 2, sharey=True)
            for axes, seen in ((left, x), (right, standardize(x.to(trainer.device)).cpu())):
                for row in range(3):
                    axes.plot(seen[:, row], [row] * len(seen), "o")
                axes.axvline(0, color="gray", linewidth=0.8)
            left.set_yticks(range(3), ["first score", "second score", "third score"])
            left.set_ylim(-0.5, 2.5)
            left.set_xlabel("raw [points]")
            right.set_xlabel("standardized [standard deviations]")
