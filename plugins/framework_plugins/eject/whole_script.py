"""The script of a recipe: imports, what is built, and the loop, without anything that is not used."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import symtable
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from framework import Recipe, Trainer, UsageError

from .plain_loop import Best, Loop
from .recipe_body import Flattened
from .source_text import Source, bound, is_documentation

LOOKS = {  # built-in plugins that only look
    "accuracy", "confusion_matrix", "console", "csv", "debug", "decision_boundary", "diagram", "f1_score", "gpu_memory",
    "gradient_statistics", "history", "mlflow", "plot", "profile", "progress", "regression", "summary", "tensorboard",
    "throughput", "top_checkpoints", "top_losses", "torchmetrics", "wandb", "watchdog",
}  # fmt: skip
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
DRAWLESS = re.compile(r"\btorch\.(tensor|arange|linspace|zeros|ones|cat|full)\(|\bTensorDataset\(|\.(reshape|view)\(")


class Script:
    """The text in two halves, what is built and the loop.

    Raises:
        UsageError: a plugin that acts on the steps, or a recipe that is written in a way that cannot be followed
    """

    def __init__(
        self, source: Source, made: Recipe, trainer: Trainer, seed: int, settings: Mapping[str, Any], label: str
    ) -> None:
        self.source, self.made = source, made
        self.left_out: list[str] = []
        self.accuracy, self.best = "", Best()
        for entry in trainer.plugins.order:
            self._take(entry.name, entry.plugin)
        parts = Flattened(source, settings, label).parts
        self.arguments = parts.arguments
        building = list(self._building())
        self.loop = "\n".join(self._loop().lines()) + "\n"
        top = source.statements([node for node in source.tree.body if bound(node) != {"recipe"}], {})
        defined = [*self._data_functions(), *(text for text in top if not re.match(r"(from|import)\b", text))]
        seeding, own = [f"torch.manual_seed({seed})"], [*parts.own, *building]
        if "random" in set().union(*map(_used, [*defined, *parts.shared, *own])):
            seeding.insert(0, f"random.seed({seed})")
        again = seeding if label else []  # the framework sets the seed before each variant
        variant = [*own, *again] if parts.eager else [*again, *own]
        constants = [*parts.knobs, 'device = "cpu"  # or "cuda"']
        blocks = _shaken([*defined, *constants, *seeding, *parts.shared, *variant], self.loop)
        if label and not any(_draws(block) for block in blocks if block in parts.shared):
            for line in seeding:
                blocks.remove(line)  # the first; the second is enough
        self._check_names([block for block in blocks if block in defined], [b for b in blocks if b not in defined])
        self.building = "\n".join([*self._imports(blocks), *_spaced(blocks)])

    def _take(self, name: str, plugin: Any) -> None:
        """What becomes of a plugin: its part in the loop is written, it is left out, or it is refused."""
        if not type(plugin).__module__.startswith("framework_plugins."):
            acting = next((hook for hook in ACTS if _implements(plugin, hook)), "stop()" if _stops(plugin) else "")
        elif name == "accuracy" and plugin.top_k == 1:
            self.accuracy = self._right(plugin.logits)
            return
        elif hasattr(plugin, "restore_best"):
            self.best.take(name, plugin, self.made.val is not None)
            return
        else:
            acting = "" if type(plugin).__module__.rpartition(".")[2] in LOOKS else "what it does"
        if acting:
            raise UsageError(f"the plugin {name} cannot be ejected, since {acting} is part of the training")
        self.left_out.append(f"the hooks of {name}" if isinstance(plugin, ModuleType) else name)

    def _right(self, logits: bool | None) -> str:
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

    def _named(self, argument: str, default: str) -> tuple[str, list[str]]:
        """How the script calls a number of the Recipe, and the line that gives it this name if it has none yet."""
        text = self.arguments[argument][1].partition("  #")[0] if argument in self.arguments else default
        return (text, []) if re.fullmatch(r"[\w.-]+", text) else (argument, [f"{argument} = {text}"])

    def _building(self) -> Iterator[str]:
        """Model, loss, optimizer and batches, in the order in which the recipe makes them."""
        for argument in ("epochs", "batch_size", "accumulate"):
            yield from self._named(argument, "1")[1]
        for name, (_, text) in self.arguments.items():
            if name in ("model", "loss", "optimizer"):
                yield f"{name} = {text}" if text != name else ""
            elif name in ("train", "val", "test") and getattr(self.made, name) is not None:
                yield from self._whole(name) if self._is_whole(name) else self._batches(name)
        yield "model.to(device)"

    def _is_whole(self, split: str) -> bool:
        return self.made.batch_size is None and not isinstance(getattr(self.made, split), DataLoader)

    def _whole(self, split: str) -> Iterator[str]:
        """All samples as one batch."""
        (node, text), data = self.arguments[split], getattr(self.made, split)
        if isinstance(node, ast.Tuple) or text.startswith("TensorDataset("):
            pair = text[text.index("(") + 1 : -1].strip()
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
        (node, text), data = self.arguments[split], getattr(self.made, split)
        name = "batches" if split == "train" else f"{split}_batches"
        if isinstance(data, DataLoader):
            yield f"{name} = {text}"
            return
        if isinstance(data, (tuple, list)):
            text = f"TensorDataset({text[1:-1] if isinstance(node, ast.Tuple) else f'*{text}'})"
        yield f"{split} = {text}" if text != split else ""
        options = [split, f"batch_size={self._named('batch_size', 'None')[0]}"]
        if split == "train":
            in_order = self.made.shuffle is False or isinstance(data, IterableDataset)
            options += ["shuffle=True"] * (not in_order)
            options += ["drop_last=True"] * bool(self.made.drop_last)
        yield f"{name} = DataLoader({', '.join(options)})"

    def _loop(self) -> Loop:
        return Loop(
            epochs=self._named("epochs", "1")[0],
            accumulate="1" if self.made.accumulate == 1 else self._named("accumulate", "1")[0],
            whole=self._is_whole("train"),
            splits=[split for split in ("val", "test") if getattr(self.made, split) is not None],
            accuracy=self.accuracy,
            wide=bool(self.accuracy) and "y.argmax" not in self.accuracy and _target(self.made.train).numel() > 1,
            best=self.best,
        )

    def _data_functions(self) -> Iterator[str]:
        """The functions of the built-in data sets that the recipe imports."""
        for name, module in self.source.ours.items():
            if module == "framework_plugins.datasets":
                spec = importlib.util.find_spec(module)
                assert spec is not None
                yield MNIST if name == "mnist" else _function(Source(Path(str(spec.origin))), name)

    def _imports(self, blocks: Iterable[str]) -> list[str]:
        """What is used and not defined, in the usual order."""
        text = "\n".join([*blocks, self.loop])
        used, found = _used(text) - {name for block in blocks for name in _names(block)}, set()
        for node in self.source.tree.body:
            for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
                name = (alias.asname or alias.name).partition(".")[0]
                if name in used and name in self.source.ours:
                    raise self.source.refuse(node, f"what is built uses {name} of {self.source.ours[name]}")
                if name in used:
                    written = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
                    found.add((getattr(node, "module", ""), written))
                    used.discard(name)
        found |= {(module, name) for name, module in IMPORTS.items() if name in used}
        lines = []
        for standard in (True, False):
            group = [x for x in found if ((x[0] or x[1]).partition(".")[0] in sys.stdlib_module_names) == standard]
            lines += [f"import {name}" for module, name in sorted(group) if not module]
            for module in sorted({module for module, _ in group if module}):
                lines.append(f"from {module} import {', '.join(sorted(name for m, name in group if m == module))}")
            lines += [""] * bool(group)
        return lines

    # ------------------------------------------------------------------------------------------------ is it right

    def _check_names(self, defined: Iterable[str], later: Iterable[str]) -> None:
        """What recipe() calls by a name that its module has as well would become the same thing."""
        twice = set().union(*map(_names, defined)) & set().union(*map(_names, [*later, self.loop]))
        if twice:
            raise UsageError(f"{self.source.name} cannot be ejected: {', '.join(sorted(twice))} means two things in it")

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
            "number of epochs": eval(self._named("epochs", "1")[0], space) == self.made.epochs,
        }
        for split in ("train", "val", "test"):
            if wanted := _tensors(getattr(self.made, split)):
                same[f"data set {split}"] = _alike(wanted, _tensors(self._built(split, space)))
        if others := [what for what, is_same in same.items() if not is_same]:
            told = f"its statements one by one give another {', '.join(others)}"
            raise UsageError(f"{self.source.name} cannot be ejected: {told}")

    def _built(self, split: str, space: Mapping[str, Any]) -> Any:
        """The data of a split as the script has it."""
        if self._is_whole(split):
            return (space["x"], space["y"]) if split == "train" else space[f"{split}_batches"][0]
        return space["batches" if split == "train" else f"{split}_batches"]


def _tensors(data: Any) -> dict[int, Tensor]:
    """What tells data sets of tensors, and parts of them, from others."""
    if isinstance(data, DataLoader):
        return _tensors(data.dataset)
    if isinstance(data, Subset):
        return {-1: torch.tensor(data.indices), **_tensors(data.dataset)}
    parts = data.tensors if type(data) is TensorDataset else data if isinstance(data, (tuple, list)) else ()
    return dict(enumerate(parts))


def _alike(wanted: Mapping[Any, Any], got: Mapping[Any, Any]) -> bool:
    return wanted.keys() == got.keys() and all(
        value.shape == got[name].shape and torch.allclose(value, got[name], 0, 0, equal_nan=True)
        for name, value in wanted.items()
    )


def _implements(plugin: Any, hook: str) -> bool:
    function = getattr(plugin, hook, None)
    marked = hook.startswith("on_") or hasattr(function, "framework_trainer_impl")  # else a module's own function
    return callable(function) and (marked or not isinstance(plugin, ModuleType))


def _stops(plugin: Any) -> bool:
    """Whether a plugin of one's own may end a fit."""
    try:
        return ".stop(" in inspect.getsource(plugin if isinstance(plugin, ModuleType) else type(plugin))
    except (OSError, TypeError):  # it has no source
        return False


def _target(data: Any) -> Tensor:
    """That of the first sample."""
    data = data.dataset if isinstance(data, DataLoader) else data
    found = data[1][0] if isinstance(data, (tuple, list)) else data[0][1]
    return torch.as_tensor(found)


def _function(source: Source, name: str) -> str:
    """A function without its types, imports and checks, and with the first line of its documentation."""
    node = source.defined[name]
    assert isinstance(node, ast.FunctionDef)
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    body = source.statements([part for part in node.body if not isinstance(part, (ast.Import, ast.ImportFrom))], {})
    title = (ast.get_docstring(node) or "").partition("\n")[0]
    inside = "\n".join([f'"""{title}"""', *body])
    return f"def {name}({ast.unparse(node.args)}):\n{textwrap.indent(inside, '    ')}"


def _used(text: str) -> set[str]:
    """The names of the script that a piece of it looks up, or changes in place."""
    changed = {node.target for node in ast.parse(text).body if isinstance(node, ast.AugAssign)}
    used = {node.id for node in changed if isinstance(node, ast.Name)}
    tables = [symtable.symtable(text, "<script>", "exec")]
    for table in tables:
        tables += table.get_children()
        found = (symbol for symbol in table.get_symbols() if symbol.is_referenced())
        used |= {symbol.get_name() for symbol in found if table.get_type() == "module" or symbol.is_global()}
    return used


def _names(text: str) -> set[str]:
    """The names that a piece of code gives a value to."""
    return set().union(*map(bound, ast.parse(text).body))


def _draws(text: str) -> bool:
    """Whether a statement may draw random numbers."""
    return "(" in DRAWLESS.sub("", text) and not _is_quiet(text)


def _shaken(blocks: Iterable[str], loop: str) -> list[str]:
    """The blocks without those that only define what nothing uses."""
    left = [block for block in blocks if block.strip()]
    while True:
        uses = [_used(text) for text in [*left, loop]]
        kept = [
            block
            for number, block in enumerate(left)
            if not _is_quiet(block) or _names(block) & set().union(*uses[:number], *uses[number + 1 :])
        ]
        if len(kept) == len(left):
            return kept
        left = kept


def _is_quiet(text: str) -> bool:
    """Whether nothing but its names would be missed."""
    nodes = ast.parse(text).body
    calls = [call.func for node in nodes for call in ast.walk(node) if isinstance(call, ast.Call)]
    computes = all(isinstance(function, ast.Name) and function.id in QUIET for function in calls)
    return all(
        isinstance(node, (ast.FunctionDef, ast.ClassDef))
        or is_documentation(node)
        or (isinstance(node, (ast.Assign, ast.AnnAssign)) and computes)
        for node in nodes
    )


def _spaced(blocks: Iterable[str]) -> Iterator[str]:
    """Two blank lines around definitions, as is the custom."""
    before = False
    for number, block in enumerate(blocks):
        defines = block.startswith(("def ", "class ", "@"))
        yield from ["", ""] if number and (defines or before) else [""] if defines else []
        yield block
        before = defines
