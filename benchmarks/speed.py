"""How long a fit takes beside the hand-written loop: `python benchmarks/speed.py`.

Each measurement is a process of its own with two threads. The plain loop and the trainer take turns, the ratio of each
pair is taken, and the median of the ratios is told, so that a machine whose speed drifts does not decide; quote the
ratios, not the microseconds. What is timed is the training: before it come the imports, model, data and optimizer, and
a backward pass on another model, so that the first use of torch's autograd is on neither side. What default plugins do
once, after the last epoch, is in their figure: the picture, with the import of what draws it, and the last checkpoint.
Since it does not grow with the steps, it is told apart as well, in milliseconds and as the ratio "without that". "With
start-up" is the time of the whole process, imports included. Before the clock starts, plugins and trainer are made.

The two must end with equal bits: parameters, the loss of each epoch, and the state of the random numbers. Where they do
not, the exit status is 1. With `--check` it is 1 as well where a row falls short of what it is to reach, and the rows
that do are named. An idle machine decides; where others are at work, `--clock cpu --threads 1` compares the time
of the processor in place of the clock on the wall.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
THREADS, PAIRS, SEED = 2, 15, 0
PATIENCE = 1800  # seconds after which a process is given up
BUSY = 0.5  # the load from which a machine is told to be busy
TIMES = {  # by clock, and whether start-up is in it
    ("wall", False): "seconds", ("wall", True): "process", ("cpu", False): "cpu_seconds", ("cpu", True): "process_cpu",
}  # fmt: skip
OWN = ("ours", "default", "accuracy", "ours-math")  # the variants that this project trains
Notes = dict[str, float]
Turn = Mapping[str, Mapping[str, Any]]  # what each variant measured, one after the other


@dataclass
class Task:
    """What is trained: made anew in each process, from the same seed."""

    model: Any
    loss: Any
    optimizer: Any
    data: Any  # a pair of tensors, or a Dataset


@dataclass(frozen=True)
class Figure:
    """What is read off a turn: the time of `variant`, less that of `less`, over the time of `base`."""

    title: str
    variant: str
    limit: float | None = None
    base: str = "raw"
    less: str = ""
    in_the_loop: bool = False  # without what comes once, after the last epoch

    def of(self, turn: Turn, time_of: str) -> float:
        taken = turn[self.variant][time_of] - (turn[self.less][time_of] if self.less else 0.0)
        if self.in_the_loop and time_of == "seconds":  # the processor's time after the loop is not known
            taken -= turn[self.variant]["after_the_loop"]
        return float(taken / turn[self.base][time_of])


NO_PLUGINS, DEFAULT_PLUGINS, IN_THE_LOOP = "no plugins", "default plugins", "in the loop"


def at_most(no_plugins: float, default_plugins: float) -> tuple[Figure, ...]:
    return (
        Figure(NO_PLUGINS, "ours", no_plugins),
        Figure(DEFAULT_PLUGINS, "default", default_plugins),
        Figure(IN_THE_LOOP, "default", in_the_loop=True),
    )


@dataclass(frozen=True)
class Workload:
    """A row: what is trained and how long, and the figures to reach."""

    id: str
    title: str
    epochs: int
    build: Callable[[], Task] | None  # None: a command from its start to its exit
    batch_size: int | None
    figures: tuple[Figure, ...]
    shuffle: bool = True
    device: str = "cpu"
    fit: Mapping[str, Any] = field(default_factory=dict)  # what fit is told beside that
    needs_mnist: bool = False
    same_bits: bool = True

    @property
    def variants(self) -> list[str]:
        named = (name for figure in self.figures for name in (figure.base, figure.less, figure.variant) if name)
        return list(dict.fromkeys(named))


# ---------------------------------------------------------------------------------------------------- what is trained


def linear() -> Task:
    import torch
    from torch import nn

    model = nn.Linear(3, 1)
    data = torch.randn(5, 3), torch.randn(5, 1)
    return Task(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.01), data)


def softmax() -> Task:
    """The eight points of recipes/softmax.py."""
    import torch
    from torch import nn

    x = [[1, 2, 1, 1], [2, 1, 3, 2], [3, 1, 3, 4], [4, 1, 5, 5], [1, 7, 5, 5], [1, 2, 5, 6], [1, 6, 6, 6], [1, 7, 7, 7]]
    data = torch.tensor(x, dtype=torch.float32), torch.tensor([2, 2, 2, 1, 1, 1, 0, 0])
    model = nn.Linear(4, 3)
    return Task(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), data)


def hidden(width: int, lr: float) -> Task:
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 1))
    x = torch.randn(100, 1)
    return Task(model, nn.MSELoss(), torch.optim.Adam(model.parameters(), lr=lr), (x, torch.sin(3 * x)))


def hidden_500() -> Task:
    return hidden(500, 1e-3)


def hidden_200000() -> Task:
    return hidden(200_000, 1e-5)


def mnist_mlp() -> Task:
    """On the pixels of MNIST as tensors; on as many random ones where it is not there."""
    import torch
    from torch import nn

    root = mnist_root()
    if root is None:
        data = torch.rand(60_000, 784), torch.randint(10, (60_000,))
    else:
        from torchvision.datasets import MNIST

        images = MNIST(root, train=True)
        data = images.data.reshape(-1, 784).to(torch.float32).div(255), images.targets
    model = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    return Task(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), data)


def mnist_softmax() -> Task:
    import torch
    from torch import nn
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    data = MNIST(mnist_root(), train=True, transform=ToTensor())
    return Task(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), data)


def cnn() -> Task:
    """Nine convolutions and a linear layer, on random images of 32 x 32 pixels."""
    import torch
    from torch import nn

    layers: list[nn.Module] = []
    before = 3
    for channels, pooled in ((16, 0), (16, 0), (16, 1), (32, 0), (32, 0), (32, 1), (64, 0), (64, 0), (64, 1)):
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * pooled
        before = channels
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))
    data = torch.rand(512, 3, 32, 32), torch.randint(10, (512,))
    return Task(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.05), data)


def mnist_root() -> Path | None:
    """The folder with the files of MNIST, which the recipes find in the same way; None where they are not there."""
    root = Path(os.environ.get("FRAMEWORK_DATA") or "data").expanduser().resolve()
    names = "train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"
    return root if all((root / "MNIST" / "raw" / f"{name}-ubyte").is_file() for name in names) else None


GPU: dict[str, Any] = {"device": "cuda", "fit": {"graph": True}}
MLP = Workload(
    "5",
    f"{'MNIST MLP' if mnist_root() else 'MLP on random pixels,'} 784-32-10 from tensors, batch 100, 3 epochs",
    3,
    mnist_mlp,
    100,
    at_most(0.38, 0.42),
)
CNN = Workload("8", "a 10-layer CNN on 32x32 images, batch 64, 2 epochs", 2, cnn, 64, at_most(1.03, 1.03))
ROWS = (
    Workload("1", "Linear(3,1), 5 rows, batch 2, shuffled, 2000 epochs", 2000, linear, 2, at_most(0.38, 0.50)),
    Workload("2", "softmax 8x4, one batch of 8 through a loader, 1000 epochs", 1000, softmax, 8, at_most(0.35, 0.52)),
    Workload("3", "softmax 8x4, batch_size=None, no loader, 1000 epochs", 1000, softmax, None, at_most(0.60, 0.80),
             shuffle=False),
    Workload("4", "1-500-1 Adam, one batch of 100 through a loader, 1000 epochs", 1000, hidden_500, 100,
             at_most(0.35, 0.48)),
    MLP,
    Workload("6", "MNIST softmax from torchvision with ToTensor, batch 100, 3 epochs", 3, mnist_softmax, 100,
             at_most(0.06, 0.08), needs_mnist=True),
    Workload("7", "1-200000-1 Adam, 100 rows, 50 epochs", 50, hidden_200000, 100, at_most(0.70, 0.70)),
    CNN,
    Workload("9", "the accuracy plugin added to row 5, of the raw step", 3, mnist_mlp, 100,
             (Figure(DEFAULT_PLUGINS, "accuracy", 0.03, less="ours"),)),
    Workload("start", "python -m framework recipes/softmax.py, start to exit", 1001, None, None,
             (Figure(DEFAULT_PLUGINS, "run", 0.85, base="bare"),)),
    Workload("gpu-1", "GPU: Linear(3,1), batch 2, 1002 steps, graph", 334, linear, 2, at_most(0.25, 0.30), **GPU),
    Workload("gpu-4", "GPU: 1-500-1 Adam, 1000 steps, graph", 1000, hidden_500, 100, at_most(0.25, 0.30), **GPU),
    Workload("gpu-7", "GPU: 1-200000-1 Adam, 1000 steps, graph", 1000, hidden_200000, 100, at_most(0.80, 0.85), **GPU),
)  # fmt: skip

# Both sides with torch.compile, bf16, a fused optimizer and channels_last, timed after the first epoch, which compiles.
MATH = tuple(
    replace(row, id=f"{row.id}-math{mark}", title=f"{where}{row.title.rpartition(', ')[0]}, fast=math", epochs=4,
            device=device, figures=(Figure(NO_PLUGINS, "ours-math", base="raw-math"),), same_bits=False)
    for device, mark, where in (("cpu", "", ""), ("cuda", "-gpu", "GPU: "))
    for row in (MLP, CNN)
)  # fmt: skip
PEERS_EPOCHS = {"1": 1000, "5": 1, "4": 500}  # the rows of the table of other projects

BARE = """\
import torch
from torch import nn

X = [[1, 2, 1, 1], [2, 1, 3, 2], [3, 1, 3, 4], [4, 1, 5, 5], [1, 7, 5, 5], [1, 2, 5, 6], [1, 6, 6, 6], [1, 7, 7, 7]]
Y = [2, 2, 2, 1, 1, 1, 0, 0]


class Softmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x @ self.weight + self.bias


torch.manual_seed({seed})
model = Softmax()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = [(torch.tensor(X, dtype=torch.float32), torch.tensor(Y))]
for epoch in range({epochs}):
    model.train()
    total = 0.0
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
print((total / 8).hex())
"""


# --------------------------------------------------------------------------------------- one measurement, in a process


def plain_loop(row: Workload, task: Task, epochs: int) -> list[float]:
    """The loop that everybody writes, which docs/design.md shows, with its loader built once."""
    model, optimizer, losses = task.model, task.optimizer, []
    loader = plain_loader(row, task)
    for _ in range(epochs):
        model.train()
        total, seen = 0.0, 0
        for x, y in loader:
            x, y = x.to(row.device), y.to(row.device)
            optimizer.zero_grad()
            loss = task.loss(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
            seen += len(x)
        losses.append(total / seen)
    return losses


def plain_loader(row: Workload, task: Task) -> Any:
    from torch.utils.data import DataLoader, TensorDataset

    if row.batch_size is None:
        return [task.data]
    dataset = TensorDataset(*task.data) if isinstance(task.data, tuple) else task.data
    return DataLoader(dataset, batch_size=row.batch_size, shuffle=row.shuffle)


def plain_loop_with_math(row: Workload, task: Task, epochs: int, notes: Notes) -> list[float]:
    """The plain loop with the flags of fast="math"; notes when the first epoch ended."""
    import torch

    cpu = row.device == "cpu"
    narrow = torch.cpu.get_capabilities().get("avx512_bf16") if cpu else torch.cuda.is_bf16_supported()
    if not cpu:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    images = any(parameter.dim() == 4 for parameter in task.model.parameters())
    layout = torch.channels_last if images else torch.preserve_format
    model: Any = torch.compile(task.model.to(memory_format=layout))
    groups = task.optimizer.param_groups
    optimizer = type(task.optimizer)(groups[0]["params"], lr=groups[0]["lr"], fused=True)
    loader, losses = plain_loader(row, task), []
    for _ in range(epochs):
        model.train()
        total, seen = 0.0, 0
        for x, y in loader:
            x, y = x.to(row.device, memory_format=layout), y.to(row.device)
            optimizer.zero_grad()
            with torch.autocast(row.device, torch.bfloat16, enabled=bool(narrow)):
                loss = task.loss(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
            seen += len(x)
        losses.append(total / seen)
        notes.setdefault("first_epoch_ended", time.perf_counter())
    return losses


class Clock:
    """A plugin that only looks: notes when the first epoch ended."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def on_epoch_end(self) -> None:
        self._notes.setdefault("first_epoch_ended", time.perf_counter())


def fitted(
    row: Workload, task: Task, epochs: int, plugins: Sequence[Any], notes: Notes, **also: Any
) -> Callable[[], list[float]]:
    """The call that trains with the trainer, which is made before; notes the seconds of the loop alone."""
    from framework import Trainer

    run_dir = Path("run") if "history" in plugins else None
    trainer = Trainer(task.model, task.loss, task.optimizer, plugins, row.device, run_dir)
    sizes: dict[str, Any] = {"epochs": epochs, "batch_size": row.batch_size, "shuffle": row.shuffle}

    def fit() -> list[float]:
        result = trainer.fit(task.data, **sizes, **row.fit, **also)
        notes["loop_seconds"] = result.seconds
        return [epoch["train_loss"] for epoch in result.history]

    return fit


def by_peer(name: str, row: Workload, task: Task, epochs: int) -> Callable[[], list[float]]:
    import peers

    job = peers.Job(task.model, task.loss, task.optimizer, task.data, epochs, row.batch_size or 1, row.shuffle)
    train = peers.PEERS[name].prepare(job)

    def fit() -> list[float]:
        train()
        return []

    return fit


def train_of(variant: str, row: Workload, task: Task, epochs: int, notes: Notes) -> Callable[[], list[float]]:
    """The call that is timed."""
    if variant == "raw":
        return lambda: plain_loop(row, task, epochs)
    if variant == "ours":
        return fitted(row, task, epochs, [], notes)
    if variant == "accuracy":
        return fitted(row, task, epochs, ["accuracy"], notes)
    if variant == "default":
        from framework.cli.building import names_in

        return fitted(row, task, epochs, names_in("default"), notes)
    if variant == "raw-math":
        return lambda: plain_loop_with_math(row, task, epochs, notes)
    if variant == "ours-math":
        return fitted(row, task, epochs, [Clock(notes)], notes, fast="math")
    return by_peer(variant, row, task, epochs)


def measured_here(row: Workload, variant: str, epochs: int, threads: int) -> dict[str, Any]:
    """What one process measures; it is to be fresh, and its working directory empty."""
    import torch

    if variant in OWN:
        from framework import Trainer  # noqa: F401  # before an optimizer is built, as in a recipe
    assert row.build is not None
    torch.set_num_threads(threads)
    torch.nn.Linear(2, 2).to(row.device)(torch.ones(1, 2, device=row.device)).sum().backward()
    torch.manual_seed(SEED)
    task = row.build()
    task.model.to(row.device)
    samples = len(task.data[0] if isinstance(task.data, tuple) else task.data)
    steps = epochs * math.ceil(samples / (row.batch_size or samples))
    notes: Notes = {}
    train = train_of(variant, row, task, epochs, notes)
    settle(row.device)
    with contextlib.redirect_stdout(io.StringIO()):
        begun, cpu_begun = time.perf_counter(), time.process_time()
        losses = train()
        settle(row.device)
        seconds = time.perf_counter() - begun
        cpu_seconds = time.process_time() - cpu_begun
    compiled = notes.get("first_epoch_ended", begun) - begun
    after = seconds - notes.get("loop_seconds", seconds)  # what on_fit_end took: pictures, the last checkpoint
    parameters, everything = hashes(task.model, losses)
    return {
        "seconds": seconds - compiled, "compile_seconds": compiled, "after_the_loop": after,
        "cpu_seconds": cpu_seconds, "steps": steps, "parameters": parameters, "bits": everything,
        "end_loss": end_loss(row, task), "peak_rss": peak_rss(),
    }  # fmt: skip


def settle(device: str) -> None:
    """Wait for what was launched on a GPU."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def hashes(model: Any, losses: Sequence[float]) -> tuple[str, str]:
    """SHA-256 of parameters and buffers; and of these, the losses of the epochs and the state of the random numbers."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    parameters = digest.hexdigest()
    digest.update(" ".join(float(loss).hex() for loss in losses).encode())
    digest.update(torch.get_rng_state().numpy().tobytes())
    if torch.cuda.is_initialized():
        digest.update(torch.cuda.get_rng_state().numpy().tobytes())
    return parameters, digest.hexdigest()


def end_loss(row: Workload, task: Task) -> float | None:
    """The loss of all rows at the end, which shows that others trained the same thing; None for a Dataset."""
    import torch

    if not isinstance(task.data, tuple):
        return None
    task.model.eval()
    with torch.no_grad():
        x, y = (part.to(row.device) for part in task.data)
        return float(task.loss(task.model(x), y))


def peak_rss() -> int | None:
    """The most memory that this process held, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def about_here() -> dict[str, Any]:
    """The machine and the versions."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "python": platform.python_version(), "torch": torch.__version__, "system": platform.platform(), "cpu": cpu(),
        "cores": os.cpu_count(), "gpu": torch.cuda.get_device_name() if gpu else None,
    }  # fmt: skip


def cpu() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


# ----------------------------------------------------------------------------------------------- turns of measurements


class ChildError(Exception):
    """A process that should have measured something failed."""


def child(threads: int, *arguments: str) -> dict[str, Any]:
    """What a fresh process of this file prints, and its times from start to exit."""
    command = [sys.executable, str(Path(__file__).resolve()), "--threads", str(threads), *arguments]
    printed, times = clocked(command, threads)
    return {**json.loads(printed.splitlines()[-1]), **times}


def clocked(command: Sequence[str], threads: int, files: Mapping[str, str] | None = None) -> tuple[str, Notes]:
    """What a command prints, run in an empty directory with these files; and its times from start to exit."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    root = mnist_root()
    if root is not None:
        env["FRAMEWORK_DATA"] = str(root)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (files or {}).items():
            Path(folder, name).write_text(text, encoding="utf-8")
        begun, cpu_begun = time.perf_counter(), cpu_of_children()
        try:
            done = subprocess.run(
                command, cwd=folder, env=env, capture_output=True, text=True, errors="replace", timeout=PATIENCE
            )
        except subprocess.TimeoutExpired as error:
            raise ChildError(f"it took more than {PATIENCE} seconds") from error
        times = {"process": time.perf_counter() - begun, "process_cpu": cpu_of_children() - cpu_begun}
        if done.returncode != 0:
            last = (done.stderr.strip() or "no word on stderr").splitlines()[-1]
            raise ChildError(f"exit status {done.returncode}: {last}")
        metrics = Path(folder, "runs", "softmax", "001", "metrics.jsonl")
        if metrics.is_file():
            return metrics.read_text(encoding="utf-8"), times
    return done.stdout, times


def cpu_of_children() -> float:
    """The time of the processor that processes of this one took, those that ended."""
    taken = os.times()
    return taken.children_user + taken.children_system


def measure(row: Workload, variant: str, epochs: int, threads: int) -> dict[str, Any]:
    """One variant of a row, in a process of its own."""
    if row.build is not None:
        return child(threads, "--one", variant, "--row", row.id, "--epochs", str(epochs))
    if variant == "bare":
        script = BARE.replace("{seed}", str(SEED)).replace("{epochs}", str(epochs))
        printed, times = clocked([sys.executable, "bare.py"], threads, {"bare.py": script})
        last = printed.strip()
    else:
        recipe = str(ROOT / "recipes" / "softmax.py")
        command = [sys.executable, "-m", "framework", recipe, "--epochs", str(epochs), "--seed", str(SEED)]
        printed, times = clocked(command, threads)
        last = float(json.loads(printed.splitlines()[-1])["train_loss"]).hex()
    whole = {"seconds": times["process"], "cpu_seconds": times["process_cpu"], **times}
    return {**whole, "steps": epochs, "bits": last}


@dataclass
class Measured:
    """A row and its turns; why there are none; and which variants failed, which are in no turn after that."""

    row: Workload
    turns: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    left_out: str = ""
    failed: dict[str, str] = field(default_factory=dict)
    clock: str = "wall"  # or "cpu"

    def spread(self, figure: Figure, start_up: bool = False) -> tuple[float, float, float]:
        """The median and the quartiles of a figure."""
        time_of = TIMES[self.clock, start_up]
        return quartiles([figure.of(turn, time_of) for turn in self.turns if figure.variant in turn])

    def microseconds(self) -> float:
        """Of a step of the plain loop, the median."""
        base, time_of = self.row.figures[0].base, TIMES[self.clock, False]
        return 1e6 * float(statistics.median(turn[base][time_of] / turn[base]["steps"] for turn in self.turns))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, the lower and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return middle, lower, upper


@dataclass
class Report:
    """How to measure, and everything that was; written to a file after each turn, so that none is lost."""

    pairs: int = PAIRS
    epochs: int | None = None  # in place of those of the rows
    threads: int = THREADS
    clock: str = "wall"
    file: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)
    rows: list[Measured] = field(default_factory=list)
    peers: list[Measured] = field(default_factory=list)

    def take_turns(self, measured: Measured, variants: Sequence[str], epochs: int) -> None:
        """All variants one after the other, so many times; every second time the other way round."""
        row, measured.clock = measured.row, self.clock
        for number in range(self.pairs):
            print(f"row {row.id}: turn {number + 1} of {self.pairs}", file=sys.stderr, flush=True)
            turn = {}
            for variant in variants if number % 2 == 0 else variants[::-1]:
                try:
                    if variant not in measured.failed:
                        turn[variant] = measure(row, variant, epochs, self.threads)
                except ChildError as error:
                    measured.failed[variant] = str(error)
                    if variant in row.variants:
                        return
            measured.turns.append({variant: turn[variant] for variant in variants if variant in turn})
            self.write()

    def run(self, row: Workload) -> None:
        """Measure a row, where it can be measured here."""
        measured = Measured(row)
        self.rows.append(measured)
        if row.device == "cuda" and not self.about["gpu"]:
            measured.left_out = "there is no GPU"
        elif row.needs_mnist and mnist_root() is None:
            measured.left_out = "MNIST is not there; FRAMEWORK_DATA names the folder in which it is looked for"
        else:
            self.take_turns(measured, row.variants, self.epochs or row.epochs)

    def run_peers(self, rows: Iterable[Workload], variants: Sequence[str]) -> None:
        """Measure other projects on some rows, beside the plain loop and this one."""
        for row in rows:
            epochs = self.epochs or PEERS_EPOCHS[row.id]
            title = f"{row.title.rpartition(', ')[0]}, {counted('epoch', epochs)}"
            titled = replace(row, title=title, figures=(Figure(NO_PLUGINS, "raw"),), same_bits=False)
            self.peers.append(Measured(titled))
            self.take_turns(self.peers[-1], variants, epochs)

    def write(self) -> None:
        if self.file:
            how = {"pairs": self.pairs, "threads": self.threads, "clock": self.clock}
            kept = {"about": self.about, **how, "rows": dumped(self.rows), "peers": dumped(self.peers)}
            self.file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def dumped(rows: Iterable[Measured]) -> list[dict[str, Any]]:
    """Rows as they are kept: everything measured, and the figures."""
    return [
        {
            "row": measured.row.id, "title": measured.row.title, "left_out": measured.left_out,
            "failed": measured.failed,
            "figures": [
                {"title": figure.title, "limit": figure.limit, "ratio": measured.spread(figure)}
                for figure in measured.row.figures if measured.turns
            ],
            "turns": measured.turns,
        }
        for measured in rows
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the verdict


def wrong(measured: Measured) -> list[str]:
    """Why the figures of a row mean nothing: it failed, or the two sides do not end with equal bits."""
    named = f"row {measured.row.id}, {measured.row.title}"
    if measured.failed or not measured.row.same_bits:
        return [f"{named}: {variant} failed: {reason}" for variant, reason in measured.failed.items()]
    base = measured.row.figures[0].base
    differing = {name for turn in measured.turns for name in turn if turn[name]["bits"] != turn[base]["bits"]}
    if not differing and len({turn[base]["bits"] for turn in measured.turns}) > 1:
        differing = {f"{base} from turn to turn"}
    return [f"{named}: bits differ ({', '.join(sorted(differing))})"] if differing else []


def short(measured: Measured) -> list[str]:
    """The figures of a row that are above what they may be."""
    found = []
    for figure in measured.row.figures if measured.turns else ():
        ratio = measured.spread(figure)[0]
        if figure.limit is not None and ratio > figure.limit:
            told = f"{figure.title} {ratio:.3f}, at most {figure.limit:.2f}"
            found.append(f"row {measured.row.id}, {measured.row.title}: {told}")
    return found


def findings(rows: Iterable[Measured], check: bool) -> list[str]:
    """What is to be told of the rows; with `check` also what falls short."""
    return [sentence for row in rows for sentence in (*wrong(row), *(short(row) if check else ()))]


def status(rows: Iterable[Measured], check: bool) -> int:
    """The exit status."""
    return int(bool(findings(rows, check)))


# ------------------------------------------------------------------------------------------------------------- to print

HEAD = [
    "row", "workload", "raw us a step", NO_PLUGINS, "at most", DEFAULT_PLUGINS, "at most", "of that after the loop",
    "without that", "with start-up",
]  # fmt: skip


def table(rows: Sequence[Measured]) -> list[list[str]]:
    """A line a row: ratios as median (quartiles), with start-up without and with default plugins.

    What default plugins take after the last epoch is told apart: pictures, with the import of what draws them.
    """
    lines = [HEAD]
    for measured in rows:
        line = [measured.row.id, measured.row.title]
        if not measured.turns:
            lines.append([*line, *[""] * (len(HEAD) - 2)])
            continue
        line.append(f"{measured.microseconds():,.0f}" if measured.row.build else "")
        whole = []
        for title in (NO_PLUGINS, DEFAULT_PLUGINS):
            figure = next((figure for figure in measured.row.figures if figure.title == title), None)
            line.append(told(measured.spread(figure)) if figure else "")
            line.append(f"{figure.limit:.2f}" if figure and figure.limit is not None else "")
            if figure and not figure.less and measured.row.build:
                whole.append(f"{measured.spread(figure, start_up=True)[0]:.2f}")
        ends = [turn["default"]["after_the_loop"] for turn in measured.turns if "default" in turn]
        end = next((f"{measured.spread(f)[0]:.2f}" for f in measured.row.figures if f.title == IN_THE_LOOP), "")
        after = f"{statistics.median(ends) * 1e3:,.0f} ms" if ends else ""
        lines.append([*line, after, end, " / ".join(whole)])
    return lines


def told(spread: tuple[float, float, float]) -> str:
    middle, lower, upper = spread
    digits = 3 if abs(middle) < 0.1 else 2
    return f"{middle:.{digits}f} ({lower:.{digits}f} to {upper:.{digits}f})"


def counted(word: str, number: int) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def drawn(lines: Sequence[Sequence[str]], markdown: bool) -> str:
    """A table as text, or as Markdown."""
    if markdown:
        marks = ["---"] * len(lines[0])
        return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], marks, *lines[1:]])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def peers_table(rows: Sequence[Measured], titles: Mapping[str, str], absent: Iterable[str]) -> list[list[str]]:
    """A line a project, a column a workload; and whether the parameters at the end are those of the plain loop."""
    lines = [["", *(measured.row.title for measured in rows), "same parameters"]]
    for variant, title in titles.items():
        line, same = [title], []
        for measured in rows:
            if variant in measured.failed or not measured.turns:
                line.append("failed")
                continue
            raw = variant == "raw"
            line.append(f"1 ({measured.microseconds():,.0f} us)" if raw else told(measured.spread(Figure("", variant))))
            same += [turn[variant]["parameters"] == turn["raw"]["parameters"] for turn in measured.turns]
        lines.append([*line, "" if not same else "yes" if all(same) else "in some" if any(same) else "no"])
    return [*lines, *([name, *["not installed"] * len(rows), ""] for name in absent)]


# ---------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parsed(arguments)
    if asked.one:
        print(json.dumps(one(asked.one, asked.row, asked.epochs, asked.threads)), flush=True)
        return 0
    report = Report(asked.pairs, asked.epochs, asked.threads, asked.clock, asked.json and asked.json.resolve())
    about = report.about = {**child(asked.threads, "--one", "about"), "load": load()}
    told_of = f"torch {about['torch']}, Python {about['python']}, {about['cpu']}"
    print(f"{told_of}, {counted('thread', asked.threads)}, {counted('turn', asked.pairs)}, {asked.clock} clock")
    if about["load"] is not None and about["load"] > BUSY:
        print(f"others are at work on this machine (load {about['load']:.1f}): what it measures decides nothing")
    for row in () if asked.peers_only else chosen(asked):
        report.run(row)
    if report.rows:
        print(f"\n{drawn(table(report.rows), asked.markdown)}\n")
    if asked.peers or asked.peers_only:
        print_peers(report, asked)
    for measured in report.rows:
        if measured.left_out:
            print(f"row {measured.row.id} was left out: {measured.left_out}")
    for sentence in (*findings(report.peers, False), *findings(report.rows, asked.check)):
        print(sentence)
    report.write()
    return status(report.rows, asked.check)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [row.id for row in (*ROWS, *MATH)]
    parser.add_argument("--rows", nargs="+", metavar="ID", choices=names, help="these alone: " + " ".join(names))
    parser.add_argument("--pairs", type=int, default=PAIRS, help="how many turns (%(default)s)")
    parser.add_argument("--epochs", type=int, help="in place of those of each row, to try it out")
    parser.add_argument("--check", action="store_true", help="exit with 1 and name each row that falls short")
    parser.add_argument("--peers", action="store_true", help="add the table of other projects (pip install .[bench])")
    parser.add_argument("--peers-only", action="store_true", help="that table alone")
    parser.add_argument("--math", action="store_true", help='add rows with fast="math", where bits are not compared')
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured, with versions")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--threads", type=int, default=THREADS, help="of torch in each process (%(default)s)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what is compared (%(default)s)")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a process that measures; with --row
    parser.add_argument("--row", choices=names, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if min(asked.pairs, asked.threads, 1 if asked.epochs is None else asked.epochs) < 1:
        parser.error("--pairs, --epochs and --threads are whole numbers from 1 up")
    if asked.clock == "cpu" and (os.name == "nt" or any("math" in row.id for row in chosen(asked))):
        parser.error("--clock cpu is neither for Windows, which does not tell it, nor for rows of --math")
    return asked


def one(variant: str, row_id: str | None, epochs: int | None, threads: int) -> dict[str, Any]:
    """What a process of its own prints."""
    if variant == "about":
        return about_here()
    row = next(row for row in (*ROWS, *MATH) if row.id == row_id)
    return measured_here(row, variant, epochs or row.epochs, threads)


def load() -> float | None:
    """How many processes want the processor; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def chosen(asked: argparse.Namespace) -> list[Workload]:
    rows = [*ROWS, *(MATH if asked.math else ())]
    return [row for row in (*ROWS, *MATH) if row.id in asked.rows] if asked.rows else rows


def print_peers(report: Report, asked: argparse.Namespace) -> None:
    """Measure other projects and print their table; those that are not installed are named in it."""
    import peers

    there = {name: peer for name, peer in peers.PEERS.items() if importlib.util.find_spec(peer.module)}
    versions = {peer.package: importlib.metadata.version(peer.package) for peer in there.values()}
    report.about["versions"] = versions
    titles = {"raw": "the plain loop", "ours": f"framework, {NO_PLUGINS}", "default": f"framework, {DEFAULT_PLUGINS}"}
    titles |= {name: f"{peer.title} ({versions[peer.package]})" for name, peer in there.items()}
    rows = [row for row in ROWS if row.id in PEERS_EPOCHS and row.id in (asked.rows or PEERS_EPOCHS)]
    report.run_peers(rows, list(titles))
    absent = [peer.title for name, peer in peers.PEERS.items() if name not in there]
    print(f"\n{drawn(peers_table(report.peers, titles, absent), asked.markdown)}\n")


if __name__ == "__main__":
    sys.exit(main())
