"""export: one file that gives what the model gives, or none at all."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from framework import rebuild
from framework.cli import main

RUN = Path("runs/lab/001")
HEAD = """import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from framework import Recipe

def made(model, x=None, loss=None, **settings):
    x = torch.rand(7, 4) if x is None else x
    train = (x, torch.zeros(7, 2)) if isinstance(x, torch.Tensor) else x
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Recipe(model=model, loss=loss or nn.MSELoss(), optimizer=optimizer, train=train, batch_size=2, **settings)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.odd = 0
    def forward(self, x):
        return self.linear(x)
"""
IMAGES = (
    "made(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), "
    "nn.Linear(144, 2)), torch.rand(7, 3, 8, 8))"
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "모델 폴더"
    folder.mkdir()
    monkeypatch.chdir(folder)


@pytest.fixture
def lab() -> Callable[..., None]:
    """Runs a recipe of which the return value is given."""

    def train(returned: str = "made(Model())", before: str = "") -> None:
        source = f"{HEAD}\n{before}\ndef recipe():\n    return {returned}\n"
        Path("lab.py").write_text(source, encoding="utf-8")
        assert main(["lab.py", "-q", "-p", "no:plot", "-p", "no:progress"]) == 0

    return train


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an export that must be refused in one line, and leave nothing behind."""

    def run(*words: str) -> str:
        before = sorted(RUN.iterdir())
        capfd.readouterr()
        assert main(["export", str(RUN), *words]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
        assert sorted(RUN.iterdir()) == before
        return err

    return run


def test_the_file_gives_what_the_model_gives_for_batches_of_any_size(lab, capfd) -> None:
    lab(IMAGES)
    capfd.readouterr()
    assert main(["export", str(RUN)]) == 0
    out, err = capfd.readouterr()
    made, _, path = rebuild(RUN)
    size = (RUN / "model.pt2").stat().st_size
    assert err == ""
    assert out.splitlines() == [
        f"weights   {path}", f"exported  {RUN / 'model.pt2'} ({size:,} bytes)",
        "checked   on batches of 1 and of 5 samples: the outputs are at most 0 apart",
    ]  # fmt: skip
    loaded, model = torch.export.load(RUN / "model.pt2").module(), made.model.cpu().eval()
    for count in (1, 2, 5, 64):
        x = torch.rand(count, 3, 8, 8)
        assert torch.equal(loaded(x), model(x))


def test_the_file_needs_neither_the_class_nor_the_framework(lab) -> None:
    lab()
    assert main(["export", str(RUN), "--to", "elsewhere/net.pt2"]) == 0
    Path("lab.py").unlink()
    script = (
        "import sys, torch\nmodel = torch.export.load('elsewhere/net.pt2').module()\n"
        "assert model(torch.zeros(3, 4)).shape == (3, 2)\n"
        "assert not [name for name in sys.modules if name.startswith('framework')]"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs the extra onnx")
def test_onnx_gives_what_the_model_gives_and_is_one_file(lab, capfd) -> None:
    lab(IMAGES)
    before = {*RUN.iterdir()}
    capfd.readouterr()
    assert main(["export", str(RUN), "--format", "onnx"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert [line.split()[0] for line in out.splitlines()] == ["weights", "exported", "checked"]
    assert {*RUN.iterdir()} - before == {RUN / "model.onnx"}
    import onnxruntime

    session = onnxruntime.InferenceSession(RUN / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("x", ["batch", 3, 8, 8])]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [("output", ["batch", 2])]
    model = rebuild(RUN)[0].model.cpu().eval()
    for count in (1, 9):
        x = torch.rand(count, 3, 8, 8)
        (output,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), model(x).detach(), rtol=1e-4, atol=1e-5)


TREE = """
class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
    def forward(self, x):
        return {"sum": self.linear(x["b"]) + x["a"], "rest": (x["a"],)}
class Pairs(Dataset):
    def __len__(self): return 3
    def __getitem__(self, index): return {"a": torch.rand(2), "b": torch.rand(4)}, 0
def loss(output, y): return output["sum"].sum()
"""


@pytest.mark.parametrize("format", ["export", "onnx"])
def test_trees_of_tensors_go_in_and_come_out(lab, format) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    lab("made(Both(), Pairs(), loss=loss)", TREE)
    assert main(["export", str(RUN), "--format", format]) == 0


def test_a_recurrent_model_and_a_loader_of_the_users_can_be_exported(lab) -> None:
    source = (
        "class Last(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.gru, self.linear = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)\n"
        "    def forward(self, x): return self.linear(self.gru(x)[0][:, -1])\n"
        "loader = DataLoader(TensorDataset(torch.rand(3, 6, 4), torch.zeros(3, 2)), batch_size=2)\n"
        "plain = made\ndef made(*given):\n    it = plain(*given)\n    it.batch_size = None\n    return it\n"
    )
    lab("made(Last(), loader)", source)
    assert main(["export", str(RUN)]) == 0


def test_exporting_changes_nothing_in_the_run_and_draws_nothing_after_it(lab) -> None:
    lab()
    before = {file: file.read_bytes() for file in RUN.rglob("*") if file.is_file()}
    assert main(["export", str(RUN), "--to", "net.pt2"]) == 0
    assert {file: file.read_bytes() for file in RUN.rglob("*") if file.is_file()} == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.warns(UserWarning, match="still told"):  # what was silenced for the export speaks again
            warnings.warn("still told", UserWarning, stacklevel=1)


def test_the_best_or_the_last_weights_can_be_asked_for(lab, refused) -> None:
    lab()
    assert main(["export", str(RUN), "--checkpoint", "best"]) == 0
    assert "has no checkpoint 'lsat'" in refused("--checkpoint", "lsat")


def test_a_plugin_that_takes_part_in_the_forward_pass_is_named(lab, capsys) -> None:
    plugin = "class Scaled:\n    def forward(self, model, batch): return 2 * model(batch[0])\n"
    lab("made(Model(), plugins=[Scaled()])", plugin)
    assert main(["export", str(RUN)]) == 0
    assert "note      the plugin scaled takes part in the forward pass; the file holds" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------------- errors


def test_a_model_that_only_a_plugin_can_call_is_refused_with_what_to_do(lab, refused) -> None:
    """It was a traceback out of Linear, which was given a dict."""
    own = """class Rows(Dataset):
    def __len__(self): return 7
    def __getitem__(self, index): return {"x": torch.rand(4)}

class Own:
    def forward(self, model, batch): return model(batch["x"])
    def compute_loss(self, output): return output.sum()
"""
    lab("made(Model(), Rows(), plugins=[Own()])", own)
    said = refused()
    assert "Model cannot be called with what the recipe's batches hold: TypeError: linear(): argument 'input'" in said
    assert "export_model of framework_plugins.export takes inputs of your own" in said


def model(forward: str) -> str:
    return f"class Odd(Model):\n    def forward(self, x):\n        {forward}\n"


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        ("return self.linear(x).reshape(len(x.tolist()), 2)", "Odd cannot be exported (export): "),
        ("return self.linear(x) if x.sum() > 0 else x[:, :2]",
         "Odd cannot be exported (export): Could not guard on data-dependent expression Eq(u0, 1)"),
        ("return self.linear(x) + torch.rand(2)", "Odd gives something else each time, in eval mode too"),
        ("return self.linear(x) * float(x.sum())", "Odd cannot be exported (export): "),
        ("return self.linear(x) + (self.count() - 3)", "Odd gives something else each time"),
        ("return self.linear(x) if len(x) == 5 or self.training else 2 * self.linear(x)",
         "Odd cannot be exported (export): You marked batch as dynamic but your code specialized it to be a constant"),
    ],
    ids=["list", "branch", "random", "number", "counts", "size"],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_with_the_reason(lab, refused, forward, said) -> None:
    count = "    def count(self):\n        self.odd += 1\n        return self.odd\n"
    lab("made(Odd())", model(forward) + count)
    assert said in refused()


def test_the_line_that_cannot_be_exported_is_shown(lab, refused) -> None:
    lab("made(Odd())", model("return self.linear(x) if x.sum() > 0 else x[:, :2]"))
    assert "of lab.py: return self.linear(x) if x.sum() > 0 else x[:, :2]" in refused()


def test_what_gives_something_else_is_refused(lab, refused) -> None:
    """What is traced is the path of a batch of five; that of a single sample is another here."""
    lab("made(Odd())", model("return self.linear(x) if torch.compiler.is_exporting() else 2 * self.linear(x)"))
    said = refused()
    assert "what was exported of Odd gives numbers that are up to 0." in said
    assert "for a batch of 1: does" in said


def test_a_missing_package_of_onnx_is_named_before_anything_is_built(refused, lab, monkeypatch) -> None:
    lab()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else found(name))
    said = refused("--format", "onnx")
    assert said == 'error: --format onnx needs the package onnxscript: pip install "framework-trainer[onnx]"\n'


def test_a_file_of_the_wrong_kind_or_place_is_refused(lab, refused) -> None:
    lab()
    assert "--to net.onnx: a file of --format export ends in .pt2" in refused("--to", "net.onnx")
    assert "lab.py/net.pt2 cannot be written: " in refused("--to", "lab.py/net.pt2").replace("\\", "/")
