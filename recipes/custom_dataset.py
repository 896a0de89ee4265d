"""Lab 04-2: mini-batches of a Dataset of your own.

A Dataset answers two questions: how many samples there are, and what the sample of a number is. This one holds plain
Python lists and makes tensors of a row when it is asked for it; another would open an image file there. Batches and
their order come from torch's DataLoader.

Expect: to the last bit the figures of `minibatch`, which has the same five students in a TensorDataset.

--num-workers 2 fetches the samples in two other processes, and gives the same figures. It pays where fetching a sample
takes long; here starting the processes takes far longer than all the training. On Windows and macOS a worker process
imports this file anew, so the class stands at the top level of the file.

Next: --num-workers 2 --epochs 3
Next: --batch-size 5
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from framework import Recipe, Trainer


class Scores(Dataset[tuple[Tensor, Tensor]]):
    """Three scores of a student, and the final one."""

    def __init__(self) -> None:
        self.scores = [[73, 80, 75], [93, 88, 93], [89, 91, 90], [96, 98, 100], [73, 66, 70]]
        self.final = [[152], [185], [180], [196], [142]]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.scores[index], self.final[index]
        return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def recipe(lr: float = 1e-5, epochs: int = 21, batch_size: int = 2, num_workers: int = 0) -> Recipe:
    """
    Args:
        lr: learning rate of gradient descent
        epochs: passes over the five students
        batch_size: students in a batch; the last batch of an epoch may be smaller
        num_workers: processes that fetch the samples; 0 fetches them in this one
    """
    model = nn.Linear(3, 1)
    return Recipe(
        model=model,
        loss=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train=Scores(),
        epochs=epochs,
        batch_size=batch_size,
        shuffle=True,
        num_workers=num_workers,
    )


def on_fit_end(trainer: Trainer) -> None:
    score = trainer.predict(torch.tensor([[73.0, 80.0, 75.0]])).item()
    print(f"predict   [73, 80, 75] -> {score:.4f} (152 is right)")
