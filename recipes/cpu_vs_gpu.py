"""Week 05-2: CPU against GPU, for a narrow and for a wide network.

The same training, a curve through 100 points by a hidden layer with Adam, on the CPU and on the GPU that is here, with
500 nodes and with 200,000.

Expect: in the notes 1000 steps take 0.37 s (CPU), 0.58 s (GPU) with 500 nodes; 84 s, 1.4 s with 200,000.
A GPU has thousands of slow cores: 500 nodes leave most of them idle, and handing over a piece of work takes longer than
the work. Work is handed over without waiting, so a clock that is read at once tells how long it took to ask: the device
is synchronized first. The first steps are not timed, because they load and choose the programs. Seconds are those of
1000 steps, worked out from those that were timed.

Gradients and the two numbers that Adam keeps for a parameter are as large as the model each, so a step needs four times
its memory and what the layers give.

Next: --widths 500 5000 50000
Next: --widths 500 --steps 1000
"""

import time
from pathlib import Path

import psutil
import torch
from torch import nn

from framework import UsageError, picture

WARM_UP = 5


def used(device: torch.device) -> float:
    """MiB that tensors take on a device; of a CPU those of the whole process."""
    if device.type == "cpu":
        return float(psutil.Process().memory_info().rss) / 2**20
    taken = torch.mps.current_allocated_memory() if device.type == "mps" else torch.cuda.memory_allocated(device)
    return taken / 2**20


def train(width: int, steps: int, device: torch.device) -> list[float]:
    """Seconds for 1000 steps; MiB before, with the model, and at the peak."""
    before = used(device)
    torch.manual_seed(5)  # the notes draw in this order
    x = torch.linspace(0, 1, 100).reshape(-1, 1).to(device)
    y = (torch.randn(100).reshape(-1, 1) * 0.01).to(device)
    model = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 1)).to(device)
    with_model = peak = used(device)
    loss, optimizer = nn.MSELoss(), torch.optim.Adam(model.parameters())
    begun = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            wait(device)
            begun = time.perf_counter()
        optimizer.zero_grad()
        output = model(x)
        error = loss(output, y)
        error.backward()
        if step < WARM_UP:  # asking is not free, so it is done before the clock runs
            peak = max(peak, used(device))
        optimizer.step()
    wait(device)
    seconds = (time.perf_counter() - begun) / steps * 1000
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
        torch.cuda.reset_peak_memory_stats(device)
    return [seconds, before, with_model, peak]


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def recipe(run_dir: Path, widths: tuple[int, ...] = (500, 200_000), steps: int = 50) -> None:
    """
    Args:
        widths: nodes of the hidden layer, such as --widths 500 5000 50000
        steps: steps that are timed, after 5 that are not
    """
    if steps < 1 or min(widths, default=0) < 1:
        raise UsageError(f"steps and widths must be whole numbers from 1 up, got {steps} and {widths}")
    devices = [torch.device("cpu")]
    if torch.accelerator.is_available():
        devices.append(torch.accelerator.current_accelerator() or devices[0])
    else:
        print("gpu       torch finds none here (neither cuda nor mps), so only the CPU is measured")
    found = {(device.type, width): train(width, steps, device) for device in devices for width in widths}
    print("\ndevice   width  seconds for 1000 steps  MiB before  with the model  at the peak")
    for (kind, width), (seconds, *memory) in found.items():
        before, with_model, peak = (f"{value:.1f}" for value in memory)
        print(f"{kind:<6}{width:>8}  {seconds:>22.3f}  {before:>10}  {with_model:>14}  {peak:>11}")
    with picture(run_dir / "cpu_vs_gpu.svg") as figure:
        axes = figure.subplots()
        for device in devices:
            axes.loglog(widths, [found[device.type, width][0] for width in widths], "o-", label=device.type)
        axes.set_xlabel("nodes of the hidden layer")
        axes.set_ylabel("time of 1000 steps [s]")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
