from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.gpu_memory import GpuMemory
from torch import nn

from framework import Trainer
from framework.testing import tiny_data, tiny_trainer

FLOAT, INTEGER = 4, 8  # bytes


def fitted(model: nn.Module, optimizer: torch.optim.Optimizer, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is told of a fit of a model that takes three numbers and gives one."""
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, plugins=[GpuMemory()], device="cpu")
    trainer.fit(tiny_data(), epochs=2)
    return capsys.readouterr().out.splitlines()


def test_without_a_gpu_it_says_so_in_one_line_and_measures_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    result = tiny_trainer([GpuMemory()]).fit(tiny_data(), epochs=2)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "memory    no GPU is used (device cpu); the memory of the process is measured instead"
    assert len(said) == 2
    assert all(50 < row["process_mib"] < 100_000 for row in result.history)
    most = max(row["process_mib"] for row in result.history)
    assert said[1].endswith(f"; the process at most {most:.1f} MiB")


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1), 0),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), 21 * FLOAT),
        (lambda parameters: torch.optim.Adam(parameters), 2 * 21 * FLOAT + 4 * FLOAT),  # and a step for each of four
    ],
    ids=["SGD", "momentum", "Adam"],
)
def test_the_parts_are_exact(optimizer: Any, state: int, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))  # 12 + 4 + 4 + 1 parameters
    said = fitted(model, optimizer(model.parameters()), capsys)[1]
    size = 21 * FLOAT
    assert said.startswith(f"memory    parameters {size} bytes, gradients {size} bytes, optimizer state {state} bytes;")


def test_buffers_are_a_part_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1))
    said = fitted(model, torch.optim.SGD(model.parameters()), capsys)[1]
    assert f"parameters {4 * FLOAT} bytes, buffers {2 * 3 * FLOAT + INTEGER} bytes, gradients" in said


def test_frozen_parameters_have_no_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 2).requires_grad_(False), nn.Linear(2, 1))
    said = fitted(model, torch.optim.SGD(model.parameters()), capsys)[1]
    assert f"parameters {(8 + 3) * FLOAT} bytes, gradients {3 * FLOAT} bytes" in said


def test_tied_parameters_are_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    model[1].weight = model[0].weight
    said = fitted(model, torch.optim.SGD(model.parameters()), capsys)[1]
    assert f"parameters {(9 + 3 + 3 + 4) * FLOAT} bytes" in said


def test_large_parts_are_told_in_mebibytes(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 2**18, bias=False), nn.Linear(2**18, 1, bias=False))
    said = fitted(model, torch.optim.SGD(model.parameters(), lr=0.0), capsys)[1]
    assert "parameters 4.0 MiB, gradients 4.0 MiB" in said


def test_the_figure_is_promised_so_that_it_can_be_monitored() -> None:
    trainer = tiny_trainer([GpuMemory(), "early_stopping"])
    trainer.plugins["early_stopping"].monitor.wanted = "process_mib"
    trainer.fit(tiny_data(), tiny_data(), epochs=2)
    assert trainer.metric_names == ("train_loss", "process_mib", "val_loss")


def test_a_fit_that_failed_tells_no_parts_and_a_second_one_starts_anew(
    capsys: pytest.CaptureFixture[str], fails: Any
) -> None:
    failing = fails(epoch=1)
    trainer = tiny_trainer([GpuMemory(), failing])
    with pytest.raises(RuntimeError):
        trainer.fit(tiny_data(), epochs=2)
    assert len(capsys.readouterr().out.splitlines()) == 1
    failing.armed = False
    trainer.fit(tiny_data(), epochs=2)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_evaluate_outside_a_fit_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tiny_trainer([GpuMemory()]).evaluate(tiny_data())) == ["test_loss"]
    assert capsys.readouterr().out == ""


def test_it_changes_no_bit_of_training(trained: Any, tmp_path: Path) -> None:
    assert trained([GpuMemory()], tmp_path) == trained([])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_allocated_reserved_peak_and_the_parts_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    size = 2**20
    model = nn.Linear(size, 1, bias=False)
    optimizer = torch.optim.Adam(model.parameters())
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, plugins=[GpuMemory()], device="cuda")
    result = trainer.fit((torch.ones(8, size), torch.ones(8, 1)), epochs=2)
    for row in result.history:
        assert row["gpu_allocated_mib"] <= row["gpu_peak_mib"] <= row["gpu_reserved_mib"]
        assert row["gpu_allocated_mib"] >= 4 * 4 + 32  # parameters, gradients, two of Adam, and the data
    first, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"memory    cuda\S*: .* allocated at the start, .* of .* free", first)
    assert "parameters 4.0 MiB, gradients 4.0 MiB, optimizer state 8.0 MiB, activations " in last
    assert re.search(r", the rest 3\d\.\d MiB; peak \d+\.\d MiB, .* free$", last)


def test_it_starts_no_other_program_and_says_two_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # Lightning PR #3257: nvidia-smi in each step. Lightning #18652: figures that overwhelm
    monkeypatch.setattr("os.posix_spawn", None, raising=False)
    monkeypatch.setattr("subprocess.Popen", None)
    tiny_trainer([GpuMemory()]).fit(tiny_data(), epochs=20)
    assert len(capsys.readouterr().out.splitlines()) == 2
