"""From a recipe to its objects: knobs by words, the Recipe with its Trainer, and both again out of a run."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from framework import (
    RecipeError,
    RunDirError,
    Trainer,
    UsageError,
    assemble,
    build,
    checkpoint,
    command_of,
    fit_recipe,
    knobs,
    rebuild,
)
from framework.cli.lab import Lab, find_lab
from framework.cli.options import of_recipe

KINDS = """
from enum import Enum
from pathlib import Path
from typing import Literal


class Kind(Enum):
    SMALL = "s"
    LARGE = "l"


def recipe(lr: float = 0.1, widths: list[int] = [8], shape: tuple[int, int] = (2, 3), bias: bool = True,
           pairs: tuple[tuple[int, int], ...] = ((1, 2),), act: Literal["tanh", "relu"] = "tanh", note: str = "plain",
           where: Path = Path("data"), limit: int | None = None, rates: list[float] | None = None,
           kind: Kind = Kind.SMALL, loose=(1, 2)):
    return made(lr=lr, batch_size=2, epochs=1)
"""
VARIANTS = """
def recipe(lr: float = 0.1):
    return {"one": lambda: made(lr=lr), "two": lambda: made(lr=2 * lr, plugins=["summary"])}
"""


def same(one: Trainer, other: Trainer) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# ----------------------------------------------------------------------------------------------------- knobs by words


@pytest.fixture
def kinds(lab: Callable[..., str]) -> Lab:
    return find_lab(lab(KINDS))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("lr=-1e-3", -1e-3), ("widths=500 2000", [500, 2000]), ("widths=-1 -2", [-1, -2]), ("widths=", []),
        ("shape=4 5", (4, 5)), ("pairs=1 2 3 4", ((1, 2), (3, 4))), ("bias=false", False), ("bias=True", True),
        ("act=relu", "relu"), ("note=a=b c", "a=b c"), ("note=", ""), ("note=--lr", "--lr"),
        ("where=/a b/한글", Path("/a b/한글")), ("limit=3", 3), ("limit=None", None), ("rates=1 2", [1.0, 2.0]),
        ("rates=None", None), ("loose=3 4", (3, 4)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_word_gives_a_knob_a_value_of_its_type(kinds: Lab, word: str, value: Any) -> None:
    name = word.partition("=")[0]
    assert knobs(kinds, [word]) == {name: value}
    assert type(knobs(kinds, [word])[name]) is type(value)


def test_of_several_words_for_one_knob_the_last_counts_and_others_keep_their_defaults(kinds: Lab) -> None:
    assert knobs(kinds, ["lr=1", "limit=2", "lr=3"]) == {"lr": 3.0, "limit": 2}
    assert knobs(kinds, []) == {}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lr", "'lr' sets no knob: write its name, = and the value, such as lr=..."),
        ("act=sigmoid", "invalid choice 'sigmoid' for argument '--act'"),
        ("lr=fast", "--lr: could not convert string to float: 'fast'"),
        ("bias=no", "'bias=no': write bias=true or bias=false"),
        ("shape=1 2 3", "3"),
    ],
)
def test_a_word_that_sets_nothing_or_something_else_is_refused(kinds: Lab, word: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        knobs(kinds, [word])
    assert said in str(caught.value)


def test_a_misspelt_knob_is_refused_with_the_one_that_is_meant(kinds: Lab) -> None:
    with pytest.raises(RecipeError, match=r"has no knob 'widht'\. Did you mean 'widths'\?"):
        knobs(kinds, ["widht=1"])


# -------------------------------------------------------------------------------------------------- the command line


def typed(command: str, recipe: Lab) -> dict[str, Any]:
    """The knobs of a command line as a shell would give it to the program."""
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "framework", "lab.py"]
    return of_recipe(recipe, words[4:])[0]


@pytest.mark.parametrize(
    "words",
    [
        ["lr=-1e-3"], ["widths=500 2000"], ["widths=-1 -2"], ["widths="], ["shape=4 5"], ["pairs=1 2 3 4"],
        ["bias=false"], ["bias=TRUE"], ["act=relu"], ["where=/a b/한글"], ["limit=None"], ["rates=1 -2"],
        ["kind=LARGE"], ["lr=1", "widths=3 4", "note=behind a list", "lr=2"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_command_of_words_gives_the_same_knobs(kinds: Lab, words: list[str]) -> None:
    got = typed(command_of("lab.py", words), kinds)
    assert {name: str(got[name]) for name in got} == {
        name: str(value) for name, value in kinds.settings(knobs(kinds, words)).items()
    }


@pytest.mark.skipif(os.name == "nt", reason="shlex reads what a POSIX shell does")
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"])))
@example(text="it's")
@example(text='say "hi"')
@example(text="$HOME `ls` a;b a&b * #x !y \\ (z) <in >out |")
@example(text="--lr")
def test_the_command_of_any_text_is_one_that_a_shell_reads_as_that_text(kinds: Lab, text: str) -> None:
    assert typed(command_of("lab.py", [f"note={text}"]), kinds)["note"] == text


def test_numbers_stand_in_a_command_as_they_were_written(kinds: Lab) -> None:
    assert command_of("lab.py", ["lr=1e-3", "bias=false"]) == "python -m framework lab.py --lr 1e-3 --no-bias"


def test_a_command_of_no_such_knob_is_refused(kinds: Lab) -> None:
    with pytest.raises(UsageError, match="has no knob 'momentum'"):
        command_of("lab.py", ["momentum=1"])


# ------------------------------------------------------------------------------------------------------------ objects


def test_a_recipe_is_assembled_with_its_plugins_and_without_those_of_a_run(lab: Callable[..., str]) -> None:
    source = "def on_fit_start(): pass\ndef recipe(lr: float = 0.1): return made(lr=lr, plugins=['history'])\n"
    made, trainer = assemble(lab(source), plugins=["accuracy"], device="cpu", lr=0.5)
    assert [*trainer.plugins] == ["lab", "history", "accuracy"]
    assert (trainer.model, trainer.loss, trainer.optimizer) == (made.model, made.loss, made.optimizer)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.5
    assert trainer.run_dir is None


def test_a_seed_gives_the_same_weights_each_time_and_another_one_others(lab: Callable[..., str]) -> None:
    first, again, other = (assemble(lab(), seed=seed)[1] for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


def test_the_label_picks_a_variant_which_starts_from_the_same_draws(lab: Callable[..., str]) -> None:
    one, two = (assemble(lab(VARIANTS), label=label)[1] for label in ("one", "two"))
    assert same(one, two)
    assert [trainer.optimizer.param_groups[0]["lr"] for trainer in (one, two)] == [0.1, 0.2]
    built = build("lab.py")
    assert torch.equal(built["two"].model.weight, one.model.weight)
    assert [*two.plugins] == ["summary"]


@pytest.mark.parametrize(
    ("source", "label", "said"),
    [
        (VARIANTS, "", "name a variant of lab: one of 'one', 'two'"),
        (VARIANTS, "three", "'three' is no variant of lab: one of 'one', 'two'"),
        ("def recipe(): return made()\n", "one", "'one' is no variant of lab: none, since it has no variants"),
        ("def recipe(): print('only')\n", "", "the recipe lab trains nothing"),
    ],
    ids=["unnamed", "unknown", "none", "nothing"],
)
def test_what_cannot_be_assembled_is_told(lab: Callable[..., str], source: str, label: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        assemble(lab(source), label=label)
    assert str(caught.value) == said


def test_a_fit_is_as_the_recipe_says_but_for_what_is_changed(lab: Callable[..., str]) -> None:
    source = "def recipe(): return made(epochs=3, batch_size=2, accumulate=2, shuffle=False)\n"
    made, trainer = assemble(lab(source))
    result = fit_recipe(trainer, made)
    assert (result.epochs, result.steps) == (3, 6)  # 3 batches are 2 windows
    by_hand, own = assemble("lab.py")
    own.fit(by_hand.train, None, 3, batch_size=2, accumulate=2, shuffle=False)
    assert same(trainer, own)
    made, trainer = assemble("lab.py")
    result = fit_recipe(trainer, made, epochs=1, accumulate=1, val=made.train)
    assert (result.epochs, result.steps, "val_loss" in result.history[0]) == (1, 3, True)


# ------------------------------------------------------------------------------------------------------------- a run


def test_a_run_is_rebuilt_with_its_knobs_and_the_weights_of_its_checkpoint(lab, fine) -> None:
    lab(KINDS)
    fine("lab.py", "--widths", 3, 4, "--kind", "LARGE", "--seed", 3, "--run-dir", "한 run")
    kept = json.loads(Path("한 run/run.json").read_text("utf-8"))["knobs"]
    assert (kept["widths"], kept["kind"], kept["pairs"]) == ([3, 4], "LARGE", [[1, 2]])
    made, trainer, path = rebuild(Path("한 run"), plugins=["summary"])
    assert [*trainer.plugins] == ["summary"]  # and none of those that a run adds
    assert path == checkpoint.find(Path("한 run"), "last")
    assert trainer.model is made.model
    recipe, by_hand = assemble("lab.py", seed=3)
    assert not same(trainer, by_hand)
    fit_recipe(by_hand, recipe)
    assert same(trainer, by_hand)


def test_a_variant_is_rebuilt_from_its_own_directory(lab, fine) -> None:
    fine(lab(VARIANTS), "--run-dir", "both")
    with pytest.raises(RunDirError, match=r"holds several runs; name one of them: .*one, .*two"):
        rebuild(Path("both"))
    _, trainer, _ = rebuild(Path("both/two"))
    assert trainer.optimizer.param_groups[0]["lr"] == 0.2


def test_a_run_without_a_checkpoint_or_without_that_one_is_refused(lab, fine) -> None:
    fine(lab(), "--run-dir", "bare", "-p", "no:best_checkpoint")
    with pytest.raises(RunDirError, match="bare has no checkpoint: did no plugin save one"):
        rebuild(Path("bare"))
    fine("lab.py", "--run-dir", "full")
    with pytest.raises(RunDirError, match="full has no checkpoint 'lsat'"):
        rebuild(Path("full"), label="lsat")
