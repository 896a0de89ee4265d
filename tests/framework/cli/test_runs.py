"""Using a run afterwards: evaluate, predict, plot, compare, summary."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest
import torch
from torch import nn

CLASSES = """
def recipe(lr: float = 0.5, epochs: int = 30, names: bool = True):
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0], [5.0, 6.0]])
    y = torch.tensor([0, 0, 1, 1])
    return made(x, y, nn.Linear(2, 2), nn.CrossEntropyLoss(), lr, epochs=epochs, val=(x, y), test=(x[:2], y[:2]),
                plugins=["accuracy"], class_names=["low", "high"] if names else None)
"""

RUN = "runs/lab/001"


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def test_evaluate_gives_the_figures_of_the_best_weights_on_each_split(lab, fine, go, info) -> None:
    fine(lab(CLASSES))
    outcome = go("evaluate", RUN)
    assert outcome.code == 0
    best = info()["best"]
    assert outcome.line("weights") == best["path"]
    assert outcome.line("val") == f"loss {best['val_loss']:.6g}  accuracy {best['val_accuracy']:.6g}"
    assert outcome.line("test").startswith("loss ")
    assert outcome.line("train") == outcome.line("val")  # the same four points here


def test_evaluate_takes_the_best_or_the_last_checkpoint_and_no_other(lab, fine, go, refused, info, tmp_path) -> None:
    source = CLASSES.replace("lr: float = 0.5", "lr: float = 30.0")  # so large that the best is not the last
    fine(lab(source))
    best, last = (json.loads((tmp_path / RUN / "checkpoints" / name).read_text())["name"] for name in ("BEST", "LAST"))
    assert best != last
    assert go("evaluate", RUN, "--checkpoint", "best").line("weights").endswith(best)
    assert go("evaluate", RUN, "--checkpoint", "last").line("weights").endswith(last)
    assert f"{RUN} has no checkpoint 'lsat'" in refused("evaluate", RUN, "--checkpoint", "lsat")


def test_predict_takes_one_sample_or_several(lab, fine, go) -> None:
    source = (
        "def recipe(epochs: int = 1):\n    model = nn.Linear(3, 1)\n"
        "    with torch.no_grad(): model.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]])); model.bias.zero_()\n"
        "    return made(torch.zeros(4, 3), torch.zeros(4, 1), model)\n"
    )
    fine(lab(source))
    one = go("predict", RUN, "[73,80,75]")
    assert one.code == 0
    assert one.out.splitlines()[-1] == "[73, 80, 75] -> [8373.0]"
    several = go("predict", RUN, "[[1, 2, 3], [-1, 0.5, 1e2]]")
    assert several.out.splitlines()[-2:] == ["[1, 2, 3] -> [321.0]", "[-1, 0.5, 100.0] -> [10004.0]"]


def test_predict_names_the_class(lab, fine, go) -> None:
    fine(lab(CLASSES))
    assert go("predict", RUN, "[0, 0.5]").out.splitlines()[-1].startswith("[0, 0.5] -> low (")
    assert go("predict", RUN, "[5, 5.5]").out.splitlines()[-1].startswith("[5, 5.5] -> high (")
    fine(lab(CLASSES), "--no-names")
    assert go("predict", "runs/lab/002", "[5, 5.5]").out.splitlines()[-1].startswith("[5, 5.5] -> class 1 (")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("[1]", "the input has shape (1,); a sample of this recipe has shape (2,)"),
        ("[1, 2, 3]", "the input has shape (3,); a sample of this recipe has shape (2,)"),
        ("5", "the input has shape (); a sample of this recipe has shape (2,)"),
        ("[]", "a sample of this recipe has shape (2,)"),
        ("abc", "the input 'abc' is not a JSON list of numbers"),
        ("73,80", "the input '73,80' is not a JSON list of numbers"),
        ("{}", "the input '{}' is not a JSON list of numbers"),
        ('["a", "b"]', "is not a JSON list of numbers"),
        ("[[1, 2], [3]]", "is not a JSON list of numbers"),
        ("[null, 1]", "is not a JSON list of numbers"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_with_what_would(lab, fine, refused, given, expected) -> None:
    fine(lab(CLASSES))
    assert expected in refused("predict", RUN, given)


def test_the_weights_are_those_of_the_run_whatever_the_seed_now(lab, fine, go) -> None:
    fine(lab(CLASSES), "--seed", "5")
    before = go("predict", RUN, "[1, 2]").out
    torch.manual_seed(99)
    assert go("predict", RUN, "[1, 2]").out == before


def test_using_a_run_changes_nothing_in_it(lab, fine, go, tmp_path) -> None:
    fine(lab(CLASSES))
    before = {file: file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    go("evaluate", RUN)
    go("predict", RUN, "[1, 2]")
    assert {file: file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("verb", [["evaluate", RUN], ["predict", RUN, "[1, 2]"]], ids=lambda verb: verb[0])
def test_a_recipe_that_has_changed_since_is_refused_unless_it_is_named(lab, fine, go, refused, tmp_path, verb) -> None:
    fine(lab(CLASSES))
    lab(CLASSES + "\n# a comment\n")
    said = refused(*verb, lines=22)
    assert f"{tmp_path / 'lab.py'} has changed since {RUN} ran" in said
    assert "--recipe FILE" in said
    assert "\n+# a comment\n" in said
    assert go(*verb, "--recipe", "lab.py").code == 0


@pytest.mark.parametrize("verb", [["evaluate", RUN], ["predict", RUN, "[1, 2]"]], ids=lambda verb: verb[0])
def test_the_copy_in_the_run_directory_is_run_only_when_it_is_trusted(lab, fine, go, refused, tmp_path, verb) -> None:
    fine(lab(CLASSES))
    before = go(*verb).out
    lab("raise AssertionError")
    assert "has changed" in refused(*verb, lines=22)
    assert "leave out one of them" in refused(*verb, "--trust-run", "--recipe", "lab.py")
    trusted = go(*verb, "--trust-run")
    assert trusted.code == 0
    assert trusted.out == f"recipe    the copy {RUN}/recipe.py (--trust-run)\n{before}"


def test_a_recipe_inside_the_run_directory_is_never_run_by_itself(lab, fine, refused, info, tmp_path) -> None:
    """Whoever sends a run directory could put anything there, and the SHA-256 of it into run.json."""
    fine(lab(CLASSES))
    for place in (tmp_path / RUN / "recipe.py", tmp_path / RUN / "checkpoints" / ".." / "recipe.py"):
        found = {**info(), "file": str(place), "sha256": hashlib.sha256(place.read_bytes()).hexdigest()}
        (tmp_path / RUN / "run.json").write_text(json.dumps(found))
        assert "is gone" in refused("evaluate", RUN)


def test_an_installed_recipe_is_found_where_it_is_installed_now(fine, go, info, tmp_path) -> None:
    fine("minibatch", "--epochs", "1")
    before = go("evaluate", "runs/minibatch/001").out
    found = {**info("runs/minibatch/001"), "file": str(tmp_path / "another/venv/minibatch.py")}
    (tmp_path / "runs/minibatch/001/run.json").write_text(json.dumps(found))
    assert go("evaluate", "runs/minibatch/001").out == before
    assert go("evaluate", "runs/minibatch/001", "--recipe", "minibatch").out == before


def test_the_difference_that_is_shown_is_short_and_names_what_is_left_out(lab, fine, refused) -> None:
    fine(lab(CLASSES))
    lab(CLASSES + "".join(f"x{number} = {number}\n" for number in range(50)))
    said = refused("evaluate", RUN, lines=22).splitlines()
    assert [line[:4] for line in said[1:4]] == ["--- ", "+++ ", "@@ -"]
    assert len(said) == 22
    assert re.fullmatch(r"\.\.\. and \d+ more lines", said[-1])


def test_a_knob_comes_back_as_what_it_was(lab, fine, go) -> None:
    kind = "betas: tuple[float, float] = (0.9, 0.99), names: list[str] = [], path: Path = Path('a')"
    source = (
        f"from pathlib import Path\ndef recipe({kind}):\n    print('KNOBS', betas, names, path)\n    return made()\n"
    )
    before = fine(lab(source), "--betas", "0.5", "0.25", "--names", "a b", "c").line("KNOBS")
    assert go("evaluate", RUN).line("KNOBS") == before


def test_a_recipe_that_is_gone_is_named_and_its_copy_can_be_used(lab, fine, go, refused, tmp_path) -> None:
    fine(lab(CLASSES))
    (tmp_path / "lab.py").unlink()
    said = refused("evaluate", RUN)
    assert "is gone" in said
    assert "--recipe FILE" in said
    assert go("evaluate", RUN, "--recipe", f"{RUN}/recipe.py").code == 0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def recipe(lr: float = 0.5): return made()\n", "has no knob 'epochs'"),
        ("def recipe(lr=0.5, epochs=1, names=True): return None\n", "does not build what ran in runs/lab/001"),
        ("def recipe(lr=0.5, epochs=1, names=True): return {'a': made()}\n", "does not build what ran in runs/lab/001"),
    ],
)
def test_another_recipe_that_does_not_fit_is_refused(lab, fine, refused, source, expected) -> None:
    fine(lab(CLASSES))
    lab(source, "other.py")
    assert expected in refused("evaluate", RUN, "--recipe", "other.py")


def test_weights_of_another_model_are_a_failed_checkpoint(lab, fine, refused) -> None:
    fine(lab(CLASSES))
    lab("def recipe(lr=0.5, epochs=1, names=True): return made()\n", "other.py")
    said = refused("evaluate", RUN, "--recipe", "other.py", code=1)
    assert "the checkpoint is of another model" in said or "does not fit" in said
    assert "(2, 2)" in said
    assert "(1, 3)" in said


def test_a_run_without_a_checkpoint_says_so(lab, fine, refused) -> None:
    fine(lab(CLASSES), "-p", "no:best_checkpoint")
    assert f"{RUN} has no checkpoint" in refused("evaluate", RUN)


def test_a_damaged_checkpoint_is_named(lab, fine, refused, info, tmp_path) -> None:
    fine(lab(CLASSES))
    for file in (tmp_path / RUN / "checkpoints").rglob("model.safetensors"):
        file.write_bytes(file.read_bytes()[:20])
    said = refused("evaluate", RUN, code=1)
    assert "checkpoint" in said
    assert "damaged" in said


def test_variants_are_used_one_by_one(lab, fine, go, refused) -> None:
    fine(lab("def recipe():\n    return {'a': made, 'b': lambda: made(lr=0.5)}\n"))
    assert f"{RUN} holds several runs; name one of them: {RUN}/a, {RUN}/b" in refused("evaluate", RUN)
    assert go("evaluate", f"{RUN}/b").code == 0
    assert go("predict", f"{RUN}/a", "[1, 2, 3]").code == 0


def test_a_run_can_be_used_from_another_directory(lab, fine, go, tmp_path, monkeypatch) -> None:
    fine(lab(CLASSES))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert go("evaluate", tmp_path / RUN).code == 0


def test_the_recipes_of_this_repository_can_be_used_afterwards(fine, go) -> None:
    fine("minibatch", "--epochs", "2")
    outcome = go("predict", "runs/minibatch/001", "[73,80,75]")
    assert outcome.code == 0
    assert len(numbers(outcome.out.splitlines()[-1].partition("->")[2])) == 1
    assert go("evaluate", "runs/minibatch/001").line("train").startswith("loss ")


def test_the_figures_agree_with_a_computation_by_hand(lab, fine, go, tmp_path) -> None:
    from safetensors.torch import load_file as load

    fine(lab(CLASSES))
    name = json.loads((tmp_path / RUN / "checkpoints/BEST").read_text())["name"]
    state = load(tmp_path / RUN / "checkpoints" / name / "model.safetensors")
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0], [5.0, 6.0]])
    loss = nn.functional.cross_entropy(x @ state["weight"].T + state["bias"], torch.tensor([0, 0, 1, 1]))
    assert numbers(go("evaluate", RUN).line("train"))[0] == pytest.approx(loss.item(), rel=1e-5)


# ------------------------------------------------------------------------------------------- plot, compare, summary


def test_plot_draws_the_curves_again(lab, fine, go, tmp_path) -> None:
    fine(lab())
    fine(lab())
    outcome = go("plot", RUN, "runs/lab/002")
    assert outcome.code == 0
    for run in (RUN, "runs/lab/002"):
        assert f"{run}/curves.svg" in outcome.out
        assert (tmp_path / run / "curves.svg").is_file()


def test_plot_draws_every_variant(lab, fine, go, tmp_path) -> None:
    fine(lab("def recipe():\n    return {'a': made, 'b': made}\n"))
    assert go("plot", RUN).code == 0
    assert (tmp_path / RUN / "a/curves.svg").is_file()
    assert (tmp_path / RUN / "b/curves.svg").is_file()


def test_compare_shows_the_knobs_that_differ_and_the_last_figures(lab, fine, go, rows, tmp_path) -> None:
    fine(lab(), "--lr", "0.1")
    fine(lab(), "--lr", "0.02")
    outcome = go("compare", RUN, "runs/lab/002")
    assert outcome.code == 0
    head, one, two = outcome.out.splitlines()[:3]
    assert "lr" in head.split()
    assert "epochs" not in head.split()
    assert "seed" not in head.split()
    for line, run, lr in ((one, RUN, "0.1"), (two, "runs/lab/002", "0.02")):
        assert line.split()[:2] == [run, lr]
        assert f"{rows(run)[-1]['train_loss']:.6g}" in line.split()
    assert (tmp_path / "runs/lab/compare.svg").is_file()


def test_compare_takes_runs_of_different_recipes_and_an_output(lab, fine, go, tmp_path) -> None:
    fine(lab())
    fine(lab(CLASSES, "other.py"))
    outcome = go("compare", RUN, "runs/other/001", "--output", "deep/picture.svg")
    assert outcome.code == 0
    assert (tmp_path / "deep/picture.svg").is_file()


def test_compare_needs_two(lab, fine, refused) -> None:
    fine(lab())
    assert "name at least two run directories" in refused("compare", RUN)


def test_a_run_without_figures_is_named(lab, fine, refused) -> None:
    fine(lab(), "-p", "no:history")
    for verb in ("plot", "compare"):
        assert f"{RUN} has no metrics.jsonl" in refused(verb, RUN)


def test_a_damaged_row_is_named_and_a_cut_off_last_one_is_left_out(lab, fine, go, refused, tmp_path) -> None:
    fine(lab())
    file = tmp_path / RUN / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"epoch": 3, "tra')
    assert go("plot", RUN).code == 0
    file.write_text("{broken\n" + whole)
    assert "metrics.jsonl, line 1 is damaged" in refused("plot", RUN)
    file.write_text("")
    assert "is empty" in refused("plot", RUN)


def test_a_picture_that_cannot_be_written_is_named(lab, fine, refused) -> None:
    fine(lab())
    fine(lab())
    said = refused("compare", RUN, "runs/lab/002", "--output", "lab.py/x.svg")
    assert "cannot write lab.py/x.svg: " in said


def test_a_run_directory_may_be_moved(lab, fine, go, tmp_path) -> None:
    fine(lab(CLASSES))
    shutil.move(tmp_path / RUN, tmp_path / "kept")
    assert go("evaluate", "kept").code == 0
    assert go("plot", "kept").code == 0


def test_summary_shows_the_layers_without_training(lab, go, tmp_path) -> None:
    source = "def recipe(): return made(model=nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)))\n"
    outcome = go("summary", lab(source))
    assert outcome.code == 0
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["0", "Linear", "(1,", "4)", "16"] in lines
    assert ["2", "Linear", "(1,", "1)", "5"] in lines
    assert "21 parameters in 2 layers (1 hidden)" in outcome.out
    assert not (tmp_path / "runs").exists()
