"""Recipes from Python: found by file, name or function; their knobs; what they may return."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import framework
from framework import Recipe, RecipeError, UsageError, build, run

QUICK = ["no:plot", "no:progress", "no:console"]


def small(lr: float = 0.1, epochs: int = 2) -> Recipe:
    """A recipe as a function."""
    model = nn.Linear(3, 1)
    x = torch.randn(6, 3)
    return Recipe(
        model=model, loss=nn.MSELoss(), optimizer=torch.optim.SGD(model.parameters(), lr=lr), epochs=epochs,
        train=(x, x.sum(1, keepdim=True)),
    )  # fmt: skip


def test_a_function_is_a_recipe(info) -> None:
    result = run(small, epochs=3, plugins=QUICK)
    assert (result.epochs, result.run_dir) == (3, Path("runs/small/001"))
    assert info("runs/small/001")["recipe"] == "small"
    assert info("runs/small/001")["file"] is None


def test_a_function_without_a_name_gives_a_directory_that_every_system_can_make() -> None:
    assert run(lambda: small(), plugins=QUICK).run_dir == Path("runs/lambda/001")


def test_a_file_is_given_as_text_or_path(lab) -> None:
    assert run(lab(), plugins=QUICK).epochs == run(Path("lab.py"), plugins=QUICK).epochs == 3


def test_an_installed_recipe_is_given_by_name() -> None:
    made = build("softmax")
    assert isinstance(made, Recipe)
    assert made.epochs == 1001


def test_a_file_in_the_way_does_not_hide_an_installed_recipe(tmp_path) -> None:
    (tmp_path / "softmax").mkdir()
    assert isinstance(build("softmax"), Recipe)


@pytest.mark.parametrize("make", [run, build])
def test_an_unknown_knob_is_refused_with_a_suggestion(make) -> None:
    with pytest.raises(RecipeError, match=r"the recipe small has no knob 'lrr'\. Did you mean 'lr'\?"):
        make(small, lrr=1)


def test_a_recipe_without_knobs_says_so() -> None:
    def recipe():
        return None

    with pytest.raises(RecipeError, match=r"the recipe recipe has no knob 'lr'\. It has none\."):
        run(recipe, lr=1)


def test_a_recipe_that_trains_nothing_leaves_nothing(tmp_path, capsys) -> None:
    assert run(lambda: print("tensors")) is None
    assert capsys.readouterr().out == "tensors\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("thing", [3, "text", [1], (), object(), Recipe, print], ids=lambda thing: type(thing).__name__)
def test_what_is_no_recipe_is_refused(thing) -> None:
    def recipe():
        return thing

    with pytest.raises(RecipeError, match="must return a Recipe, a dict of them, or None; it returned "):
        run(recipe)


@pytest.mark.parametrize("label", ["a/b", "a\\b", "a:b", "", " ", ".", "..", "a*", "a\nb", 3, None, "a?"])
def test_a_label_must_be_able_to_name_a_directory_on_every_system(label) -> None:
    def recipe():
        return {label: small()}

    with pytest.raises(RecipeError, match="must be a text that can name a directory"):
        run(recipe)


def test_the_seed_is_set_before_the_recipe_builds_anything() -> None:
    drawn: list[list[float]] = []

    def recipe():
        import random

        drawn.append([torch.rand(()).item(), random.random()])

    for seed in (0, 0, 1):
        torch.rand(5)
        run(recipe, seed=seed)
    assert drawn[0] == drawn[1] != drawn[2]
    torch.manual_seed(0)
    assert drawn[0][0] == torch.rand(()).item()


def test_build_gives_the_same_weights_as_run() -> None:
    made = build(small, seed=3)
    torch.manual_seed(3)
    assert torch.equal(made.model.weight, small().model.weight)


def test_the_seed_is_set_before_each_variant() -> None:
    drawn: list[float] = []

    def variant() -> Recipe:
        drawn.append(torch.rand(()).item())
        return small()

    def recipe():
        torch.rand(7)
        return {"a": variant, "b": variant}

    variants = build(recipe, seed=4)
    results = run(recipe, seed=4, plugins=QUICK)
    assert len(set(drawn)) == 1
    assert torch.equal(variants["a"].model.weight, variants["b"].model.weight)
    assert results["a"].history == results["b"].history


def test_recipes_already_made_start_from_the_same_draws_as_well() -> None:
    def recipe():
        made = []
        for _ in range(2):
            torch.manual_seed(9)
            model = nn.Linear(3, 1)
            x = torch.randn(6, 3)
            made.append(Recipe(model=model, loss=nn.MSELoss(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
                               train=(x, x.sum(1, keepdim=True)), batch_size=2, shuffle=True))  # fmt: skip
        return {"a": made[0], "b": made[1]}

    results = run(recipe, plugins=QUICK)
    assert results["a"].history == results["b"].history


def test_a_recipe_is_written_with_names_only() -> None:
    with pytest.raises(TypeError):
        Recipe(nn.Linear(1, 1), nn.MSELoss(), None, None)  # type: ignore[misc]


def test_a_mistake_raises_the_users_error_from_python_as_well(tmp_path) -> None:
    with pytest.raises(UsageError):
        run("nosuch.py")
    with pytest.raises(framework.DeviceError):
        run(small, device="cdua")
    with pytest.raises(framework.PluginError):
        run(small, plugins=["acuracy"])
    with pytest.raises(framework.PluginError):
        run(small, plugins=["no:acuracy"])
    assert not list(tmp_path.glob("runs/small/*"))


def test_an_error_raised_by_the_users_own_code_keeps_its_cause(lab) -> None:
    with pytest.raises(RecipeError) as caught:
        run(lab("def recipe(): return {}['lr']\n"))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_recipe_in_another_encoding_is_kept_as_utf8(tmp_path) -> None:
    source = "# -*- coding: cp949 -*-\n'''한글'''\nfrom test_lab_helper import small as recipe\n"
    (tmp_path / "lab.py").write_bytes(source.encode("cp949"))
    helper = "import torch\nfrom torch import nn\nfrom framework import Recipe\ndef small():\n    m = nn.Linear(1, 1)\n"
    helper += "    return Recipe(model=m, loss=nn.MSELoss(), optimizer=torch.optim.SGD(m.parameters()),"
    helper += " train=(torch.ones(2, 1), torch.ones(2, 1)))\n"
    (tmp_path / "test_lab_helper.py").write_text(helper)
    result = run("lab.py", plugins=QUICK)
    assert (result.run_dir / "recipe.py").read_text(encoding="utf-8") == source
