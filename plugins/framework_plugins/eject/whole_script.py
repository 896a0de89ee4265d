"""The script of a recipe: imports, what is built, and the loop, without anything that is not used."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from framework import Recipe, Trainer, UsageError

from .plain_loop import Loop
from .recipe_body import RecipeBody
from .source_text import Source, bound, used

LOOKS = {  # built-in plugins that only look
    "accuracy", "confusion_matrix", "console", "csv", "debug", "decision_boundary", "diagram", "f1_score", "gpu_memory",
    "gradient_statistics", "history", "mlflow", "plot", "profile", "progress", "regression", "summary", "tensorboard",
    "throughput", "top_checkpoints", "top_losses", "torchmetrics", "wandb", "watchdog",
}  # fmt: skip
FOLLOWED = {"framework_plugins.best_checkpoint", "framework_plugins.early_stopping"}
ACTS = (  # hooks of those that do not
    "prepare_model", "make_loader", "forward", "compute_loss", "backward", "optimizer_step", "on_batch_start",
    "on_gradients", "reduce", "agree",
)  # fmt: skip
MNIST = '''\
def mnist(root=""):
    """The training and the test images of MNIST, downloaded where they are missing."""
    root = root or os.environ.get("FRAMEWORK_DATA") or "data"
    train, test = (MNIST(root, train=train, transform=ToTensor(), download=True) for train in (True, False))
    return train, test'''  # the recipe's own tells on a page of code what may be wrong with the files
IMPORTS = {  # what the lines that are written here need
    "DataLoader": "torch.utils.data", "MNIST": "torchvision.datasets", "TensorDataset": "torch.utils.data",
    "ToTensor": "torchvision.transforms", "copy": "", "default_collate": "torch.utils.data", "islice": "itertools",
    "load_digits": "sklearn.datasets", "os": "", "random": "", "torch": "",
}  # fmt: skip
QUIET = {"partial", "sorted", "set", "list", "dict", "tuple", "range", "len", "min", "max"}  # calls that only compute


class Script:
    """The text in two halves, what is built and the loop.

    Raises:
        UsageError: a plugin that acts on the steps, or a recipe that is written in a way that cannot be followed
    """

    def __init__(
        self, source: Source, made: Recipe, trainer: Trainer, seed: int, settings: Mapping[str, Any], label: str
    ) -> None:
        self.source, self.made, self.left_out = source, made, list[str]()
        self.plan = Loop(
            whole=self._is_whole("train"), splits=tuple(s for s in ("val", "test") if getattr(made, s) is not None)
        )
        for entry in trainer.plugins.order:
            self._take(trainer, entry.name, entry.plugin)
        body = RecipeBody(source, settings, label)
        self.arguments = body.arguments
        building = list(self._building())
        self.plan.epochs = self._number("epochs")
        self.plan.accumulate = "" if made.accumulate == 1 else self._number("accumulate")
        self.loop = self.plan.text()
        top = [node for node in source.tree.body if not isinstance(node, (ast.Import, ast.ImportFrom, ast.If))]
        defined = [*self._data_functions(), *source.statements(top)]
        constants, variant = [*body.knobs, 'device = "cpu"  # or "cuda"'], [*body.own, *building]
        names, seed_them = used(ast.parse("\n".join([*defined, *body.shared, *variant]))), f"torch.manual_seed({seed})"
        for name, (_, alias) in source.imports.items():
            if name in names and alias.name in ("random", "numpy"):
                seed_them = f"{name}{'.random' * (alias.name == 'numpy')}.seed({seed})\n{seed_them}"
        if label and not (body.draws or body.eager):
            variant.insert(0, seed_them)
        elif label:
            again = f"{seed_them}  # again: every variant starts from the same draws"
            variant.insert(len(variant) if body.eager else 0, again)
        seeding = [seed_them] if seed_them not in variant else []
        blocks = _shaken([*defined, *constants, *seeding, *body.shared, *variant], self.loop)
        twice = _names(b for b in blocks if b in defined) & _names(
            [self.loop, *(b for b in blocks if b not in defined)]
        )
        if twice:  # what recipe() calls by a name that its module has as well
            raise UsageError(f"{source.name} cannot be ejected: {', '.join(sorted(twice))} means two things in it")
        self.building = "\n".join([*self._imports(blocks), *_spaced(blocks)])

    def _take(self, trainer: Trainer, name: str, plugin: Any) -> None:
        """What becomes of a plugin: its part in the loop is written, it is left out, or it is refused."""
        kind, impls = type(plugin), [impl for impl in trainer.plugins.impls if impl.listed.plugin is plugin]
        bases = {base.__module__ for base in kind.__mro__ if base.__module__.startswith("framework_plugins.")}
        if kind.__module__ == "framework_plugins.accuracy" and name == "accuracy" and plugin.top_k == 1:
            self.plan.hits = self._hits(plugin.logits)
            self.plan.many = "y.argmax" not in self.plan.hits and _target(self.made.train).numel() > 1
            return
        if kind.__module__ in FOLLOWED:
            self.plan.follow(name, plugin)
            return
        acting = [f"what {base} does" for base in bases if base.rpartition(".")[2] not in LOOKS]
        if not bases:
            code = [kind] if kind is not ModuleType else [impl.function for impl in impls]
            text = "".join(map(inspect.getsource, code))
            acting += [impl.hook.name for impl in impls if impl.hook.name in ACTS]
            acting += [f"what it does with `{word}`" for word in ("trainer.stop", "optimizer") if word in text]
        if acting:
            raise UsageError(f"the plugin {name} cannot be ejected, since {acting[0]} is part of the training")
        self.left_out.append(f"the hooks of {name}" if kind is ModuleType else name)

    def _hits(self, logits: bool | None) -> str:
        """Where an answer is right, as the plugin accuracy has it."""
        loss, target = self.made.loss, _target(self.made.train)
        kind = type(loss) if isinstance(loss, nn.Module) else loss
        if not target.is_floating_point():
            return "output.argmax(dim=1) == y"
        if kind in (nn.CrossEntropyLoss, F.cross_entropy):
            return "output.argmax(dim=1) == y.argmax(dim=1)"
        if logits is None:
            logits = kind in (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits)
        return f"(output >= {0 if logits else 0.5}) == (y >= 0.5)"

    # -------------------------------------------------------------------------------------------- what is built

    def _number(self, argument: str) -> str:
        """How the script calls a number of the Recipe: what is more than a name or a number gets a line and a name."""
        text = self.arguments[argument][1] if argument in self.arguments else str(getattr(self.made, argument))
        return text if re.fullmatch(r"[\w.-]+", text) else argument

    def _building(self) -> Iterator[str]:
        """Model, loss, optimizer and batches, in the order in which the recipe makes them."""
        for argument in ("epochs", "batch_size", "accumulate"):
            if self._number(argument) == argument and self.arguments[argument][1] != argument:
                yield f"{argument} = {self.arguments[argument][1]}"
        for name, (_, text, comment) in self.arguments.items():
            if name in ("model", "loss", "optimizer"):
                yield f"{name} = {text}{comment}" if text != name else ""
            elif name in ("train", "val", "test") and getattr(self.made, name) is not None:
                yield from self._whole(name) if self._is_whole(name) else self._batches(name)
        yield "model.to(device)"

    def _is_whole(self, split: str) -> bool:
        return self.made.batch_size is None and not isinstance(getattr(self.made, split), DataLoader)

    def _whole(self, split: str) -> Iterator[str]:
        """All samples as one batch."""
        (node, text, _), data = self.arguments[split], getattr(self.made, split)
        written = node.args if isinstance(node, ast.Call) and ast.unparse(node.func) == "TensorDataset" else []
        written = node.elts if isinstance(node, ast.Tuple) else written
        if written and not isinstance(written[0], ast.Starred):
            pair = ", ".join(map(self.source.expression, written))
            pair = pair if split == "train" else f"({pair})"
        elif type(data) is TensorDataset:
            pair = f"{text}[:]"
        elif isinstance(data, (tuple, list)):
            pair = text
        else:
            yield f"{split} = {text}" if text != split else ""
            pair = f"default_collate([{split}[row] for row in range(len({split}))])"
        if split == "train":
            yield f"x, y = {pair}" if pair != "x, y" else ""
            yield "x, y = x.to(device), y.to(device)"
        else:
            yield f"{split}_batches = [{pair}]  # a single one"

    def _batches(self, split: str) -> Iterator[str]:
        (node, text, _), data = self.arguments[split], getattr(self.made, split)
        name = "batches" if split == "train" else f"{split}_batches"
        if isinstance(data, DataLoader):
            yield f"{name} = {text}"
            return
        if isinstance(data, (tuple, list)):
            text = f"TensorDataset({text[1:-1] if isinstance(node, ast.Tuple) else f'*{text}'})"
        yield f"{split} = {text}" if text != split else ""
        options = [split, f"batch_size={self._number('batch_size')}"]
        if split == "train":
            in_order = self.made.shuffle is False or isinstance(data, IterableDataset)
            options += ["shuffle=True"] * (not in_order)
            options += ["drop_last=True"] * bool(self.made.drop_last)
        yield f"{name} = DataLoader({', '.join(options)})"

    def _data_functions(self) -> Iterator[str]:
        """The functions of the built-in data sets that the recipe imports."""
        for name, (module, alias) in self.source.imports.items():
            if module == "framework_plugins.datasets" and not alias.asname:
                spec = importlib.util.find_spec(module)
                assert spec is not None
                yield MNIST if name == "mnist" else _function(Source(Path(str(spec.origin))), name)

    def _imports(self, blocks: Iterable[str]) -> list[str]:
        """What is used and not defined, in the usual order."""
        found = set()
        for name in used(ast.parse("\n".join([*blocks, self.loop]))) - _names(blocks):
            if self.source.is_ours(name):
                module, _ = self.source.imports[name]
                raise UsageError(f"{self.source.name} cannot be ejected: what is built uses {name} of {module or name}")
            if name in self.source.imports:
                module, alias = self.source.imports[name]
                found.add((module, f"{alias.name} as {alias.asname}" if alias.asname else alias.name))
            elif name in IMPORTS:
                found.add((IMPORTS[name], name))
        modules: dict[str, list[str]] = {}
        for module, name in sorted(found):
            modules.setdefault(f"from {module} import " if module else f"import {name}", []).append(name)
        groups: tuple[list[str], list[str]] = [], []
        for start, names in sorted(modules.items(), key=lambda one: (one[0].startswith("from"), one[0])):
            foreign = start.split()[1].partition(".")[0] not in sys.stdlib_module_names
            groups[foreign].append(start + ", ".join(names) if start.endswith(" ") else start)
        return [line for group in groups if group for line in (*group, "")]

    # ------------------------------------------------------------------------------------------------ is it right

    def check(self, drawn: Tensor) -> None:
        """See that what was written builds what the recipe built, which left the random state `drawn`.

        Raises:
            UsageError: it does not
        """
        space: dict[str, Any] = {"__name__": "ejected"}
        try:
            exec(compile(self.building, self.source.name, "exec"), space)
        except Exception as error:
            raise UsageError(f"{self.source.name} cannot be ejected: its parts by themselves give {error!r}") from error
        same = {
            "random state": torch.equal(drawn, torch.get_rng_state()),
            "model": _alike(self.made.model.state_dict(), space["model"].state_dict()),
            "optimizer": repr(self.made.optimizer) == repr(space["optimizer"]),
        }
        for number in ("epochs", "batch_size", "accumulate"):
            text = self._number(number)
            same[number] = (text.isidentifier() and text not in space) or eval(text, space) == getattr(
                self.made, number
            )
        if others := [what for what, is_same in same.items() if not is_same]:
            told = f"its statements one by one give another {', '.join(others)}"
            raise UsageError(f"{self.source.name} cannot be ejected: {told}")


def _alike(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> bool:
    return wanted.keys() == got.keys() and all(
        value.shape == got[name].shape and torch.allclose(value, got[name], 0, 0, equal_nan=True)
        for name, value in wanted.items()
    )


def _target(data: Any) -> Tensor:
    """That of the first sample."""
    data = data.dataset if isinstance(data, DataLoader) else data
    found = data[1][0] if isinstance(data, (tuple, list)) else next(iter(data))[1]
    return torch.as_tensor(found)


def _function(source: Source, name: str) -> str:
    """A function without its types, imports and checks, and with the first line of its documentation."""
    node = source.functions[name]
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    body = source.statements([part for part in node.body if not isinstance(part, (ast.Import, ast.ImportFrom))])
    inside = "\n".join([f'"""{(ast.get_docstring(node) or "").partition(chr(10))[0]}"""', *body])
    return f"def {name}({ast.unparse(node.args)}):\n{textwrap.indent(inside, '    ')}"


def _names(blocks: Iterable[str]) -> set[str]:
    """The names that pieces of code give a value to."""
    return set().union(*(bound(node) for text in blocks for node in ast.parse(text).body))


def _shaken(blocks: list[str], loop: str) -> list[str]:
    """The blocks without those that only define what nothing uses."""
    uses = [used(ast.parse(text)) for text in [*blocks, loop]]
    kept = [
        block
        for number, block in enumerate(blocks)
        if not _is_quiet(block) or _names([block]) & set().union(*uses[:number], *uses[number + 1 :])
    ]
    return kept if len(kept) == len(blocks) else _shaken(kept, loop)


def _is_quiet(text: str) -> bool:
    """Whether nothing but its names would be missed."""
    nodes = ast.parse(text).body
    calls = [call.func for node in nodes for call in ast.walk(node) if isinstance(call, ast.Call)]
    computes = all(isinstance(function, ast.Name) and function.id in QUIET for function in calls)
    defines = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    return all(isinstance(n, defines) or (isinstance(n, (ast.Assign, ast.AnnAssign)) and computes) for n in nodes)


def _spaced(blocks: Iterable[str]) -> Iterator[str]:
    """Two blank lines around definitions, as is the custom."""
    before = False
    for number, block in enumerate(blocks):
        defines = block.startswith(("def ", "class ", "@"))
        yield from ["", ""] if number and (defines or before) else [""] if defines else []
        yield block
        before = defines
