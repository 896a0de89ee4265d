"""How other projects train what a row of speed.py trains: one small function each, which `--peers` runs.

Each does what its manual shows, on the CPU, with the model, the loss and the optimizer of the row where the project
takes them; keras and fastai have optimizers of their own. It prepares and returns the call that is timed, and imports
its project itself. None is made to keep the loss of an epoch, so none pays for that but those that do it anyway.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Job:
    """What is to be trained, and how long."""

    model: Any
    loss: Any
    optimizer: Any
    data: Any  # a pair of tensors
    epochs: int
    batch_size: int
    shuffle: bool

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def dataset(self) -> TensorDataset:
        from torch.utils.data import TensorDataset

        return TensorDataset(*self.data)

    def loader(self) -> DataLoader[Any]:
        from torch.utils.data import DataLoader

        return DataLoader(self.dataset(), batch_size=self.batch_size, shuffle=self.shuffle)


Train = Callable[[], Any]


def ignite(job: Job) -> Train:
    from ignite.engine import create_supervised_trainer

    trainer = create_supervised_trainer(job.model, job.optimizer, job.loss)
    loader = job.loader()
    return lambda: trainer.run(loader, max_epochs=job.epochs)


def lightning_off(job: Job) -> Train:
    return _lightning(job, barebones=True)


def lightning_as_it_comes(job: Job) -> Train:
    return _lightning(job)


def _lightning(job: Job, **also: Any) -> Train:
    import logging
    import warnings

    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = job.model

        def training_step(self, batch: Any) -> Any:
            x, y = batch
            loss = job.loss(self.model(x), y)
            if not also:
                self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return job.optimizer

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    trainer, module, loader = Trainer(max_epochs=job.epochs, accelerator="cpu", **also), Module(), job.loader()
    return lambda: trainer.fit(module, loader)


def accelerate(job: Job) -> Train:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(job.model, job.optimizer, job.loader())
    return lambda: _loop(job, model, optimizer, loader, accelerator.backward)


def fabric(job: Job) -> Train:
    from lightning.fabric import Fabric

    runner = Fabric(accelerator="cpu", devices=1)
    model, optimizer = runner.setup(job.model, job.optimizer)
    loader = runner.setup_dataloaders(job.loader())
    return lambda: _loop(job, model, optimizer, loader, runner.backward)


def _loop(job: Job, model: Any, optimizer: Any, loader: Any, backward: Callable[[Any], Any]) -> None:
    for _ in range(job.epochs):
        model.train()
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = job.loss(model(x), y)
            backward(loss)
            optimizer.step()
            total += loss.item() * len(x)


def skorch(job: Job) -> Train:
    from skorch import NeuralNet

    net = NeuralNet(
        job.model, criterion=type(job.loss), optimizer=type(job.optimizer), lr=job.lr, max_epochs=job.epochs,
        batch_size=job.batch_size, iterator_train__shuffle=job.shuffle, train_split=None, verbose=0, device="cpu",
    )  # fmt: skip
    net.initialize()
    return lambda: net.partial_fit(*job.data, epochs=job.epochs)


def keras(job: Job) -> Train:
    """The same layers of its own, with the same weights to begin with, which are copied back at the end."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import torch

    layers = list(job.model) if isinstance(job.model, torch.nn.Sequential) else [job.model]
    linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    model = keras.Sequential([keras.Input((linear[0].in_features,))])
    for layer in layers:
        made = keras.layers.ReLU() if isinstance(layer, torch.nn.ReLU) else keras.layers.Dense(layer.out_features)
        model.add(made)
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    for theirs, own in zip(dense, linear, strict=True):
        theirs.set_weights([own.weight.detach().numpy().T, own.bias.detach().numpy()])
    crossed = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = crossed if isinstance(job.loss, torch.nn.CrossEntropyLoss) else keras.losses.MeanSquaredError()
    model.compile(getattr(keras.optimizers, type(job.optimizer).__name__)(job.lr), loss)

    def train() -> None:
        with keras.device("cpu"):
            model.fit(*job.data, epochs=job.epochs, batch_size=job.batch_size, shuffle=job.shuffle, verbose=0)
        for theirs, own in zip(dense, linear, strict=True):
            weight, bias = (torch.as_tensor(value) for value in theirs.get_weights())
            own.weight.data.copy_(weight.T)
            own.bias.data.copy_(bias)

    return train


def fastai(job: Job) -> Train:
    from fastai.basics import SGD, Adam, DataLoaders, Learner
    from fastai.data.load import DataLoader

    train = DataLoader(job.dataset(), bs=job.batch_size, shuffle=job.shuffle, device="cpu")
    nothing = DataLoader([], bs=job.batch_size, device="cpu")
    own = {"SGD": SGD, "Adam": Adam}[type(job.optimizer).__name__]
    learner = Learner(DataLoaders(train, nothing), job.model, loss_func=job.loss, opt_func=own, lr=job.lr, wd=0.0)

    def fit() -> None:
        with learner.no_logging():  # and without its progress bar, which would have to be imported
            learner.fit(job.epochs)

    return fit


def transformers(job: Job) -> Train:
    import torch
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = job.model

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            output = self.model(x)
            return {"loss": job.loss(output, labels), "logits": output}

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(job.data[0])

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"x": job.data[0][index], "labels": job.data[1][index]}

    arguments = TrainingArguments(
        "out", num_train_epochs=job.epochs, per_device_train_batch_size=job.batch_size, learning_rate=job.lr,
        lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, dataloader_pin_memory=False, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(Model(), arguments, train_dataset=Rows(), optimizers=(job.optimizer, None))
    return lambda: trainer.train()


@dataclass(frozen=True)
class Peer:
    """A project: its name in the table, its package, the module that it is imported as, and how it trains."""

    title: str
    package: str
    module: str
    prepare: Callable[[Job], Train]


PEERS = {
    "ignite": Peer("ignite", "pytorch-ignite", "ignite", ignite),
    "lightning-off": Peer("lightning, everything off", "lightning", "lightning", lightning_off),
    "lightning": Peer("lightning, as it comes", "lightning", "lightning", lightning_as_it_comes),
    "accelerate": Peer("accelerate", "accelerate", "accelerate", accelerate),
    "fabric": Peer("Fabric", "lightning", "lightning", fabric),
    "skorch": Peer("skorch", "skorch", "skorch", skorch),
    "keras": Peer("keras on torch", "keras", "keras", keras),
    "fastai": Peer("fastai", "fastai", "fastai", fastai),
    "transformers": Peer("HF Trainer", "transformers", "transformers", transformers),
}
