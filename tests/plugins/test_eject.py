from __future__ import annotations

import ast
import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from framework_plugins.eject import script_of

import framework
from framework import Trainer, UsageError
from framework.cli import main

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
KNOBS = {  # few epochs, and where the best epoch matters such a rate that it is not the last
    "batch_norm": "epochs=2 width=16 batch_size=250",
    "batch_or_minibatch": "epochs=4",
    "char_rnn": "epochs=2 cell=lstm",
    "checkpointing": "epochs=6 lr=0.02",
    "custom_dataset": "epochs=4 num_workers=1",
    "data_loader": "",
    "digits": "epochs=5 lr=20 hidden=8",
    "dropout": "epochs=2 rates=0 0.2 width=32",
    "gradient_descent": "epochs=4",
    "initialization": "epochs=1 depth=2",
    "learning_rate": "epochs=4",
    "linear_regression": "epochs=4",
    "logistic_regression": "epochs=4",
    "maximum_likelihood": "epochs=4",
    "minibatch": "epochs=4 batch_size=3",
    "mnist_binary": "epochs=2 minibatch_epochs=2",
    "mnist_softmax": "epochs=1 batch_size=1000",
    "multivariable_regression": "epochs=4 bias=true",
    "overfitting": "epochs=24 lr=0.05 width=16",
    "preprocessing": "epochs=4",  # later the raw one is inf
    "sgd_variants": "samples=300 updates=50",
    "softmax": "epochs=4 bias_per_class=true",
    "xor": "epochs=4 activation=tanh",
}
ALIKE = {"mnist_cnn": "channels=2 3", "mnist_mlp": "optimizer=sgd"}  # as mnist_softmax, with another model
NOTHING = {"cpu_vs_gpu", "network_diagrams", "tensor_manipulation"}  # is trained by these
REFUSED = {("gradient_descent", "by hand")}


def knobs_of(words: str) -> list[str]:
    return [word for word in re.split(r" (?=\w+=)", words) if word]


def executed(script: str) -> tuple[dict[str, Any], list[dict[str, float]], dict[str, float]]:
    """The state of the model that a script trains, the figures that it prints of each epoch, those of the test set."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(script.replace(":.6f}", "!r}"), "script.py", "exec"), space)
    rows = [
        {name: float(value) for name, value in re.findall(r"(\w+) (\S+)", line)} for line in said.getvalue().split("\n")
    ]
    last = rows[-2] if "test_loss" in rows[-2] else {}
    return dict(space["model"].state_dict()), [row for row in rows if "epoch" in row], last


class Models:
    """Remembers the model of each variant."""

    def __init__(self) -> None:
        self.trainers: list[Trainer] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        self.trainers.append(trainer)


def in_framework(recipe: Path, words: list[str], seed: int, run_dir: Path) -> dict[str, Any]:
    """By label what the framework gives."""
    models = Models()
    settings = framework.knobs(recipe, words)
    found = framework.run(recipe, seed=seed, device="cpu", run_dir=run_dir, plugins=[models], **settings)
    results = found if isinstance(found, dict) else {"": found}
    shown = re.compile(r"(epoch|(train|val)_(loss|accuracy))$")
    return {
        label: (
            dict(trainer.model.state_dict()),
            [{name: float(value) for name, value in row.items() if shown.match(name)} for row in result.history],
            result.test or {},
        )
        for (label, result), trainer in zip(results.items(), models.trainers, strict=True)
    }


def test_every_recipe_is_tried() -> None:
    assert {*KNOBS, *ALIKE, *NOTHING} == {path.stem for path in RECIPES.glob("[!_]*.py")}


@pytest.mark.parametrize("name", KNOBS)
def test_a_script_ends_with_the_same_bits_and_the_same_figures_as_the_framework(
    name: str, oracle: ModuleType, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name.startswith("mnist"):
        request.getfixturevalue("mnist")
    recipe, words = RECIPES / f"{name}.py", knobs_of(KNOBS[name])
    for label, wanted in in_framework(recipe, words, 3, tmp_path / "run").items():
        if (name, label) not in REFUSED:
            got = executed(script_of(str(recipe), words, seed=3, label=label))
            oracle.assert_same(list(got), list(wanted), label)


@pytest.mark.usefixtures("mnist")
@pytest.mark.parametrize("name", ALIKE)
def test_the_loop_of_the_other_recipes_on_mnist_is_that_of_softmax_regression(name: str) -> None:
    """What stands before the loop is executed and compared by script_of; an epoch in plain torch takes 10 seconds."""
    written = script_of(name, knobs_of(ALIKE[name]), seed=3)
    assert written.partition("model.to(device)")[2] == script_of("mnist_softmax").partition("model.to(device)")[2]


def scripts() -> dict[str, str]:
    """The script of each variant of each recipe, as it is."""
    found = {}
    for name in KNOBS:
        if not name.startswith("mnist"):
            made = framework.build(RECIPES / f"{name}.py")
            for label in made if isinstance(made, dict) else [""]:
                if (name, label) not in REFUSED:
                    found[f"{name} {label}"] = script_of(name, label=label)
    return found


@pytest.fixture(scope="module")
def all_scripts() -> dict[str, str]:
    return scripts()


def test_a_script_imports_nothing_of_the_framework(all_scripts: dict[str, str]) -> None:
    allowed = {"torch", "torchvision", "sklearn", *sys.stdlib_module_names}
    for name, script in all_scripts.items():
        for node in ast.walk(ast.parse(script)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {module.partition(".")[0] for module in modules} <= allowed, name


def test_a_script_is_clean(all_scripts: dict[str, str], tmp_path: Path) -> None:
    for name, script in all_scripts.items():
        (tmp_path / f"{name}.py").write_text(script, encoding="utf-8")
    rules = ["--select", "E,F,W,I", "--line-length", "120", "--isolated", "--no-cache"]
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *rules, "."], cwd=tmp_path, capture_output=True, encoding="utf-8"
    )
    assert ruff.returncode == 0, ruff.stdout


def test_what_is_defined_in_a_script_is_used_in_it(all_scripts: dict[str, str]) -> None:
    for name, script in all_scripts.items():
        tree = ast.parse(script)
        loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert node.name in loaded, name
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                assert node.targets[0].id in loaded, name


def test_the_simplest_one_can_be_read_at_a_glance() -> None:
    assert (
        script_of("linear_regression", ["epochs=50"])
        == '''\
"""Lab 02: linear regression, a line through three points.

The plain loop of linear_regression epochs=50: the same numbers, without the framework.
Left out, since they only look: the hooks of linear_regression.
"""

import torch
from torch import nn

HOURS = [[1], [2], [3]]
POINTS = [[2], [4], [6]]
lr = 0.01
epochs = 50
device = "cpu"  # or "cuda"
torch.manual_seed(0)
model = nn.Linear(1, 1)
for parameter in model.parameters():
    nn.init.zeros_(parameter)
loss = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=lr)
x, y = torch.tensor(HOURS, dtype=torch.float32), torch.tensor(POINTS, dtype=torch.float32)
x, y = x.to(device), y.to(device)
model.to(device)

for epoch in range(epochs):
    model.train()
    optimizer.zero_grad()
    output = model(x)
    batch_loss = loss(output, y)
    batch_loss.backward()
    optimizer.step()
    train_loss = batch_loss.item()
    print(f"epoch {epoch}  train_loss {train_loss:.6f}")
'''
    )


# ------------------------------------------------------------------------------------------------ recipes of one's own

OWN = """
import random

import numpy as np
import torch
from framework_plugins.schedule import Schedule
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from framework import Recipe, Trainer, UsageError, hookimpl

ROWS = 11


class Noisy(Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return torch.full((3,), float(row)), torch.tensor([random.random() > 0.5], dtype=torch.float32)


class Scale:
    @hookimpl(split="train")
    def on_gradients(self, trainer):
        pass


class Stops:
    def on_epoch_end(self, trainer):
        trainer.stop("enough")


class Halves:
    def on_epoch_end(self, trainer):
        trainer.optimizer.param_groups[0]["lr"] /= 2


class Warms(Schedule):
    def __init__(self):
        super().__init__(lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer), name="warms")


def pair(size=ROWS):
    x = torch.randn(size, 3); y = torch.randn(size, 1)  # on one line
    return x, y


if __name__ == "__main__":
    print(recipe())


def recipe(lr: float = 0.1, name: str = "x"):
    BODY
"""
MODEL = "model = nn.Linear(3, 1)\n    "
USUAL = "model=model, loss=nn.MSELoss(), optimizer=torch.optim.SGD(model.parameters(), lr=lr), epochs=3"


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], str]:
    """A recipe file of one's own whose function has this body."""

    def write(body: str) -> str:
        path = tmp_path / "나의 폴더" / "recipe_가.py"
        path.parent.mkdir()
        path.write_text(OWN.replace("BODY", body), encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    "arguments",
    [
        "train=pair(), batch_size=2, accumulate=3",
        "train=pair(), val=pair(7), test=pair(5), batch_size=3, shuffle=False, drop_last=True",
        "train=pair(), val=pair(7), test=pair(5)",
        "train=(torch.ones(4, 3), torch.ones(4, 1)), val=(torch.ones(2, 3), torch.ones(2, 1)), batch_size=3",
        "train=DataLoader(Noisy(), batch_size=4, shuffle=True), val=Noisy()",
        "train=Noisy(), batch_size=lr > 0 and 4, accumulate=2 if lr else 1",
        "train=Noisy(), test=Noisy()",
        "train=Noisy(), batch_size=4, plugins=['history', 'progress']",
        "train=pair(),  # eleven rows\n        batch_size=4",
        "train=TensorDataset(*pair())",
        "train=(torch.tensor(np.random.rand(5, 3)).float(), torch.ones(5, 1)), batch_size=2",
    ],
)
def test_whatever_the_batches_are_the_bits_are_the_same(
    arguments: str, own: Callable[[str], str], oracle: ModuleType, tmp_path: Path
) -> None:
    recipe = own(f"{MODEL}return Recipe({USUAL}, {arguments})")
    wanted = in_framework(Path(recipe), [], 1, tmp_path / "run")[""]
    oracle.assert_same(list(executed(script_of(recipe, seed=1))), list(wanted))


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        ("nn.BCELoss()", "torch.rand(9, 3).round()"),
        ("nn.BCEWithLogitsLoss()", "torch.rand(9, 3).round()"),
        ("nn.CrossEntropyLoss()", "torch.rand(9, 3).softmax(dim=1)"),
        ("nn.CrossEntropyLoss()", "torch.arange(9) % 3"),
    ],
)
def test_the_accuracy_is_the_same_for_every_kind_of_target(
    loss: str, target: str, own: Callable[[str], str], oracle: ModuleType, tmp_path: Path
) -> None:
    recipe = own(
        f"model = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid())\n    y = {target}\n    optimizer = torch.optim.Adam("
        f"model.parameters(), lr=lr)\n    return Recipe(model=model, loss={loss}, optimizer=optimizer, "
        "train=(torch.randn(9, 3), y), batch_size=2, epochs=2, plugins=['accuracy'])"
    )
    wanted = in_framework(Path(recipe), [], 0, tmp_path / "run")[""]
    oracle.assert_same(list(executed(script_of(recipe))), list(wanted))


@pytest.mark.parametrize(
    "plugin",
    [
        "BestCheckpoint('train_loss', restore_best=True)",
        "BestCheckpoint('val_accuracy', restore_best=True, min_delta=0.01)",
        "EarlyStopping('train_accuracy', patience=2)",
        "EarlyStopping('val_loss', patience=1, min_delta=0.001, restore_best=True)",
        "EarlyStopping('val_loss', mode='max', patience=2)",
    ],
)
def test_the_best_epoch_is_found_kept_and_waited_for_as_by_the_plugins(
    plugin: str, own: Callable[[str], str], oracle: ModuleType, tmp_path: Path
) -> None:
    recipe = own(
        "from framework_plugins.best_checkpoint import BestCheckpoint\n"
        "    from framework_plugins.early_stopping import EarlyStopping\n"
        "    model = nn.Linear(3, 2)\n    y = torch.arange(12) % 2\n    return Recipe(model=model, "
        "loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(model.parameters(), lr=3.0), epochs=12, batch_size=4, "
        f"train=(torch.randn(12, 3), y), val=(torch.randn(12, 3), y), plugins=['accuracy', {plugin}])"
    )
    wanted = in_framework(Path(recipe), [], 0, tmp_path / "run")[""]
    oracle.assert_same(list(executed(script_of(recipe))), list(wanted))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            f"{MODEL}return Recipe({USUAL}, train=pair(), plugins=[Scale()])",
            "the plugin scale cannot be .*on_gradients",
        ),
        (f"{MODEL}return Recipe({USUAL}, train=pair(), plugins=[Stops()])", "the plugin stops .*`trainer.stop`"),
        (f"{MODEL}return Recipe({USUAL}, train=pair(), plugins=[Halves()])", "the plugin halves .*`optimizer`"),
        (
            f"{MODEL}return Recipe({USUAL}, train=pair(), plugins=[Warms()])",
            "the plugin warms .*framework_plugins.schedule",
        ),
        (f"{MODEL}return Recipe({USUAL}, train=pair(), plugins=['closure'])", "the plugin closure cannot be ejected"),
        (f"{MODEL}made = Recipe({USUAL}, train=pair())\n    return made", "line 56: what is returned is made in a way"),
        (
            f"{MODEL}if lr > 5:\n        return None\n    return Recipe({USUAL}, train=pair())",
            r"recipe\(\) does not end in its only return",
        ),
        (f"{MODEL}return Recipe(**dict({USUAL}, train=pair()))", r"the Recipe is made of \*\*arguments"),
        (
            f"{MODEL}ROWS = 4\n    return Recipe({USUAL}, train=Noisy(), batch_size=ROWS)",
            "ROWS means two things in it",
        ),
        (
            f"{MODEL}hook = hookimpl\n    return Recipe({USUAL}, train=pair() if hook else 0)",
            "what is built uses hookimpl of framework",
        ),
        (
            f"{MODEL}model.extra = nn.Linear(1, 1) if __name__ == 'ejected' else nn.Identity()\n    "
            f"return Recipe({USUAL}, train=pair())",
            "its statements one by one give another random state, model",
        ),
        (
            "def line(lr, epochs):\n        model = nn.Linear(3, 1)\n        "
            f"return Recipe({USUAL.replace('epochs=3', 'epochs=epochs')}, train=pair())\n    return line(3, lr)",
            "lr would be another epochs after those before it were given",
        ),
        (
            f"{MODEL}passes = 2 if __name__ == 'ejected' else 3\n    "
            f"return Recipe({USUAL.replace('epochs=3', 'epochs=passes')}, train=pair())",
            "its statements one by one give another epochs",
        ),
        (
            f"{MODEL}return {{**{{'a': lambda: Recipe({USUAL}, train=pair())}}}}",
            "the variant 'a' is not written out",
        ),
        (
            f"{MODEL}return {{'a' if part else '': lambda: Recipe({USUAL}, train=pair()) for part in (nn.ReLU,)}}",
            "part is <class .*ReLU'> in the variant 'a', which cannot be ejected",
        ),
    ],
)
def test_what_cannot_be_ejected_is_told_with_the_reason(body: str, told: str, own: Callable[[str], str]) -> None:
    with pytest.raises(UsageError, match=told):
        script_of(own(body), label="a" if "return {" in body else "")


@pytest.mark.parametrize("name", sorted(NOTHING))
def test_of_a_recipe_that_trains_nothing_there_is_no_script(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} trains nothing"):
        script_of(name)


def test_of_several_variants_one_is_to_be_named() -> None:
    with pytest.raises(UsageError, match="name a variant of xor: one of 'one layer', 'two layers'"):
        script_of("xor")
    with pytest.raises(UsageError, match="by_hand cannot be ejected, since backward is part of the training"):
        script_of("gradient_descent", label="by hand")


def test_checks_of_the_knobs_are_left_out_and_the_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    script = script_of("maximum_likelihood", ["heads=40"])
    assert "raise" not in script
    assert "heads = 40\n" in script
    assert torch.equal(torch.get_rng_state(), before)


def test_the_verb_writes_a_file_once_or_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eject", "softmax", "lr=0.5", "epochs=3", "--seed", "4", "--to", "plain.py"]) == 0
    assert capsys.readouterr().out == "written   plain.py (46 lines)\nnext      python plain.py\n"
    script = Path("plain.py").read_text(encoding="utf-8")
    assert script == script_of("softmax", ["lr=0.5", "epochs=3"], seed=4)
    assert "torch.manual_seed(4)" in script
    assert main(["eject", "softmax", "--to", "plain.py"]) == 2
    assert "plain.py is there already" in capsys.readouterr().err
    assert main(["eject", "xor", "hidden=3", "--label", "two layers"]) == 0
    assert capsys.readouterr().out == script_of("xor", ["hidden=3"], label="two layers")
    assert main(["eject", "softmax", "lrr=1"]) == 2
    assert "Did you mean 'lr'?" in capsys.readouterr().err
