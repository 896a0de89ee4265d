"""Plugins that misbehave: each hook with each fault. The message names plugin, hook and place; nothing else is lost."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework import CheckpointError, NonFiniteError, PluginError, Trainer, UsageError, hookimpl
from framework.hooks import HOOKS
from framework.testing import Recorder, tiny_data, tiny_trainer

# The epoch and the step of each hook's first call when 3 steps have been made, which are an epoch of two.
PLACES = {
    "on_epoch_start": (1, 3), "on_split_start": (0, 3), "on_batch_start": (0, 3), "forward": (0, 3),
    "compute_loss": (0, 3), "backward": (1, 3), "on_gradients": (1, 3), "optimizer_step": (1, 3),
    "on_batch_end": (0, 3), "on_split_end": (0, 3), "on_epoch_end": (1, 3), "on_checkpoint": (1, 3),
    "on_fit_end": (2, 6), "reduce": (0, 3), "agree": (0, 3),
}  # fmt: skip
AT_THE_START = ["prepare_model", "make_loader", "on_fit_start"]
AT_THE_END = [name for name, hook in HOOKS.items() if hook.isolated]
OBSERVED = [  # what an observer may implement
    name for name, hook in HOOKS.items() if hook.kind == "tell" and name not in ("on_batch_start", "on_gradients")
]


class Planned(Exception):
    """What a plugin raises in these tests."""


ERRORS = [Planned, KeyboardInterrupt, SystemExit, StopIteration, RecursionError]
EXCEPTIONS = [Planned, StopIteration, RecursionError]


def test_every_hook_is_looked_at() -> None:
    assert {*PLACES, *AT_THE_START, *AT_THE_END} == set(HOOKS)


def named(name: str, **members: Any) -> Any:
    """A plugin of this name with these members."""
    return type("Plugin", (), {"name": name, **members})()


def nothing(self: Any) -> None:
    pass


def deeper() -> None:
    deeper()


def fails(hook: str, error: type[BaseException], steps: list[int] | None = None) -> Callable[..., Any]:
    """A hook that raises this error, in the loop not before step 3; `steps` gets the step of each call."""

    def fail(self: Any, trainer: Trainer) -> Any:
        if steps is not None:
            steps.append(trainer.step)
        if hook in PLACES and trainer.step < 3:
            return NotImplemented
        if error is RecursionError:
            deeper()
        raise error("as planned")

    return fail


def passes_on(self: Any) -> Any:
    return (yield)


def before_the_yield(fail: Callable[..., Any]) -> Any:
    def wrap(self: Any, trainer: Trainer) -> Any:
        fail(self, trainer)
        return (yield)

    return hookimpl(wrapper=True)(wrap)


def after_the_yield(fail: Callable[..., Any]) -> Any:
    def wrap(self: Any, trainer: Trainer) -> Any:
        answer = yield
        fail(self, trainer)
        return answer

    return hookimpl(wrapper=True)(wrap)


def itself(fail: Callable[..., Any]) -> Any:
    return fail


def wraps(hook: str, name: str = "wraps") -> Any:
    return named(name, **{hook: hookimpl(wrapper=True)(passes_on)})


class Saves:
    def on_epoch_end(self, trainer: Trainer) -> None:
        if trainer.run_dir is not None:
            trainer.save()


def fit(trainer: Trainer) -> Any:
    torch.manual_seed(0)
    random.seed(0)
    return trainer.fit(tiny_data(), tiny_data(), epochs=2, batch_size=2, shuffle=False)


def error_of(trainer: Trainer) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        fit(trainer)
    return caught.value


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


def through_another_function(trainer: Trainer) -> None:
    """Has each implementation called through a function that changes nothing."""

    def wrap(impl: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            return function(*values)

        def within(*values: Any) -> Any:
            return (yield from function(*values))

        return within if impl.wrapper else call

    trainer.plugins.around(wrap)


# ------------------------------------------------------------------------------------------------ a hook that raises


@pytest.mark.parametrize("around", [False, True], ids=["directly", "around"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("form", [itself, before_the_yield, after_the_yield])
@pytest.mark.parametrize("hook", [*PLACES, *AT_THE_START])
def test_what_a_hook_raises_keeps_its_type_and_names_plugin_hook_epoch_and_step(
    hook, form, error, around, tmp_path
) -> None:
    if hook == "prepare_model" and form is itself:
        form = before_the_yield  # it can only be wrapped
    plugins = [wraps(hook), named("culprit", **{hook: form(fails(hook, error))}), named("x", on_batch_end=nothing)]
    trainer = tiny_trainer([*plugins, Saves()], run_dir=tmp_path if hook == "on_checkpoint" else None)
    if around:
        through_another_function(trainer)

    raised = error_of(trainer)

    epoch, step = PLACES.get(hook, (0, 0))
    assert notes(raised) == f"plugin 'culprit', hook {hook}, epoch {epoch}, step {step}"
    if error is StopIteration and form is not itself:  # Python lets none out of a generator
        assert type(raised) is RuntimeError
        assert type(raised.__cause__) is StopIteration
    else:
        assert type(raised) is error


@pytest.mark.parametrize("error", ERRORS)
def test_what_on_teardown_raises_names_the_plugin_and_every_other_one_is_called(error) -> None:
    called: list[str] = []
    culprit = named("culprit", on_teardown=fails("on_teardown", error))
    raised = error_of(tiny_trainer([culprit, named("other", on_teardown=lambda self: called.append("other"))]))
    assert type(raised) is error
    assert notes(raised) == "plugin 'culprit', hook on_teardown"
    assert called == ["other"]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("hook", AT_THE_END)
def test_what_is_raised_after_an_error_becomes_a_note_of_it(hook, error) -> None:
    called: list[str] = []
    culprit = named("culprit", **{hook: fails(hook, error)})
    other = named("other", **{hook: lambda self: called.append("other")})
    raised = error_of(tiny_trainer([culprit, named("first", on_fit_end=fails("on_fit_end", Planned)), other]))
    assert type(raised) is Planned
    assert f"plugin 'culprit', hook {hook} then raised {error.__name__}: " in notes(raised)
    assert called == ["other"]


@pytest.mark.parametrize("listed", ["before", "after"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("hook", PLACES)
def test_a_checkpoint_is_written_whatever_a_hook_raises(hook, error, listed, tmp_path) -> None:
    recorder, culprit = Recorder(["on_checkpoint"]), named("culprit", **{hook: fails(hook, error)})
    plugins = ["best_checkpoint", culprit] if listed == "before" else [culprit, "best_checkpoint"]
    raised = error_of(tiny_trainer([recorder, *plugins, Saves()], run_dir=tmp_path))
    assert type(raised) is error
    assert recorder.calls
    assert recorder.calls[-1].arguments["path"].exists()


# ---------------------------------------------------------------------------------- a hook that is refused when listed


def refusal(**members: Any) -> str:
    with pytest.raises(PluginError) as caught:
        tiny_trainer([named("mine", **members)])
    return str(caught.value)


def asking_for(arguments: str) -> Any:
    space: dict[str, Any] = {}
    exec(f"def hook(self, {arguments}): pass", space)
    return space["hook"]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("zzz", "no argument 'zzz'. There is: "),
        ("trainr", "no argument 'trainr'. Did you mean 'trainer'?"),
        ("trainer=None", "argument 'trainer' has a default, so it would never be passed; leave it out"),
        ("*trainer", "argument '*trainer' is never passed; name what you need of (trainer"),
        ("**values", "argument '**values' is never passed; name what you need of (trainer"),
        ("*, trainer", "argument 'trainer' is never passed; name what you need of (trainer"),
    ],
)
def test_an_argument_that_would_not_arrive_is_refused_with_those_that_would(hook, argument, message) -> None:
    found = refusal(**{hook: asking_for(argument)})
    assert f"mine.{hook}: {message}" in found
    if argument == "zzz":
        assert all(name in found for name in HOOKS[hook].arguments)


def yields(self: Any) -> Any:
    yield


async def sleeps(self: Any) -> None:
    pass


async def streams(self: Any) -> Any:
    yield


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (hookimpl(wrapper=True)(lambda self: None), "is marked as a wrapper, which yields exactly once; it has no"),
        (yields, "has a yield; mark it @hookimpl(wrapper=True)"),
        (sleeps, "is async; hooks are plain functions"),
        (streams, "is async; hooks are plain functions"),
    ],
    ids=["no yield", "no mark", "async", "async generator"],
)
def test_a_function_of_the_wrong_sort_is_refused(hook, function, message) -> None:
    assert f"mine.{hook}: {message}" in refusal(**{hook: function})


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    "value",
    [print, property(lambda self: None), torch.nn.ReLU(), Recorder],
    ids=["builtin", "property", "module", "class"],
)
def test_what_is_no_function_is_refused(hook, value) -> None:
    assert f"mine.{hook} is a {type(value).__name__}, not a function: write def {hook}(...)" in refusal(**{hook: value})


@pytest.mark.parametrize("hook", HOOKS)
def test_a_near_miss_is_refused_with_the_right_name(hook) -> None:
    """Pluggy would pass over it in silence; test_plugins.py has every slip of one letter."""
    for typo in {hook.capitalize(), hook.replace("_", ""), f"{hook}s"} - {hook}:
        assert f"mine.{typo} is not a hook. Did you mean '{hook}'?" in refusal(**{typo: nothing})


@pytest.mark.parametrize("hook", HOOKS)
def test_a_name_that_is_taken_is_refused_whatever_the_hooks_are(hook) -> None:
    function = hookimpl(wrapper=True)(passes_on) if HOOKS[hook].kind == "wrap" else nothing
    with pytest.raises(PluginError, match=r"^2 plugins are called 'mine'; give one of them another name"):
        tiny_trainer([named("mine", **{hook: function}), named("mine", on_fit_end=nothing)])


# --------------------------------------------------------------------------------------- a hook that answers wrongly


def yields_never(self: Any) -> Any:
    if self is None:
        yield


def yields_twice(self: Any) -> Any:
    yield (yield)


@pytest.mark.parametrize("around", [False, True], ids=["directly", "around"])
@pytest.mark.parametrize("function", [yields_never, yields_twice])
@pytest.mark.parametrize("hook", [*PLACES, *AT_THE_START])
def test_a_wrap_that_does_not_yield_exactly_once_is_named(hook, function, around, tmp_path) -> None:
    culprit = named("culprit", **{hook: hookimpl(wrapper=True)(function)})
    trainer = tiny_trainer([culprit, Saves()], run_dir=tmp_path if hook == "on_checkpoint" else None)
    if around:
        through_another_function(trainer)
    raised = error_of(trainer)
    assert type(raised) is PluginError
    assert str(raised).startswith(f"plugin 'culprit', hook {hook} ")
    assert str(raised).endswith("a wrapper yields exactly once")


WRONG = {
    "prepare_model": ("the model", [3, "model", torch.nn.Identity, lambda x: x]),
    "make_loader": ("the batches, an iterable", [3, 1.5, object()]),
    "backward": ("True", [False, 1, "yes", torch.tensor(True)]),
    "optimizer_step": ("True, or False if it did not step", [0, 1, "no", torch.tensor(True)]),
    "reduce": ("a tensor", [3, 1.5, "sum"]),
    "agree": ("the pair (stop, save)", [True, "stop", ("stop",), (None, None), (None, "last"), [None, ()], (1, 2, 3)]),
}


def answers(value: Any) -> Any:
    return lambda self: value


def changes_into(value: Any) -> Any:
    def wrap(self: Any) -> Any:
        yield
        return value

    return hookimpl(wrapper=True)(wrap)


@pytest.mark.parametrize("around", [False, True], ids=["alone", "wrapped"])
@pytest.mark.parametrize("form", [answers, changes_into])
@pytest.mark.parametrize(("hook", "value"), [(hook, value) for hook, (_, values) in WRONG.items() for value in values])
def test_a_wrong_answer_names_the_plugin_and_what_would_be_right(hook, value, form, around) -> None:
    if hook == "prepare_model":
        form = changes_into
    raised = error_of(tiny_trainer([wraps(hook)] * around + [named("culprit", **{hook: form(value)})]))
    assert type(raised) is PluginError
    assert str(raised) == f"plugin 'culprit', hook {hook} returned {value!r:.60}: it must return {WRONG[hook][0]}"


@pytest.mark.parametrize("answer", [None, "lr", 3])
def test_metric_names_that_are_no_list_name_the_plugin(answer) -> None:
    """A text would be taken for the list of its letters."""
    raised = error_of(tiny_trainer([named("mine", on_fit_end=nothing, metric_names=lambda self, split: answer)]))
    assert str(raised) == f"plugin 'mine', metric_names returned {answer!r}: it returns a list of names"


# ----------------------------------------------------------------------------------------- on_plugin_error="disable"


def disabling(plugins: Iterable[Any], **options: Any) -> Trainer:
    return tiny_trainer(plugins, on_plugin_error="disable", **options)


def warned_of(run: Callable[[], Any]) -> list[Any]:
    """The warnings that come out of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    assert all(warning.category is RuntimeWarning for warning in caught)
    return caught


def trained(trainer: Trainer) -> list[Any]:
    """The bits of everything that was trained, the figures, and the random generators."""
    weights = [tensor.numpy().tobytes() for tensor in trainer.model.state_dict().values()]
    return [*weights, trainer.history, torch.get_rng_state().tolist(), random.getstate()]


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped"])
@pytest.mark.parametrize("place", ["first", "between", "last"])
@pytest.mark.parametrize("error", EXCEPTIONS)
@pytest.mark.parametrize("hook", [hook for hook in OBSERVED if hook not in AT_THE_END])
def test_an_observer_that_fails_is_told_of_once_and_all_else_goes_on_as_without_it(
    hook, error, place, wrapped, tmp_path
) -> None:
    def listed(*culprit: Any) -> list[Any]:
        plugins = [Recorder(name="a"), Recorder(name="b"), Saves(), *([wraps(hook)] * wrapped)]
        at = ["first", "between", "last"].index(place)
        return [*plugins[:at], *culprit, *plugins[at:]]

    def run_dir(name: str) -> Any:
        return tmp_path / name if hook == "on_checkpoint" else None

    steps: list[int] = []
    alone = tiny_trainer(listed(), run_dir=run_dir("alone"))
    fit(alone)
    expected = trained(alone)
    trainer = disabling(listed(named("culprit", **{hook: fails(hook, error, steps)})), run_dir=run_dir("disabling"))

    (warning,) = warned_of(lambda: fit(trainer))

    epoch, step = PLACES.get(hook, (0, 0))
    assert str(warning.message).startswith(
        f"plugin 'culprit' failed in {hook} (epoch {epoch}, step {step}) and is disabled for the rest of this fit: "
        f"{error.__name__}: "
    )
    assert trained(trainer) == expected
    for name in ("a", "b"):
        assert trainer.plugins[name].names == alone.plugins[name].names
    assert sum(step >= 3 or hook not in PLACES for step in steps) == 1, "it was called again"


OBSERVERS = st.lists(
    st.tuples(st.sampled_from(OBSERVED), st.sampled_from(EXCEPTIONS), st.integers(0, 6)), min_size=1, max_size=5
)


@settings(max_examples=40, deadline=None)
@given(OBSERVERS)
def test_training_is_the_same_whichever_observers_fail(observers) -> None:
    def failing_at(hook: str, error: type[Exception], due: int) -> Any:
        def fail(self: Any, trainer: Trainer) -> None:
            if trainer.step >= due:
                raise error("as planned")

        return fail

    plugins = [named(f"p{i}", **{hook: failing_at(hook, *rest)}) for i, (hook, *rest) in enumerate(observers)]
    recorder, undisturbed = Recorder(), tiny_trainer()
    fit(undisturbed)
    expected = trained(undisturbed)
    trainer = disabling([*plugins, recorder])
    caught = warned_of(lambda: fit(trainer))
    assert trained(trainer) == expected
    assert recorder.names[-2:] == ["on_fit_end", "on_teardown"]
    assert len(caught) == len({str(warning.message) for warning in caught}) <= len(plugins)


def test_the_warning_is_of_the_line_that_failed_and_has_the_traceback_as_a_note() -> None:
    culprit = named("culprit", on_batch_end=fails("on_batch_end", RecursionError))
    (warning,) = warned_of(lambda: fit(disabling([culprit])))
    assert warning.filename == __file__
    assert warning.lineno == deeper.__code__.co_firstlineno + 1
    (note,) = warning.message.__notes__
    assert note.startswith("Traceback (most recent call last):\n")
    assert "in fail\n" in note
    assert note.endswith("RecursionError: maximum recursion depth exceeded\n")


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, UsageError, PluginError, NonFiniteError, CheckpointError]
)
@pytest.mark.parametrize("hook", [hook for hook in OBSERVED if hook not in AT_THE_END])
def test_what_is_raised_to_end_the_fit_ends_it(hook, error, tmp_path) -> None:
    culprit = named("culprit", **{hook: fails(hook, error)})
    trainer = disabling([culprit, Saves()], run_dir=tmp_path if hook == "on_checkpoint" else None)
    raised = error_of(trainer)
    assert type(raised) is error
    assert f"plugin 'culprit', hook {hook}, epoch " in notes(raised)
    assert trainer.plugins.disabled == set()


ACTS = {
    **{hook: fails(hook, Planned) for hook in ("on_batch_start", "on_gradients")},
    **{name: (lambda self: NotImplemented) for name, hook in HOOKS.items() if hook.make},
    **{
        name: hookimpl(wrapper=True)(passes_on)
        for name, hook in HOOKS.items()
        if not (hook.make or hook.isolated or name in ("on_batch_start", "on_gradients"))
    },
}


@pytest.mark.parametrize("acts", ACTS)
def test_a_plugin_that_takes_part_in_training_is_never_disabled(acts) -> None:
    """Without it the rest would be another training."""
    other = (
        {"on_fit_end": fails("on_fit_end", Planned)} if acts != "on_fit_end" else {"on_epoch_end": fails("", Planned)}
    )
    trainer = disabling([named("culprit", **{acts: ACTS[acts], **other})])
    raised = error_of(trainer)
    assert type(raised) is Planned
    assert "plugin 'culprit', hook on_" in notes(raised)


@pytest.mark.parametrize("error", EXCEPTIONS)
def test_an_observer_that_fails_in_on_teardown_does_not_fail_the_fit(error) -> None:
    trainer = disabling([named("culprit", on_teardown=fails("on_teardown", error))])
    (warning,) = warned_of(lambda: fit(trainer))
    assert str(warning.message).startswith("plugin 'culprit' failed in on_teardown (epoch 2, step 6) and is disabled")


@pytest.mark.parametrize("error", EXCEPTIONS)
def test_an_observer_that_fails_in_on_exception_leaves_the_error_as_it_is(error) -> None:
    culprit = named("culprit", on_exception=fails("on_exception", error))
    trainer = disabling([culprit, named("first", on_gradients=fails("on_gradients", Planned))])
    raised: list[BaseException] = []
    (warning,) = warned_of(lambda: raised.append(error_of(trainer)))
    assert notes(raised[0]) == "plugin 'first', hook on_gradients, epoch 1, step 3"
    assert str(warning.message).startswith("plugin 'culprit' failed in on_exception (epoch 1, step 3) and is disabled")


def test_a_disabled_plugin_hears_of_the_end_so_that_it_can_close_its_files() -> None:
    recorder = Recorder(OBSERVED, name="culprit")
    recorder.on_epoch_start = fails("", Planned).__get__(recorder)
    (_,) = warned_of(lambda: fit(disabling([recorder])))
    assert recorder.names == ["on_fit_start", "on_teardown"]
    recorder.calls.clear()
    warned_of(lambda: error_of(disabling([recorder, named("first", on_gradients=fails("", Planned))])))
    assert recorder.names == ["on_fit_start", "on_exception", "on_teardown"]


def test_the_next_fit_asks_a_disabled_plugin_again() -> None:
    steps: list[int] = []
    trainer = disabling([named("culprit", on_fit_start=fails("on_fit_start", Planned, steps), on_epoch_end=nothing)])
    for _ in range(3):
        assert len(warned_of(lambda: fit(trainer))) == 1
    assert steps == [0, 0, 0]


class Counts:
    """An observer with a state that fails in an epoch."""

    name = "counts"

    def __init__(self, fails_in: int | None) -> None:
        self.fails_in, self.count = fails_in, 0

    def on_epoch_start(self, epoch: int) -> None:
        if epoch == self.fails_in:
            raise Planned

    def on_epoch_end(self) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def test_the_state_of_a_disabled_plugin_is_not_saved_and_the_checkpoint_is_written(tmp_path) -> None:
    """It may be half of one; a fit that is resumed begins with a fresh plugin."""
    kept, failed = Recorder(["on_checkpoint"]), Counts(fails_in=1)
    trainer = disabling([failed, "best_checkpoint", kept], run_dir=tmp_path)
    (_,) = warned_of(lambda: fit(trainer))
    assert set(trainer.snapshot().plugins) == {"best_checkpoint"}
    assert kept.calls[-1].arguments["path"].exists()
    fit(sound := disabling([Counts(fails_in=None)]))
    assert sound.snapshot().plugins == {"counts": {"count": 2}}


class Promises(Counts):
    """Fails before it gives the figure that it promised."""

    def metric_names(self, split: str) -> list[str]:
        return ["count"] if split == "train" else []

    def on_split_end(self, split: str, metrics: Any) -> None:
        if split == "train":
            metrics["count"] = float(self.count)


def test_who_monitors_a_figure_of_a_disabled_plugin_is_told_that_it_is_missing() -> None:
    from framework_plugins.early_stopping import EarlyStopping

    trainer = disabling([Promises(fails_in=1), EarlyStopping("count")])
    raised: list[BaseException] = []
    (warning,) = warned_of(lambda: raised.append(error_of(trainer)))
    assert str(warning.message).startswith("plugin 'counts' failed in on_epoch_start (epoch 1, step 3)")
    assert type(raised[0]) is UsageError
    assert str(raised[0]).startswith("the metric 'count' is missing in epoch 1; there is: epoch, step, train_loss")
    assert "plugin 'early_stopping', hook on_epoch_end" in notes(raised[0])


def test_an_observer_that_fails_in_evaluate_is_told_of_and_the_figures_are_there() -> None:
    trainer = disabling([named("culprit", on_batch_end=fails("", Planned))])
    figures: list[dict[str, float]] = []
    (warning,) = warned_of(lambda: figures.append(trainer.evaluate(tiny_data())))
    assert figures == [tiny_trainer().evaluate(tiny_data())]
    assert "plugin 'culprit' failed in on_batch_end (epoch 0, step 0)" in str(warning.message)


def test_warnings_that_are_errors_end_the_fit_and_the_plugin_stays_disabled() -> None:
    trainer = disabling([named("culprit", on_batch_end=fails("on_batch_end", Planned))])
    raised = error_of(trainer)  # pytest is told to make errors of warnings
    assert type(raised) is RuntimeWarning
    assert "Planned: as planned" in str(raised)
    assert trainer.plugins.disabled == {"culprit"}


@pytest.mark.parametrize("given", ["ignore", "Disable", "", None, True])
def test_another_word_than_stop_or_disable_is_refused(given) -> None:
    with pytest.raises(UsageError, match=r"^on_plugin_error must be 'stop' or 'disable', got "):
        tiny_trainer(on_plugin_error=given)
