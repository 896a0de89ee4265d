"""The hooks: their table is the contract, and hookimpl refuses what would be a second rule of order."""

from __future__ import annotations

import pytest

from framework import PluginError, UsageError, hookimpl
from framework.hooks import HOOKS

# The table of the design: name, kind, arguments; "hot" where it is called for every batch.
CONTRACT = """
prepare_model    wrap               trainer, model
make_loader      make or wrap       trainer, data, split, batch_size, shuffle, drop_last
on_fit_start     tell               trainer
on_epoch_start   tell               trainer, epoch
on_split_start   tell               trainer, split
on_batch_start   tell, hot          trainer, split, batch
forward          make, hot          trainer, model, split, batch
compute_loss     make, hot          trainer, split, output, batch
backward         make, hot          trainer, loss, output, batch
on_gradients     tell, hot          trainer
optimizer_step   make, hot          trainer, output, batch
on_batch_end     tell, hot          trainer, split, batch, output, loss, samples
on_split_end     tell               trainer, split, metrics
on_epoch_end     tell               trainer, epoch, metrics
on_checkpoint    tell               trainer, path
on_fit_end       tell               trainer, result
on_exception     tell, isolated     trainer, exception
on_teardown      tell, isolated     trainer
reduce           make               trainer, value
agree            make, hot          trainer, stop, save
"""


def test_the_hooks_are_those_of_the_contract() -> None:
    expected = [(line[:17].strip(), line[17:36].strip(), line[36:].strip()) for line in CONTRACT.strip().splitlines()]
    found = [
        (hook.name, hook.kind + ", hot" * hook.hot + ", isolated" * hook.isolated, ", ".join(hook.arguments))
        for hook in HOOKS.values()
    ]
    assert set(expected) <= set(found)
    assert len(found) <= len(expected) + 1  # one more may be added, if it serves two plugins


def test_the_hooks_are_listed_in_the_order_of_a_fit() -> None:
    names = [line.split()[0] for line in CONTRACT.strip().splitlines()]
    assert [name for name in HOOKS if name in names] == names


@pytest.mark.parametrize("hook", HOOKS.values(), ids=lambda hook: hook.name)
def test_every_hook_says_when_it_is_called(hook) -> None:
    assert hook.when.endswith((".", ":"))
    assert "\n" not in hook.when
    assert hook.when.isascii()


def test_hookimpl_leaves_the_function_as_it_is() -> None:
    def on_epoch_end(self, epoch):
        return epoch

    assert hookimpl(on_epoch_end) is on_epoch_end
    assert hookimpl()(on_epoch_end) is on_epoch_end
    assert hookimpl(split="train")(on_epoch_end) is on_epoch_end
    assert on_epoch_end(None, 3) == 3


@pytest.mark.parametrize("name", ["tryfirst", "trylast"])
def test_hookimpl_has_no_second_rule_of_order(name) -> None:
    with pytest.raises(PluginError, match=f"hookimpl has no {name}.*order in which they are listed, the first first"):
        hookimpl(**{name: True})


@pytest.mark.parametrize("name", ["wraper", "hookwrapper"])
def test_hookimpl_suggests_the_argument_that_was_meant(name) -> None:
    with pytest.raises(PluginError, match=rf"hookimpl has no {name}. Did you mean 'wrapper'\?"):
        hookimpl(**{name: True})


@pytest.mark.parametrize(
    ("split", "hint"), [("trian", "Did you mean 'train'"), ("valid", "val"), (("train", "val"), "")]
)
def test_hookimpl_refuses_a_split_that_does_not_exist(split, hint) -> None:
    with pytest.raises(PluginError, match="no such split") as caught:
        hookimpl(split=split)
    assert hint in str(caught.value)
    assert str(split) in str(caught.value)


@pytest.mark.parametrize("given", ["train", True, 3])
def test_hookimpl_takes_its_arguments_by_name(given) -> None:
    with pytest.raises((PluginError, TypeError), match="hookimpl"):
        hookimpl(given)


def test_hookimpl_marks_functions_only() -> None:
    with pytest.raises((PluginError, TypeError), match="property"):
        hookimpl(property(lambda self: None))


def test_a_refused_mark_is_the_users_mistake() -> None:
    with pytest.raises(UsageError):
        hookimpl(tryfirst=True)
