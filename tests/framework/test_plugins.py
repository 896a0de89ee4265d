"""Plugins: every typo is found at registration, the order is the written one, an error names who raised it."""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from framework import PluginError, Trainer, UsageError, hookimpl
from framework.hooks import HOOKS
from framework.testing import Recorder, tiny_data, tiny_trainer

VERBS = [name for name in HOOKS if not name.startswith("on_")]


def mine(**members: Any) -> Any:
    """An instance of a plugin class `Mine` with these members; the plugin's name is `mine`."""
    return type("Mine", (), members)()


def findings(*plugins: Any) -> list[str]:
    """The lines of the error that lists everything that is wrong with these plugins."""
    with pytest.raises(PluginError) as caught:
        tiny_trainer(plugins=plugins)
    return str(caught.value).splitlines()


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


def nothing(self):
    pass


# --------------------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize(
    ("member", "suggestion"),
    [
        ("on_epoch_ended", "on_epoch_end"),
        ("on_epoch_finish", "on_epoch"),
        ("on_batch_ends", "on_batch_end"),
        ("on_batchend", "on_batch_end"),
        ("on_fit_begin", "on_fit"),
        ("on_train_batch_end", "on_batch_end"),
        ("on_validation_epoch_end", "on_epoch_end"),
        ("onEpochEnd", "on_epoch_end"),
        ("On_epoch_end", "on_epoch_end"),
        ("no_epoch_end", "on_epoch_end"),
        ("onepoch_end", "on_epoch_end"),
        ("epoch_end", "on_epoch_end"),
        ("fit_start", "on_fit_start"),
        ("foward", "forward"),
        ("forwards", "forward"),
        ("Forward", "forward"),
        ("compute_los", "compute_loss"),
        ("backwards", "backward"),
        ("optimiser_step", "optimizer_step"),
        ("optimizerstep", "optimizer_step"),
        ("prepare_modle", "prepare_model"),
        ("make_loaders", "make_loader"),
        ("redcue", "reduce"),
        ("argee", "agree"),
    ],
)
def test_a_misspelt_hook_is_found_and_the_right_one_suggested(member, suggestion) -> None:
    (line,) = findings(mine(**{member: nothing}))
    assert line.startswith(f"mine.{member} is not a hook.")
    assert f"Did you mean '{suggestion}" in line


def one_letter_off(name: str) -> set[str]:
    """The name with a letter left out, doubled, or swapped with the next."""
    left_out = {name[:i] + name[i + 1 :] for i in range(len(name))}
    doubled = {name[:i] + name[i] + name[i:] for i in range(len(name))}
    swapped = {name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in range(len(name) - 1)}
    return {typo for typo in left_out | doubled | swapped if typo not in HOOKS and not typo.startswith("_")}


def test_no_slip_of_one_letter_goes_unnoticed() -> None:
    typos = {typo: name for name in HOOKS for typo in one_letter_off(name)}
    assert len(typos) > 400
    lines = findings(mine(**dict.fromkeys(typos, nothing)))
    found = {line.partition(" ")[0].removeprefix("mine."): line for line in lines}
    assert set(found) == set(typos)
    wrong = {typo: found[typo] for typo, name in typos.items() if f"Did you mean '{name}'?" not in found[typo]}
    assert not wrong


def test_a_name_like_a_hook_of_nothing_known_says_where_the_hooks_are_listed() -> None:
    (line,) = findings(mine(on_zzz=nothing))
    assert line == "mine.on_zzz is not a hook. python -m framework hooks lists them."


@pytest.mark.parametrize(
    "member",
    ["tree", "degree", "reuse", "produce", "update", "reset", "reduce_lr", "step", "model", "load", "summary",
     "compute", "optimizer", "make", "prepare", "draw", "for_ward_compatible"],
)  # fmt: skip
def test_a_method_of_ones_own_is_left_alone(member) -> None:
    trainer = tiny_trainer(plugins=[mine(on_fit_start=nothing, **{member: nothing})])
    assert [impl.hook.name for impl in trainer.plugins.impls] == ["on_fit_start"]


def test_a_leading_underscore_keeps_a_method_apart() -> None:
    trainer = tiny_trainer(plugins=[mine(on_fit_start=nothing, _on_epoch_ended=nothing, _foward=nothing)])
    assert [impl.hook.name for impl in trainer.plugins.impls] == ["on_fit_start"]


@pytest.mark.parametrize("member", ["average", "on_step", "_on_epoch_end", "__call__"])
def test_a_marked_function_that_is_no_hook_is_found(member) -> None:
    lines = findings(mine(on_fit_start=nothing, **{member: hookimpl(lambda self: None)}))
    assert lines[0].startswith(f"mine.{member} is not a hook.")


@pytest.mark.parametrize(
    ("hook", "function", "expected"),
    [
        ("on_epoch_end", lambda self, metric: None, "no argument 'metric'. Did you mean 'metrics'?"),
        ("on_epoch_end", lambda self, zzz: None, "no argument 'zzz'. There is: epoch, metrics, trainer."),
        ("on_batch_end", lambda self, x, y: None, "no argument 'x'."),
        ("forward", lambda self, x: None, "no argument 'x'."),
        ("on_epoch_end", lambda self, epoch=0: None, "argument 'epoch' has a default"),
        ("on_epoch_end", lambda self, *args: None, "argument '*args' is never passed"),
        ("on_epoch_end", lambda self, **kwargs: None, "argument '**kwargs' is never passed"),
        ("on_epoch_end", lambda self, *, epoch: None, "argument 'epoch' is never passed"),
        ("on_epoch_end", lambda self, *, epoch=0: None, "argument 'epoch=0' is never passed"),
    ],
)
def test_an_argument_that_would_not_arrive_is_found(hook, function, expected) -> None:
    line = findings(mine(**{hook: function}))[0]
    assert line.startswith(f"mine.{hook}: ")
    assert expected in line


def test_the_hooks_arguments_are_named_where_a_catch_all_was_given() -> None:
    (line,) = findings(mine(on_epoch_end=lambda self, **kwargs: None))
    assert "trainer, epoch, metrics" in line


def test_a_hook_without_self_is_found() -> None:
    def on_epoch_end(trainer, epoch): ...  # an instance is passed as trainer: the argument is lost

    trainer = tiny_trainer(plugins=[mine(on_epoch_end=staticmethod(on_epoch_end))])
    assert [impl.arguments for impl in trainer.plugins.impls] == [("trainer", "epoch")]


def test_a_class_in_place_of_an_instance_is_found() -> None:
    class EarlyStopping:
        on_epoch_end = nothing

    (line,) = findings(EarlyStopping)
    assert line == "early_stopping: EarlyStopping is a class; list an instance, EarlyStopping()"


def yields(self):
    yield


def yields_twice(self):
    yield
    yield


async def sleeps(self):
    pass


async def streams(self):
    yield


@pytest.mark.parametrize(
    ("hook", "function", "expected"),
    [
        ("on_epoch_end", yields, "has a yield; mark it @hookimpl(wrapper=True)"),
        ("forward", hookimpl(lambda self: (yield)), "has a yield; mark it @hookimpl(wrapper=True)"),
        ("on_epoch_end", hookimpl(wrapper=True)(lambda self: None), "is marked as a wrapper"),
        ("on_epoch_end", sleeps, "is async; hooks are plain functions"),
        ("on_epoch_end", streams, "is async; hooks are plain functions"),
        ("on_teardown", hookimpl(wrapper=True)(lambda self: (yield)), "cannot be wrapped"),
        ("on_exception", hookimpl(wrapper=True)(lambda self: (yield)), "cannot be wrapped"),
        ("prepare_model", lambda self, model: model, "can only be wrapped: @hookimpl(wrapper=True)"),
        ("on_epoch_end", hookimpl(split="train")(lambda self: None), "is not called for the split 'train'"),
        ("on_fit_start", hookimpl(split="val")(lambda self: None), "is not called for the split 'val'"),
        ("backward", hookimpl(split="val")(lambda self: True), "'val'"),
        ("optimizer_step", hookimpl(split="test")(lambda self: True), "'test'"),
        ("on_batch_end", hookimpl(split="predict")(lambda self: None), "'predict'"),
        ("compute_loss", hookimpl(split="predict")(lambda self: None), "'predict'"),
    ],
)
def test_a_hook_of_the_wrong_sort_is_found(hook, function, expected) -> None:
    lines = findings(mine(**{hook: function}))
    assert any(line.startswith(f"mine.{hook}: ") and expected in line for line in lines), lines


@pytest.mark.parametrize(
    "value",
    [functools.partial(print), [].append, print, property(lambda self: print), nn.Linear(1, 1), Recorder,
     functools.partialmethod(print)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_stands_under_a_hooks_name_and_is_no_function_is_found(value) -> None:
    """It would be passed over in silence otherwise."""
    lines = findings(mine(on_fit_start=nothing, on_epoch_end=value))
    assert lines[0].startswith("mine.on_epoch_end")
    assert type(value).__name__ in lines[0]


def test_a_hook_is_switched_off_with_none_and_data_may_have_any_name() -> None:
    plugin = mine(on_fit_start=nothing, on_epoch_end=None, reduce="mean", backward=True)
    assert [impl.hook.name for impl in tiny_trainer(plugins=[plugin]).plugins.impls] == ["on_fit_start"]


def test_a_plugin_without_any_hook_is_found() -> None:
    (line,) = findings(mine(forwarded=3))
    assert line == "mine: Mine implements no hook. python -m framework hooks lists them"
    (line,) = findings(module("def forward(x): return x"))
    assert line == "lab: module implements no hook. python -m framework hooks lists them"


@pytest.mark.parametrize("thing", [None, 3, object(), ["accuracy"]], ids=["None", "3", "object", "list"])
def test_what_is_no_plugin_at_all_is_found(thing) -> None:
    (line,) = findings(thing)
    assert type(thing).__name__ in line
    assert "implements no hook" in line


@pytest.mark.parametrize(("there", "missing"), [("state_dict", "load_state_dict"), ("load_state_dict", "state_dict")])
def test_half_of_the_two_functions_of_state_is_found(there, missing) -> None:
    (line,) = findings(mine(on_fit_start=nothing, **{there: lambda self, *_: {}}))
    assert line.startswith("mine: state_dict and load_state_dict belong together")


def test_two_plugins_of_one_name_are_found() -> None:
    (line,) = findings(mine(on_fit_start=nothing), mine(on_fit_end=nothing), mine(on_teardown=nothing))
    assert line.startswith("3 plugins are called 'mine'")
    assert "name=" in line


def test_two_instances_with_names_of_their_own_are_two_plugins() -> None:
    one, two = mine(on_fit_start=nothing), mine(on_fit_start=nothing)
    one.name, two.name = "one", "two"
    assert list(tiny_trainer(plugins=[one, two]).plugins) == ["one", "two"]


def answers(value: Any, split: str | None = None) -> Any:
    return hookimpl(split=split)(lambda self: value)


def named(name: str, **members: Any) -> Any:
    return mine(name=name, **members)


@pytest.mark.parametrize(
    ("hook", "one", "two"),
    [
        ("forward", None, None),
        ("forward", "train", None),
        ("forward", "val", "val"),
        ("compute_loss", None, "test"),
        ("backward", None, None),
        ("backward", "train", None),
        ("optimizer_step", None, None),
        ("make_loader", None, "val"),
        ("reduce", None, None),
        ("agree", None, None),
    ],
)
def test_two_makes_of_one_hook_for_one_split_are_found_before_the_first_step(hook, one, two) -> None:
    (line,) = findings(named("a", **{hook: answers(True, one)}), named("b", **{hook: answers(True, two)}))
    assert line.startswith(f"{hook}: a and b both replace it")


def test_two_makes_for_different_splits_are_welcome() -> None:
    trainer = tiny_trainer(plugins=[named("a", forward=answers(1, "train")), named("b", forward=answers(1, "val"))])
    assert [impl.split for impl in trainer.plugins.impls] == ["train", "val"]


def test_a_make_and_a_wrap_of_it_are_welcome() -> None:
    wrap = hookimpl(wrapper=True)(lambda self: (yield))
    trainer = tiny_trainer(plugins=[named("a", forward=answers(1)), named("b", forward=wrap), named("c", forward=wrap)])
    assert [impl.wrapper for impl in trainer.plugins.impls] == [False, True, True]


def test_an_unknown_plugin_name_is_found_with_a_suggestion() -> None:
    (line,) = findings("acuracy")
    assert line == "there is no plugin 'acuracy'. Did you mean 'accuracy'?"


def test_everything_that_is_wrong_is_told_at_once_in_the_order_of_the_list() -> None:
    first = named("first", on_epoch_ended=nothing, on_epoch_end=lambda self, metric, epoch=0: None)
    second = named("second", foward=nothing)
    lines = findings(first, second, "acuracy", Recorder, named("second", on_fit_start=nothing))
    assert len(lines) == 7
    for part in ("first.on_epoch_ended", "no argument 'metric'", "argument 'epoch' has a default", "second.foward",
                 "'acuracy'", "Recorder is a class", "2 plugins are called 'second'"):  # fmt: skip
        assert sum(part in line for line in lines) == 1, (part, lines)
    of_plugins = [line for line in lines if line.startswith(("first", "second", "recorder"))]
    assert [line.partition(".")[0].partition(":")[0] for line in of_plugins] == ["first"] * 3 + ["second", "recorder"]


def test_nothing_of_a_refused_plugin_is_called() -> None:
    called: list[str] = []
    plugin = mine(on_fit_start=lambda self: called.append("on_fit_start"), on_epoch_ended=nothing)
    findings(plugin)
    assert called == []


def test_properties_are_not_run_at_registration() -> None:
    class Lazy:
        on_fit_start = nothing

        @property
        def model(self):
            raise AssertionError("a property was run")

        @property
        def state(self):
            raise AssertionError("a property was run")

        @functools.cached_property
        def table(self):
            raise AssertionError("a property was run")

    assert list(tiny_trainer(plugins=[Lazy()]).plugins) == ["lazy"]


@dataclasses.dataclass
class Equal:
    """All of these are equal, and none can be hashed."""

    calls: list[str] = dataclasses.field(default_factory=list, compare=False)
    name: str = dataclasses.field(default="equal", compare=False)

    def on_fit_start(self):
        self.calls.append(self.name)

    @hookimpl(wrapper=True)
    def on_epoch_end(self):
        self.calls.append(f"{self.name} in")
        yield

    @hookimpl(split="train")
    def on_batch_end(self):
        self.calls.append(f"{self.name} batch")


def test_equal_and_unhashable_plugins_stay_apart() -> None:
    one, two = Equal(name="one"), Equal(name="two")
    assert one == two
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)
    trainer = tiny_trainer(plugins=[one, two])
    trainer.fit(tiny_data(), tiny_data(), epochs=1)
    assert one.calls == ["one", "one batch", "one in"]
    assert two.calls == ["two", "two batch", "two in"]


def test_the_state_of_two_instances_stays_apart() -> None:
    class Counter:
        def __init__(self, name: str) -> None:
            self.name, self.count = name, 0

        def on_epoch_end(self):
            self.count += 1 if self.name == "one" else 10

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    trainer = tiny_trainer(plugins=[Counter("one"), Counter("ten")])
    trainer.fit(tiny_data(), epochs=3)
    assert trainer.snapshot().plugins == {"one": {"count": 3}, "ten": {"count": 30}}


# ------------------------------------------------------------------------------------------ what a plugin can be


def module(source: str, name: str = "lab") -> types.ModuleType:
    made = types.ModuleType(name)
    exec(source, made.__dict__)
    return made


def test_a_module_is_a_plugin_of_its_own_name() -> None:
    lab = module("calls = []\ndef on_fit_start(): calls.append('start')\ndef on_epoch_end(epoch): calls.append(epoch)")
    trainer = tiny_trainer(plugins=[lab])
    trainer.fit(tiny_data(), epochs=2)
    assert list(trainer.plugins) == ["lab"]
    assert lab.calls == ["start", 0, 1]


def test_a_helper_of_a_module_called_like_a_verb_is_no_hook() -> None:
    lab = module("def forward(x): raise AssertionError\ndef backward(): raise AssertionError\ndef foward(y): pass\n"
                 "def on_fit_start(): pass")  # fmt: skip
    assert tiny_trainer(plugins=[lab]).fit(tiny_data(), epochs=1).steps == 1


def test_a_verb_of_a_module_is_a_hook_with_its_mark() -> None:
    lab = module(
        "from framework import hookimpl\n"
        "@hookimpl\ndef forward(model, batch): return model(batch[0]) * 0\n"
        "@hookimpl(wrapper=True)\ndef compute_loss():\n    loss = yield\n    return loss * 2\n"
    )
    x, y = tiny_data()
    result = tiny_trainer(plugins=[lab], lr=0.0).fit((x, y), epochs=1)
    assert result.history[0]["train_loss"] == (2 * (y**2).mean()).item()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def on_epoch_ended(): pass", "lab.on_epoch_ended is not a hook. Did you mean 'on_epoch_end'?"),
        ("def on_epoch_end(metric): pass", "lab.on_epoch_end: no argument 'metric'. Did you mean 'metrics'?"),
        ("from framework import hookimpl\n@hookimpl\ndef foward(x): pass", "lab.foward is not a hook."),
        ("import functools\non_epoch_end = functools.partial(print)", "lab.on_epoch_end"),
    ],
)
def test_the_typos_of_a_module_are_found(source, expected) -> None:
    lines = findings(module(source))
    assert lines[0].startswith(expected)


def test_an_attribute_of_the_instance_can_be_a_hook() -> None:
    calls: list[int] = []
    plugin = mine(on_fit_start=nothing)
    plugin.on_epoch_end = lambda epoch: calls.append(epoch)
    tiny_trainer(plugins=[plugin]).fit(tiny_data(), epochs=2)
    assert calls == [0, 1]


def test_an_attribute_of_the_instance_comes_before_the_method() -> None:
    calls: list[str] = []
    plugin = mine(on_epoch_end=lambda self: calls.append("method"))
    plugin.on_epoch_end = lambda: calls.append("attribute")
    tiny_trainer(plugins=[plugin]).fit(tiny_data(), epochs=1)
    assert calls == ["attribute"]


def test_static_methods_and_class_methods_are_hooks() -> None:
    calls: list[Any] = []

    class Mine:
        @staticmethod
        def on_epoch_start(epoch):
            calls.append(epoch)

        @classmethod
        def on_epoch_end(cls, epoch):
            calls.append((cls.__name__, epoch))

    tiny_trainer(plugins=[Mine()]).fit(tiny_data(), epochs=1)
    assert calls == [0, ("Mine", 0)]


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
@pytest.mark.parametrize("above", [True, False])
def test_a_mark_counts_above_and_below_staticmethod(kind, above) -> None:
    calls: list[str] = []

    def train_only(*args):
        calls.append("called")

    def on_batch_end(split):
        calls.append(split)

    def on_batch_end_of_class(cls, split):
        calls.append(split)

    function = on_batch_end if kind is staticmethod else on_batch_end_of_class
    mark = hookimpl(split="train")
    member = mark(kind(function)) if above else kind(mark(function))
    tiny_trainer(plugins=[mine(on_batch_end=member)]).fit(tiny_data(), tiny_data(), epochs=1)
    assert calls == ["train"]


def test_inherited_hooks_count_and_can_be_overridden() -> None:
    calls: list[str] = []

    class Base:
        def on_fit_start(self):
            calls.append("base")

        def on_fit_end(self):
            calls.append("base")

    class Derived(Base):
        def on_fit_end(self):
            calls.append("derived")

    tiny_trainer(plugins=[Derived()]).fit(tiny_data(), epochs=1)
    assert calls == ["base", "derived"]


def test_slots_are_no_obstacle() -> None:
    class Slotted:
        __slots__ = ("calls", "name")

        def __init__(self):
            self.name, self.calls = "slotted", []

        def on_epoch_end(self, epoch):
            self.calls.append(epoch)

    plugin = Slotted()
    tiny_trainer(plugins=[plugin]).fit(tiny_data(), epochs=2)
    assert plugin.calls == [0, 1]


def test_a_decorated_hook_is_seen_through() -> None:
    calls: list[int] = []

    def logged(function):
        @functools.wraps(function)
        def inner(*args, **kwargs):
            return function(*args, **kwargs)

        return inner

    class Mine:
        @torch.no_grad()
        @logged
        def on_epoch_end(self, epoch):
            calls.append(epoch)

        @hookimpl(split="train")
        @logged
        def on_split_end(self, split):
            calls.append(split)

    tiny_trainer(plugins=[Mine()]).fit(tiny_data(), tiny_data(), epochs=1)
    assert calls == ["train", 0]


def test_a_plugin_takes_its_name_from_its_class() -> None:
    names = {"GpuMemory": "gpu_memory", "EMA": "ema", "LRFinder": "lr_finder", "Top5": "top5", "plain": "plain"}
    plugins = [type(name, (), {"on_fit_start": nothing})() for name in names]
    assert list(tiny_trainer(plugins=plugins).plugins) == list(names.values())


def test_the_plugins_are_a_mapping_of_name_to_plugin() -> None:
    plugin = mine(on_fit_start=nothing)
    plugins = tiny_trainer(plugins=[plugin, "accuracy"]).plugins
    assert plugins["mine"] is plugin
    assert list(plugins) == ["mine", "accuracy"]
    assert len(plugins) == 2
    with pytest.raises(KeyError):
        plugins["nosuch"]


def test_one_name_in_place_of_a_list_is_one_plugin() -> None:
    assert list(tiny_trainer(plugins="accuracy").plugins) == ["accuracy"]


# ----------------------------------------------------------------------------------------------------------- order


class Logs:
    """Appends its name to a log in on_batch_end: as a tell, or before and after the others as a wrap."""

    def __init__(self, log: list[str], name: str, wrapper: bool, split: str | None) -> None:
        self.name = name

        def tell():
            log.append(name)

        def wrap():
            log.append(f"{name} in")
            yield
            log.append(f"{name} out")

        self.on_batch_end = hookimpl(wrapper=wrapper, split=split)(wrap if wrapper else tell)


KINDS = st.lists(st.tuples(st.booleans(), st.sampled_from([None, "train", "val"])), max_size=7)


@settings(max_examples=60, deadline=None)
@given(KINDS)
def test_tells_run_in_listed_order_inside_the_wraps_whatever_path_they_take(kinds) -> None:
    """Without a wrap the hook is one compiled function, with one it goes through pluggy: the same order in both."""
    plain: list[str] = []
    through_pluggy: list[str] = []
    for log, extra in ((plain, []), (through_pluggy, [named("x", on_batch_end=hookimpl(wrapper=True)(yields))])):
        plugins = [Logs(log, str(index), *kind) for index, kind in enumerate(kinds)]
        tiny_trainer(plugins=[*plugins, *extra]).fit(tiny_data(), tiny_data(), epochs=1)
    expected = []
    for split in ("train", "val"):
        here = [(str(index), wrapper) for index, (wrapper, only) in enumerate(kinds) if only in (None, split)]
        expected += [f"{name} in" for name, wrapper in here if wrapper]
        expected += [name for name, wrapper in here if not wrapper]
        expected += [f"{name} out" for name, wrapper in reversed(here) if wrapper]
    assert plain == expected
    assert through_pluggy == expected


class Appends:
    """A wrap of forward that appends its number to each row of the output; as a make it gives that row alone."""

    def __init__(self, number: int, wrapper: bool, split: str | None, declines: bool = False) -> None:
        self.name = f"p{number}"

        def wrap():
            output = yield
            return torch.cat([output, torch.full((len(output), 1), float(number))], dim=1)

        def make(batch):
            return NotImplemented if declines else torch.full((len(batch[0]), 1), 100.0 + number)

        self.forward = hookimpl(wrapper=wrapper, split=split)(wrap if wrapper else make)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.just(True), st.sampled_from([None, "predict", "val"])), max_size=5),
    st.none() | st.tuples(st.integers(0, 5), st.sampled_from([None, "predict", "val"]), st.booleans()),
)
def test_the_first_listed_wraps_outermost_and_the_core_is_innermost(wraps, make) -> None:
    plugins = [Appends(number, *kind) for number, kind in enumerate(wraps)]
    core = 0.0  # the tiny model gives zeros
    if make is not None:
        place, split, declines = make
        plugins.insert(place, Appends(9, False, split, declines))
        core = 109.0 if split in (None, "predict") and not declines else 0.0
    expected = [
        core,
        *(number for number, (_, split) in reversed(list(enumerate(wraps))) if split in (None, "predict")),
    ]
    assert tiny_trainer(plugins=plugins).predict(torch.zeros(2, 3)).tolist() == [expected, expected]


def test_hooks_that_nobody_implements_cost_nothing() -> None:
    frozen = tiny_trainer().plugins.frozen("train")
    assert {name: getattr(frozen, name) for name, hook in HOOKS.items() if hook.hot} == dict.fromkeys(
        [name for name, hook in HOOKS.items() if hook.hot]
    )


def test_a_hook_narrowed_to_a_split_costs_nothing_in_the_others() -> None:
    plugins = tiny_trainer(plugins=[mine(forward=answers(1, "val"), on_batch_end=answers(1, "train"))]).plugins
    assert plugins.frozen("train").forward is None
    assert plugins.frozen("train").on_batch_end is not None
    assert plugins.frozen("val").forward is not None
    assert plugins.frozen("val").on_batch_end is None


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_hook_gets_by_name_only_what_it_asks_for(wrapped) -> None:
    got: list[Any] = []
    tells = [
        named("a", on_batch_end=lambda self, samples, split: got.append((samples, split))),
        named("b", on_batch_end=lambda self: got.append(())),
        named("c", on_batch_end=lambda self, loss, trainer: got.append((loss.dim(), type(trainer)))),
    ]
    wraps = [named("d", on_batch_end=hookimpl(wrapper=True)(yields))] if wrapped else []
    tiny_trainer(plugins=[*tells, *wraps]).fit(tiny_data(), epochs=1)
    assert got == [(5, "train"), (), (0, Trainer)]


def test_what_a_tell_returns_is_ignored() -> None:
    tells = [
        named(name, on_batch_end=answers(value), on_epoch_end=answers(value))
        for name, value in zip("abc", "xyz", strict=True)
    ]
    recorder = Recorder()
    tiny_trainer(plugins=[*tells, recorder]).fit(tiny_data(), epochs=1)
    recorder.assert_order("on_batch_end", "on_epoch_end")


# ----------------------------------------------------------------------------------------------------- attribution


class Raises(Exception):
    pass


def raising(*args):
    raise Raises("as planned")


def fails(*plugins: Any, model: nn.Module | None = None, val: bool = False) -> BaseException:
    """What a fit of one epoch raises."""
    model = model or nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, plugins=plugins, device="cpu")
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        trainer.fit(tiny_data(), tiny_data() if val else None, epochs=1, batch_size=2)
    return caught.value


@pytest.mark.parametrize(
    "hook",
    [n for n, h in HOOKS.items() if n not in ("prepare_model", "reduce", "agree", "on_checkpoint") and not h.isolated],
)
def test_an_exception_keeps_its_type_and_names_plugin_and_hook(hook) -> None:
    error = fails(named("one", on_fit_start=nothing), named("two", **{hook: lambda self: raising()}))
    assert type(error) is Raises
    assert f"plugin 'two', hook {hook}, epoch " in notes(error)
    assert "plugin 'one'" not in notes(error)


def test_the_note_tells_epoch_and_step() -> None:
    def on_batch_end(self, trainer):
        if trainer.step == 8:
            raise Raises

    with pytest.raises(Raises) as caught:
        tiny_trainer(plugins=[mine(on_batch_end=on_batch_end)]).fit(tiny_data(), epochs=9, batch_size=2)
    assert notes(caught.value) == "plugin 'mine', hook on_batch_end, epoch 2, step 8"


class Bomb:
    def __init__(self, name: str, armed: bool) -> None:
        self.name, self.armed = name, armed

    def on_batch_end(self):
        if self.armed:
            raise Raises

    @hookimpl(wrapper=True)
    def on_split_end(self):
        yield


@pytest.mark.parametrize("armed", [0, 1, 2])
def test_of_several_instances_of_one_class_the_right_one_is_named(armed) -> None:
    error = fails(*(Bomb(f"bomb{index}", index == armed) for index in range(3)))
    assert f"plugin 'bomb{armed}', hook on_batch_end" in notes(error)


def test_an_exception_deep_inside_a_plugin_is_the_plugins() -> None:
    def helper():
        return [raising() for _ in range(1)]

    assert "plugin 'mine', hook on_batch_end" in notes(fails(mine(on_batch_end=lambda self: helper())))


class Broken(nn.Linear):
    def forward(self, x):
        raise Raises("the model")


class BrokenInEval(nn.Linear):
    def forward(self, x):
        if not self.training:
            raise Raises("the model")
        return super().forward(x)


wrap = hookimpl(wrapper=True)(lambda self: (yield))


def passes_on(self):
    return (yield)


def test_a_wrap_is_not_blamed_for_what_the_model_raised_inside_it() -> None:
    error = fails(named("outer", forward=hookimpl(wrapper=True)(passes_on)), model=Broken(3, 1))
    assert type(error) is Raises
    assert "plugin" not in notes(error)
    assert "epoch 0, step 0, batch: x (2, 3)" in notes(error)


@pytest.mark.parametrize("hook", ["on_batch_end", "on_epoch_end", "on_split_end", "forward"])
def test_a_wrap_is_not_blamed_for_another_plugin_inside_it(hook) -> None:
    outer = named("outer", **{hook: hookimpl(wrapper=True)(passes_on)})
    inner = named("inner", **{hook: lambda self: raising()})
    for error in (fails(outer, inner), fails(inner, outer)):
        assert f"plugin 'inner', hook {hook}" in notes(error)
        assert "outer" not in notes(error)


def raises_before(self):
    raising()
    yield


def raises_after(self):
    yield
    raising()


@pytest.mark.parametrize("function", [raises_before, raises_after])
@pytest.mark.parametrize("hook", ["on_batch_end", "forward"])
def test_a_wrap_is_blamed_for_what_it_raised_itself(hook, function) -> None:
    outer = named("outer", **{hook: hookimpl(wrapper=True)(passes_on)})
    culprit = named("culprit", **{hook: hookimpl(wrapper=True)(function)})
    inner = named("inner", **{hook: hookimpl(wrapper=True)(passes_on)})
    assert f"plugin 'culprit', hook {hook}" in notes(fails(outer, culprit, inner))


def test_a_hook_without_gradients_is_not_blamed_for_an_error_in_validation() -> None:
    """torch.no_grad() puts the same frame around the hook and around the loop's own pass over val."""

    class Mine:
        @torch.no_grad()
        def on_batch_end(self):
            pass

    error = fails(Mine(), model=BrokenInEval(3, 1), val=True)
    assert type(error) is Raises
    assert "plugin" not in notes(error)


def test_a_hook_without_gradients_is_blamed_for_its_own_error() -> None:
    class Mine:
        @torch.no_grad()
        def on_batch_end(self):
            raise Raises

    assert "plugin 'mine', hook on_batch_end" in notes(fails(Mine()))


def test_the_model_is_not_blamed_on_anybody() -> None:
    error = fails(named("one", on_batch_end=nothing, forward=answers(NotImplemented)), model=Broken(3, 1))
    assert "plugin" not in notes(error)


def never_yields(self):
    if self is None:
        yield


def yields_two(self):
    yield
    yield


@pytest.mark.parametrize("function", [never_yields, yields_two])
@pytest.mark.parametrize("hook", ["on_batch_end", "on_epoch_end", "forward", "prepare_model"])
def test_a_wrap_that_does_not_yield_exactly_once_is_named(hook, function) -> None:
    error = fails(mine(**{hook: hookimpl(wrapper=True)(function)}))
    assert "plugin 'mine'" in f"{error}\n{notes(error)}"
    assert hook in f"{error}\n{notes(error)}"
    assert "yield" in str(error)


def forgets(self):
    yield


@pytest.mark.parametrize(
    ("hook", "function", "hint"),
    [
        ("forward", answers(None), "it must return its answer"),
        ("compute_loss", answers(None), "it must return its answer"),
        ("backward", answers(None), "it must return True"),
        ("optimizer_step", answers(None), "it must return True, or False if it did not step"),
        ("make_loader", answers(None), "it must return the batches, an iterable"),
        ("reduce", answers(None), "it must return a tensor"),
        ("agree", answers(None), "it must return the pair (stop, save)"),
        ("forward", hookimpl(wrapper=True)(forgets), "a wrapper returns what its yield gave"),
        ("backward", hookimpl(wrapper=True)(forgets), "a wrapper returns what its yield gave"),
        ("optimizer_step", hookimpl(wrapper=True)(forgets), "a wrapper returns what its yield gave"),
        ("make_loader", hookimpl(wrapper=True)(forgets), "a wrapper returns what its yield gave"),
        ("prepare_model", hookimpl(wrapper=True)(forgets), "a wrapper returns what its yield gave"),
    ],
)
def test_none_from_a_make_or_forgotten_by_a_wrap_names_the_plugin(hook, function, hint) -> None:
    error = fails(mine(**{hook: function}))
    assert type(error) is PluginError
    assert str(error) == f"plugin 'mine', hook {hook} returned None: {hint}"


def test_none_from_a_wrapped_make_names_the_make() -> None:
    wrapped = named("outer", forward=hookimpl(wrapper=True)(passes_on))
    error = fails(wrapped, named("inner", forward=answers(None)))
    assert str(error).startswith("plugin 'inner', hook forward returned None")


def test_a_make_that_declines_leaves_it_to_the_loop() -> None:
    makes = mine(**{n: answers(NotImplemented) for n, h in HOOKS.items() if h.make})
    declined = tiny_trainer(plugins=[makes]).fit(tiny_data(), epochs=3, batch_size=2, shuffle=False)
    plain = tiny_trainer().fit(tiny_data(), epochs=3, batch_size=2, shuffle=False)
    assert declined.history == plain.history


# ----------------------------------------------------------------------------------------- through another function


def doing(do: Callable[[Any, tuple[Any, ...]], None]) -> Callable[..., Callable[..., Any]]:
    """Calls `do` with implementation and arguments before each implementation."""

    def wrap(impl: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            do(impl, values)
            return function(*values)

        def within(*values: Any) -> Any:
            do(impl, values)
            return (yield from function(*values))

        return within if impl.wrapper else call

    return wrap


def test_around_is_called_with_each_implementation_and_what_it_asks_for() -> None:
    seen: list[tuple[str, str, tuple[str, ...]]] = []

    def tell(self, samples, trainer): ...

    def make(self, loss, trainer):
        loss.backward()
        return True

    @hookimpl(wrapper=True)
    def wrapped(self, model, split):
        return (yield)

    members = {"on_batch_end": tell, "backward": make, "forward": wrapped, "on_teardown": nothing}
    trainer = tiny_trainer(plugins=[mine(**members)])
    plain = tiny_trainer().fit(tiny_data(), epochs=1, shuffle=False)
    trainer.plugins.around(
        doing(
            lambda impl, values: seen.append(
                (impl.listed.name, impl.hook.name, tuple(type(v).__name__ for v in values))
            )
        )
    )
    assert trainer.fit(tiny_data(), epochs=1, shuffle=False).history == plain.history
    assert seen == [
        ("mine", "forward", ("Linear", "str")), ("mine", "backward", ("Tensor", "Trainer")),
        ("mine", "on_batch_end", ("int", "Trainer")), ("mine", "on_teardown", ()),
    ]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(KINDS)
def test_the_order_is_the_same_with_another_function_around_each(kinds) -> None:
    log: list[str] = []
    around: list[str] = []
    trainer = tiny_trainer(plugins=[Logs(log, str(index), *kind) for index, kind in enumerate(kinds)])
    trainer.fit(tiny_data(), tiny_data(), epochs=1)
    expected = [*log]
    log.clear()
    trainer.plugins.around(doing(lambda impl, values: around.append(impl.listed.name)))
    trainer.fit(tiny_data(), tiny_data(), epochs=1)
    assert log == expected
    assert around == [entry.split()[0] for entry in log if not entry.endswith("out")]


def test_what_is_put_around_later_is_further_out() -> None:
    log: list[str] = []
    trainer = tiny_trainer(plugins=[mine(on_fit_end=lambda self: log.append("plugin"))])
    for name in ("first", "second"):
        trainer.plugins.around(doing(lambda impl, values, name=name: log.append(name)))
    trainer.fit(tiny_data(), epochs=1)
    assert log == ["second", "first", "plugin"]


def test_an_implementation_can_be_left_as_it_is() -> None:
    log: list[str] = []
    trainer = tiny_trainer(plugins=[named("a", on_fit_end=nothing), named("b", on_fit_end=nothing)])
    put = doing(lambda impl, values: log.append(impl.listed.name))
    trainer.plugins.around(lambda impl, function: put(impl, function) if impl.listed.name == "b" else function)
    trainer.fit(tiny_data(), epochs=1)
    assert log == ["b"]


@pytest.mark.parametrize("hook", ["prepare_model", "on_fit_start", "on_epoch_start", "on_batch_end"])
def test_it_holds_at_once_also_in_the_middle_of_a_fit(hook) -> None:
    """The loop holds its hooks while it runs."""
    log: list[str] = []

    def put(self, trainer):
        if not log:
            log.append("put")
            trainer.plugins.around(doing(lambda impl, values: log.append(impl.hook.name)))

    def wrap(self, trainer):
        put(self, trainer)
        return (yield)

    puts = named("puts", **{hook: hookimpl(wrapper=True)(wrap) if hook == "prepare_model" else put})
    tiny_trainer(plugins=[puts, named("other", on_epoch_end=nothing)]).fit(tiny_data(), epochs=1)
    assert log == ["put", "on_epoch_end"]


def python_calls(function: Callable[[], Any]) -> int:
    """How many functions of Python are called."""
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    return len(calls) - 1


def test_a_tell_costs_one_call_more_than_its_implementations_and_around_one_more_for_each() -> None:
    plugins = tiny_trainer(plugins=[named(name, on_gradients=nothing) for name in "abc"]).plugins
    frozen = plugins.frozen("train")
    assert python_calls(lambda: frozen.on_gradients(None)) == 1 + 3
    plugins.around(lambda impl, function: lambda *values: function(*values))
    assert python_calls(lambda: frozen.on_gradients(None)) == 1 + 3 + 3


def test_the_plugin_is_found_through_what_is_around_it() -> None:
    for armed in range(3):
        trainer = tiny_trainer(plugins=[Bomb(f"bomb{index}", index == armed) for index in range(3)])
        for _ in range(2):
            trainer.plugins.around(doing(lambda impl, values: None))
        with pytest.raises(Raises) as caught:
            trainer.fit(tiny_data(), epochs=1)
        assert f"plugin 'bomb{armed}', hook on_batch_end" in notes(caught.value)


def test_what_is_around_a_plugin_is_not_taken_for_the_plugin() -> None:
    def refuse(impl, values):
        raise Raises

    trainer = tiny_trainer(plugins=[mine(on_batch_end=nothing)])
    trainer.plugins.around(doing(refuse))
    with pytest.raises(Raises) as caught:
        trainer.fit(tiny_data(), epochs=1)
    assert "plugin" not in notes(caught.value)


# --------------------------------------------------------------------------------------------------- isolated hooks


def test_an_error_at_the_end_reaches_every_plugin_and_replaces_nothing() -> None:
    seen: list[str] = []

    def on_exception(self, exception):
        seen.append(f"{self.name}: {type(exception).__name__}")
        raise ValueError("worse")

    def on_teardown(self):
        seen.append(f"{self.name}: teardown")
        raise KeyError("worst")

    members = {"on_exception": on_exception, "on_teardown": on_teardown}
    error = fails(named("a", **members), named("b", **members, on_batch_end=lambda self: raising()))
    assert type(error) is Raises
    assert seen == ["a: Raises", "b: Raises", "a: teardown", "b: teardown"]
    for line in ("plugin 'a', hook on_exception then raised ValueError: worse",
                 "plugin 'b', hook on_teardown then raised KeyError: 'worst'"):  # fmt: skip
        assert line in notes(error)


def test_an_error_in_teardown_alone_is_raised_and_names_the_plugin() -> None:
    called: list[str] = []
    error = fails(
        named("a", on_teardown=lambda self: raising()), named("b", on_teardown=lambda self: called.append("b"))
    )
    assert type(error) is Raises
    assert "plugin 'a', hook on_teardown" in notes(error)
    assert called == ["b"]


def test_a_plugin_that_never_started_hears_of_the_exception() -> None:
    heard: list[str] = []
    late = named(
        "late", on_fit_start=lambda self: heard.append("start"), on_exception=lambda self: heard.append("error")
    )
    fails(named("early", on_fit_start=lambda self: raising()), late)
    assert heard == ["error"]


def test_findings_are_the_users_mistake() -> None:
    with pytest.raises(UsageError):
        tiny_trainer(plugins=[mine()])


# ------------------------------------------------------------------------------------------------ those of a step


@pytest.mark.parametrize(
    ("hooks", "needed"),
    [
        (["forward"], True), (["compute_loss"], True), (["backward"], True), (["optimizer_step"], True),
        (["forward", "on_epoch_end"], True), (["prepare_model"], True), (["make_loader"], True),
        (["on_batch_start"], True), (["on_gradients"], True), (["on_gradients", "on_epoch_end"], False),
        (["prepare_model", "on_epoch_end"], False), (["on_batch_end"], False), (["on_split_end"], False),
        (["on_fit_start", "on_epoch_end"], False), (["reduce"], False), (["agree"], False),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_of_a_step_are_the_plugins_that_change_one_and_follow_no_epochs(hooks: list[str], needed: bool) -> None:
    def wrap(self):
        return (yield)

    made = {"prepare_model", "make_loader"}
    plugin = mine(**{hook: hookimpl(wrapper=True)(wrap) if hook in made else nothing for hook in hooks})
    assert tiny_trainer(plugins=[plugin]).plugins.of_a_step() == ([plugin] if needed else [])


def test_plugins_of_a_step_keep_their_order() -> None:
    plugins = [mine(on_gradients=nothing, name=name) for name in ("a", "b")]
    looking = mine(on_epoch_end=nothing, name="looking")
    assert tiny_trainer(plugins=[plugins[1], looking, plugins[0]]).plugins.of_a_step() == [plugins[1], plugins[0]]
