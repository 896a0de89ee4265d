"""What framework, plugins and hook calls add to a small loop: `python benchmarks/overhead.py`.

One process and one thread. The plain loop and the trainer take turns, and the median of the ratios is told, so that a
machine whose speed drifts does not decide. Microseconds are those of this machine; quote the ratios.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pluggy
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from framework import Trainer
from framework.plugins import Plugins

EPOCHS, TURNS = 500, 7
PLUGINS = ["console", "history", "best_checkpoint", "plot"]


def plain() -> float:
    """Seconds of the hand-written loop: Linear(3, 1), five samples, batches of two, shuffled."""
    model, optimizer, data = made()
    loader = DataLoader(TensorDataset(*data), batch_size=2, shuffle=True)
    begun = time.perf_counter()
    for _ in range(EPOCHS):
        model.train()
        total = 0.0
        for x, y in loader:
            x, y = x.to("cpu"), y.to("cpu")
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
    return time.perf_counter() - begun


def ours(plugins: list[str]) -> float:
    """Seconds of the same fit."""
    model, optimizer, data = made()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(model, nn.functional.mse_loss, optimizer, plugins, "cpu", folder)
        return trainer.fit(data, epochs=EPOCHS, batch_size=2).seconds


def made() -> Any:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.01), (torch.randn(5, 3), torch.randn(5, 1))


def microseconds(call: Callable[[], Any]) -> float:
    """Of one call; the best of many."""
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(2000):
            call()
        times.append((time.perf_counter() - begun) / 2000)
    return min(times) * 1e6


class Listener:
    def __init__(self, name: str) -> None:
        self.name = name

    def on_gradients(self, trainer: Any) -> None: ...


def hooks(listeners: int) -> tuple[float, float]:
    """Microseconds of a hook with so many listeners: frozen, and as pluggy calls it."""
    plugins = Plugins([Listener(f"l{i}") for i in range(listeners)], {})
    frozen = plugins.frozen("train").on_gradients
    manager = pluggy.PluginManager("overhead")
    marked = pluggy.HookspecMarker("overhead"), pluggy.HookimplMarker("overhead")
    spec = type("Spec", (), {"on_gradients": marked[0](lambda self, trainer: None)})
    manager.add_hookspecs(spec())
    for _ in range(listeners):
        manager.register(type("Listener", (), {"on_gradients": marked[1](lambda self, trainer: None)})())
    return (
        microseconds(lambda: frozen(None) if frozen else None),
        microseconds(lambda: manager.hook.on_gradients(trainer=None)),
    )


def main() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    plain(), ours(PLUGINS)
    turns = [(plain(), ours([]), ours(PLUGINS)) for _ in range(TURNS)]
    added = {name: [ours([name]) - ours([]) for _ in range(TURNS)] for name in PLUGINS}
    steps = 3 * EPOCHS
    print(f"torch {torch.__version__}, one thread; Linear(3, 1), 5 samples, batch 2, {EPOCHS} epochs, {TURNS} turns")
    print(f"the plain loop          {statistics.median(a for a, _, _ in turns) / steps * 1e6:6.1f} us a step")
    print(f"ratio without plugins   {statistics.median(b / a for a, b, _ in turns):6.2f}")
    print(f"ratio with {len(PLUGINS)} plugins    {statistics.median(c / a for a, _, c in turns):6.2f}   {PLUGINS}")
    for name, seconds in added.items():
        print(f"{name} adds {statistics.median(seconds) / EPOCHS * 1e6:.1f} us to an epoch")
    for listeners in (0, 1, 5):
        frozen, called = hooks(listeners)
        print(f"a hook with {listeners} listeners: frozen {frozen:.2f} us, through pluggy {called:.2f} us")
    torch.set_num_threads(before)


if __name__ == "__main__":
    main()
