"""A run's model in one file that needs neither its class nor this program: torch.export or ONNX."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.utils.data import DataLoader

from framework import PluginOption, Recipe, UsageError, rebuild

SUFFIXES = {"export": ".pt2", "onnx": ".onnx"}
BATCHES = 1, 5  # samples in the batches that are compared; the larger one is what is traced


def export(
    run: Path, format: Literal["export", "onnx"] = "export", to: str = "", recipe: str = "", checkpoint: str = "",
    plugin: PluginOption = (), trust_run: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:  # fmt: skip
    """Write a run's model as one file for torch.export or ONNX, and compare what it gives.

    The model is in eval mode and on the CPU; the number of samples in a batch is free. The file is read again, and is
    kept only if it gives what the model gives, for samples of the recipe.

    Args:
        run: a run directory
        format: export (torch.export) or onnx
        to: the file; by default model.pt2 or model.onnx in the run directory
        recipe: the recipe file to use, where the original has gone or changed
        checkpoint: best or last; by default the best if it was chosen on validation data, else the last
        plugin: as for a run; those of the recipe are there already
        trust_run: run the copy of the recipe that is in the run directory

    Raises:
        UsageError: the model cannot be exported, or what is exported gives something else; nothing is written then
    """
    if format == "onnx":
        _need("onnx", "onnxscript", "onnxruntime")
    file = Path(to) if to else run / f"model{SUFFIXES[format]}"
    if file.suffix != SUFFIXES[format]:
        raise UsageError(f"--to {file}: a file of --format {format} ends in {SUFFIXES[format]}")
    made, trainer, path = rebuild(run, recipe, checkpoint, plugin, trust_run)
    model, inputs = made.model.cpu().eval(), _inputs(made)
    with _written(file) as beside:
        apart = export_model(model, inputs, beside, format)
    print(f"weights   {path}")
    for name, part in trainer.plugins.items():
        if callable(getattr(part, "forward", None)):
            print(f"note      the plugin {name} takes part in the forward pass; the file holds the model without it")
    print(f"exported  {file} ({file.stat().st_size:,} bytes)")
    print(f"checked   on batches of 1 and of 5 samples: the outputs are at most {apart:.3g} apart")


def export_model(model: nn.Module, inputs: Any, file: Path, format: str) -> float:
    """Export a model in eval mode, read the file again, and compare: the largest difference of an output.

    Args:
        inputs: a batch of several samples, a tensor or a tree of them

    Raises:
        UsageError: it cannot be exported, or gives something else
    """
    kind = type(model).__name__
    try:
        with torch.no_grad():
            expected = [_leaves(model(_rows(inputs, count))) for count in BATCHES]
            again = _leaves(model(inputs))
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise UsageError(
            f"{kind} cannot be called with what the recipe's batches hold: {said}; if a plugin `forward` calls it "
            "otherwise, export_model of framework_plugins.export takes inputs of your own"
        ) from error
    if any(map(_differ, expected[-1], again)):
        raise UsageError(f"{kind} gives something else each time, in eval mode too: is there a dropout left on?")
    if not expected[-1]:
        raise UsageError(f"the output of {kind} has no tensor")
    with _quiet(), _reasoned(kind, format):
        given = _write(model, inputs, file, format)
        got = [given(_rows(inputs, count)) for count in BATCHES]
    pairs = [pair for wanted, outputs in zip(expected, got, strict=True) for pair in zip(wanted, outputs, strict=True)]
    for wanted, output in pairs:
        if _differ(wanted, output):
            what = f"shape {tuple(output.shape)} in place of {tuple(wanted.shape)}"
            if wanted.shape == output.shape:
                what = f"numbers that are up to {_apart(wanted, output):.3g} off"
            raise UsageError(
                f"what was exported of {kind} gives {what} for a batch of {len(wanted)}: does its forward look at "
                "the values or at the size of the batch?"
            )
    return max(_apart(*pair) for pair in pairs)


def _write(model: nn.Module, inputs: Any, file: Path, format: str) -> Callable[[Any], list[Tensor]]:
    """Write the file and read it again: a function of inputs that gives the outputs."""
    free = (_mapped(lambda tensor: {0: torch.export.Dim("batch")}, inputs),)
    program = torch.export.export(model, (inputs,), dynamic_shapes=free)
    if format == "export":
        torch.export.save(program, file)
        loaded = torch.export.load(file).module()
        return lambda x: _leaves(loaded(x))
    runtime = importlib.import_module("onnxruntime")  # which has no types
    names: dict[str, Any] = {}
    if isinstance(inputs, Tensor):
        names = {"input_names": ["x"], "output_names": ["output"]}
    named = (_mapped(lambda tensor: {0: "batch"}, inputs),)
    torch.onnx.export(
        program, (inputs,), file, dynamo=True, external_data=False, verbose=False, dynamic_shapes=named, **names
    )
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    fed = [one.name for one in session.get_inputs()]

    def run(x: Any) -> list[Tensor]:
        values = [tensor.numpy() for tensor in _leaves(x)]
        return [torch.from_numpy(output) for output in session.run(None, dict(zip(fed, values, strict=True)))]

    return run


def _inputs(made: Recipe) -> Any:
    """The x of a batch of samples of the training data."""
    data = made.train
    x = data[0] if isinstance(data, tuple) else None
    if x is None:
        batch = next(iter(data if isinstance(data, DataLoader) else DataLoader(data, batch_size=BATCHES[-1])))
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
    return _rows(x, BATCHES[-1])


def _rows(tree: Any, count: int) -> Any:
    """So many samples; where there are fewer, some of them again."""
    return _mapped(lambda tensor: tensor[torch.arange(count) % len(tensor)].cpu(), tree)


def _mapped(function: Callable[[Tensor], Any], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _mapped(function, value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_mapped(function, value) for value in tree)
    raise UsageError(f"only models of tensors can be exported; x holds {type(tree).__name__}")


def _leaves(tree: Any) -> list[Tensor]:
    found = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [tree] if isinstance(tree, Tensor) else [leaf for value in found for leaf in _leaves(value)]


def _differ(wanted: Tensor, output: Tensor) -> bool:
    """Whether more is different than the order of additions explains: the upper half of the digits."""
    if wanted.shape != output.shape or wanted.dtype != output.dtype:
        return True
    exact = not wanted.is_floating_point()
    near = 0.0 if exact else torch.finfo(wanted.dtype).eps ** 0.5 * max(1.0, float(wanted.abs().max()))
    return not torch.allclose(wanted, output, rtol=0, atol=near, equal_nan=True)


def _apart(wanted: Tensor, output: Tensor) -> float:
    return float((wanted.detach().double() - output.detach().double()).abs().max()) if wanted.numel() else 0.0


# ------------------------------------------------------------------------------------------------------- around it


def _need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f'--format onnx needs the package {package}: pip install "framework-trainer[onnx]"')


@contextlib.contextmanager
def _written(file: Path) -> Iterator[Path]:
    """A place beside a file, which becomes the file if all went well: there is never half of one."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".tmp-") as folder:
            beside = Path(folder, file.name)
            yield beside
            os.replace(beside, file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and onnxscript say on the way, such as the whole graph of a model that cannot be exported."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _reasoned(kind: str, format: str) -> Iterator[None]:
    """Turns an error of the exporter, which may be pages long, into a sentence."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        text = str(error)
        detail = re.search(r"^ +- (.+?\.)(?: |$)", text, re.MULTILINE)  # one of the constraints that are violated
        place = re.findall(r'File "(.+)", line (\d+), in \w+\n +(.+)', text)
        where = f", at line {place[-1][1]} of {Path(place[-1][0]).name}: {place[-1][2]}" if place else ""
        reason = detail[1] if detail else text.strip().partition("\n")[0][:300]
        raise UsageError(f"{kind} cannot be exported ({format}): {reason or type(error).__name__}{where}") from error
