"""Plugins: validate, order, freeze, attribute; on top of pluggy. It knows hooks, not what they are for.

Order, the one rule: plugins run in the order in which they are listed, and the first listed wraps outermost.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import types
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from traceback import extract_tb, format_exception
from typing import Any

import pluggy

from framework.discovery import Listed, find
from framework.errors import FrameworkError, PluginError, did_you_mean
from framework.hooks import HOOKS, PROJECT, SPLITS, Hook, HookSpecs, attributes, mark_of


@dataclass(eq=False)
class Impl:
    """One plugin's implementation of one hook, bound and ready to call with `arguments`."""

    hook: Hook
    listed: Listed
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    wrapper: bool
    split: str | None

    @property
    def place(self) -> str:
        return f"plugin {self.listed.name!r}, hook {self.hook.name}"


def examine(listed: Listed) -> tuple[list[Impl], list[str]]:
    """The implementations of one plugin, and everything that is wrong with it."""
    plugin, name = listed.plugin, listed.name
    if isinstance(plugin, type):
        return [], [f"{name}: {plugin.__name__} is a class; list an instance, {plugin.__name__}()"]
    impls: list[Impl] = []
    found = attributes(plugin)
    findings = [f"{name}.{odd}" for odd in _no_functions(plugin, found)]
    for attribute, function in found.items():
        if attribute not in HOOKS:
            findings += _misspelt(name, attribute, function)
            continue
        mark, arguments = mark_of(function), tuple(inspect.signature(function).parameters)
        impl = Impl(HOOKS[attribute], listed, function, arguments, bool(mark.get("wrapper")), mark.get("split"))
        impls.append(impl)
        findings += [f"{name}.{attribute}: {wrong}" for wrong in _wrong_with(impl)]
    if hasattr(plugin, "state_dict") != hasattr(plugin, "load_state_dict"):
        findings.append(f"{name}: state_dict and load_state_dict belong together; one of them is missing")
    if not impls and not findings and listed.listed != "recipe module":  # a recipe need not have one
        findings.append(f"{name}: {type(plugin).__name__} implements no hook. python -m framework hooks lists them")
    return impls, findings


def _no_functions(plugin: Any, found: Mapping[str, Any]) -> Iterator[str]:
    """What stands under a hook's name, would be called if it were a function, and is none."""
    for name in HOOKS if not isinstance(plugin, types.ModuleType) else [h for h in HOOKS if h.startswith("on_")]:
        value = inspect.getattr_static(plugin, name, None)
        if name not in found and (callable(value) or isinstance(value, _DESCRIPTORS)):
            yield f"{name} is a {type(value).__name__}, not a function: write def {name}(...)"


_DESCRIPTORS = property, functools.cached_property, functools.partialmethod


def _misspelt(name: str, attribute: str, function: Any) -> Iterator[str]:
    near, similar = did_you_mean(attribute.lower(), HOOKS), [h for h in HOOKS if abs(len(h) - len(attribute)) <= 2]
    if attribute.startswith("on_") or mark_of(function):
        yield f"{name}.{attribute} is not a hook.{near if 'mean' in near else ' python -m framework hooks lists them.'}"
    elif f"on_{attribute}" in HOOKS or difflib.get_close_matches(attribute.lower(), similar, cutoff=0.8):
        yield f"{name}.{attribute} is not a hook.{near} (A leading underscore keeps a method of your own apart.)"


def _wrong_with(impl: Impl) -> Iterator[str]:
    hook, parameters = impl.hook, inspect.signature(impl.function).parameters.values()
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            yield f"argument {str(parameter)!r} is never passed; name what you need of ({', '.join(hook.arguments)})"
        elif parameter.name not in hook.arguments:
            yield f"no argument {parameter.name!r}.{did_you_mean(parameter.name, hook.arguments)}"
        elif parameter.default is not parameter.empty:
            yield f"argument {parameter.name!r} has a default, so it would never be passed; leave it out"
    generator = inspect.isgeneratorfunction(impl.function)
    if inspect.iscoroutinefunction(impl.function) or inspect.isasyncgenfunction(impl.function):
        yield "is async; hooks are plain functions"
    if generator and not impl.wrapper:
        yield "has a yield; mark it @hookimpl(wrapper=True)"
    if impl.wrapper and not generator:
        yield "is marked as a wrapper, which yields exactly once; it has no yield"
    if impl.wrapper and hook.isolated:
        yield "cannot be wrapped: each plugin is called by itself there"
    if hook.kind == "wrap" and not impl.wrapper:
        yield "can only be wrapped: @hookimpl(wrapper=True), and yield the model"
    if impl.split is not None and impl.split not in (splits := _splits(hook)):
        yield f"is not called for the split {impl.split!r}.{did_you_mean(impl.split, splits)}"


def _splits(hook: Hook) -> tuple[str, ...]:
    """The splits for which a hook is called; none for one that knows no split."""
    if hook.name in ("backward", "on_gradients", "optimizer_step"):
        return ("train",)
    known = SPLITS if hook.name == "forward" else SPLITS[:-1]  # predict calls nothing else
    return known if "split" in hook.arguments else ()


def _conflicts(impls: Sequence[Impl]) -> Iterator[str]:
    """Two makes of one hook for the same split."""
    for hook in filter(lambda hook: hook.make, HOOKS.values()):
        for split in SPLITS:
            makers = [i.listed.name for i in impls if i.hook is hook and not i.wrapper and i.split in (None, split)]
            if len(makers) > 1:
                yield f"{hook.name}: {' and '.join(makers)} both replace it; only one can (narrow it with split=)"
                break


class _Adapter:
    """What pluggy sees of a plugin: only its hooks, compared by identity. (pluggy compares plugins with ==.)"""

    def __init__(self, impls: Iterable[Impl]) -> None:
        self.impls = {impl.hook.name: impl for impl in impls}
        self.__dict__.update({impl.hook.name: _for_pluggy(impl) for impl in self.impls.values()})

    def __dir__(self) -> list[str]:
        return list(self.impls)


class _PluginManager(pluggy.PluginManager):
    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return {"wrapper": plugin.impls[name].wrapper}


def nobody(*values: Any) -> None:
    """What a tell that is not hot is frozen to where nobody listens."""


class Plugins(Mapping[str, Any]):
    """The plugins of one trainer in their order: a mapping of name to plugin.

    Args:
        specs: what `find` takes, in order
        core: the loop's own answer to each make, innermost

    Raises:
        PluginError: with every finding about every plugin
    """

    def __init__(self, specs: Iterable[Any], core: Mapping[str, Callable[..., Any]]) -> None:
        self.order: list[Listed] = []
        self.impls: list[Impl] = []
        self.disabled: set[str] = set()  # those that failed in this fit, see disable_failing
        self._core = core
        self._frozen: dict[str, types.SimpleNamespace] = {}
        findings: list[str] = []
        for spec in specs:
            try:
                self.order += find(spec)
            except PluginError as error:
                findings.append(str(error))
        for name, count in Counter(listed.name for listed in self.order).items():
            if count > 1:
                findings.append(f"{count} plugins are called {name!r}; give one of them another name, name=...")
        self._named = {listed.name: listed.plugin for listed in self.order}
        for listed in reversed(self.order):
            impls, wrong = examine(listed)
            self.impls[:0], findings = impls, [*wrong, *findings]
        findings += _conflicts(self.impls)
        if findings:
            raise PluginError("\n".join(findings))
        self._register()

    def _register(self) -> None:
        """Tell pluggy of the functions as they are now."""
        own = Listed("framework", None)
        core = [Impl(HOOKS[n], own, f, HOOKS[n].arguments, False, None) for n, f in self._core.items()]
        of_plugins = [[impl for impl in self.impls if impl.listed is listed] for listed in reversed(self.order)]
        self._adapters = [_Adapter(impls) for impls in (core, *of_plugins)]
        self._manager = _PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)
        for adapter in self._adapters:  # pluggy calls the last registered first
            self._manager.register(adapter)

    def __getitem__(self, name: str) -> Any:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return (listed.name for listed in self.order)

    def __len__(self) -> int:
        return len(self.order)

    def frozen(self, split: str) -> Any:
        """Every hook as one callable of its arguments in order; a hot hook that nobody implements is None."""
        frozen = self._frozen.setdefault(split, types.SimpleNamespace())
        if not vars(frozen):
            ends = [impl for impl in self.impls if impl.hook.name == "on_batch_end" and impl.split in (None, split)]
            frozen.output_is_asked_for = any("output" in impl.arguments for impl in ends)
            vars(frozen).update({name: self._freeze(hook, split) for name, hook in HOOKS.items()})
        return frozen

    def _freeze(self, hook: Hook, split: str) -> Callable[..., Any] | None:
        impls = [impl for impl in self.impls if impl.hook is hook and impl.split in (None, split)]
        if not impls:
            return None if hook.hot else self._core.get(hook.name, nobody)
        if any(impl.wrapper for impl in impls):
            others = [a for a in self._adapters if (i := a.impls.get(hook.name)) and i.split not in (None, split)]
            caller = self._manager.subset_hook_caller(hook.name, others)
            return lambda *values: caller(**dict(zip(hook.arguments, values, strict=True)))
        call = _compiled(hook, impls)
        return _making(call, impls[0], self._core[hook.name]) if hook.make else call

    def around(self, wrap: Callable[[Impl, Callable[..., Any]], Callable[..., Any]]) -> None:
        """From now on each implementation is called through `wrap(impl, function)`.

        That is a function of the same arguments, in the order of `impl.arguments`, or `function` itself where there is
        nothing to do. For an `impl.wrapper` it is a generator that gets to the inner one by `yield from`: so an error
        that is thrown in is still known from one that the plugin raised. What is wrapped later is further out.
        """
        for impl in self.impls:
            if (made := wrap(impl, impl.function)) is not impl.function:
                impl.function = functools.update_wrapper(made, impl.function)  # blame and pluggy see through it
        self._register()
        for split, frozen in self._frozen.items():  # in place, since the loop holds them
            vars(frozen).clear()
            self.frozen(split)

    def disable_failing(self, where: Callable[[], str]) -> None:
        """From now on an observer whose hook raises an Exception is reported and `disabled`: it is told nothing more.

        An observer implements nothing but tells, none of them as a wrap, and neither on_batch_start nor on_gradients,
        which are there to change a step: training goes on as it would without it. It hears of the end all the same, in
        on_exception and on_teardown, so that it can close its files. A FrameworkError is raised on purpose, to end the
        fit, and ends it; so do KeyboardInterrupt and SystemExit.

        Args:
            where: the place in the fit, for the report
        """
        acting = {i.listed.name for i in self.impls if i.hook.kind != "tell" or i.wrapper or i.hook.name in _FOR_A_STEP}

        def wrap(impl: Impl, function: Callable[..., Any]) -> Callable[..., Any]:
            def tell(*values: Any) -> None:
                if impl.hook.isolated or impl.listed.name not in self.disabled:
                    try:
                        function(*values)
                    except FrameworkError:
                        raise
                    except Exception as error:
                        self.disabled.add(impl.listed.name)
                        _report(impl, where(), error)

            return function if impl.listed.name in acting else tell

        self.around(wrap)

    @property
    def keeps_nothing(self) -> bool:
        """Whether one says so, as in a dry run: then nothing beyond the run directory is to be written or told."""
        return any(getattr(plugin, "keeps_nothing", False) for plugin in self.values())

    def of_a_step(self) -> list[Any]:
        """The plugins without which a step would be another one, but for those that follow the figures of epochs."""
        hooks = {name: {impl.hook.name for impl in self.impls if impl.listed.name == name} for name in self}
        around = {"prepare_model", "make_loader", *_FOR_A_STEP}
        return [self[n] for n, h in hooks.items() if h & _IN_A_STEP or (h & around and "on_epoch_end" not in h)]

    def tell_each(self, name: str, first: BaseException | None, **values: Any) -> BaseException | None:
        """Call an isolated hook of every plugin. What they raise becomes notes on the first error; it is returned."""
        for impl in self.impls:
            if impl.hook.name == name:
                try:
                    impl.function(*(values[argument] for argument in impl.arguments))
                except BaseException as error:
                    later = "" if first is None else f" then raised {type(error).__name__}: {error}"
                    first = error if first is None else first
                    first.add_note(f"{impl.place}{later}")
        return first

    def blame(self, error: BaseException) -> Impl | None:
        """The plugin whose hook `error` came out of, read from the traceback: it costs the loop nothing."""
        owners: dict[types.CodeType, list[Impl]] = {}
        for impl in self.impls:
            owners.setdefault(inspect.unwrap(impl.function).__code__, []).append(impl)
        blamed, traceback = None, error.__traceback__
        while traceback is not None:
            frame, traceback = traceback.tb_frame, traceback.tb_next
            candidates = owners.get(frame.f_code, [])
            thrown_in = traceback is not None and traceback.tb_frame.f_code is _once.__code__
            if candidates and not thrown_in:  # not a wrap that only passes on what was raised inside it
                itself = frame.f_locals.get(next(iter(frame.f_code.co_varnames), ""))
                blamed = next((impl for impl in candidates if impl.listed.plugin is itself), candidates[0])
        cause = error.__cause__  # a StopIteration leaves a wrap as the cause of a RuntimeError
        return self.blame(cause) if blamed is None and isinstance(cause, StopIteration) else blamed

    def metric_names(self, split: str) -> list[str]:
        """The figures that plugins promise for a split."""
        promised = {name: p.metric_names(split) for name, p in self.items() if hasattr(p, "metric_names")}
        for name, figures in promised.items():
            if isinstance(figures, str) or not isinstance(figures, Iterable):
                raise PluginError(f"plugin {name!r}, metric_names returned {figures!r:.60}: it returns a list of names")
        return [figure for figures in promised.values() for figure in figures]

    def states(self) -> dict[str, Any]:
        """What each plugin wants remembered, under its name; not what one that failed would remember."""
        return {n: p.state_dict() for n, p in self.items() if hasattr(p, "state_dict") and n not in self.disabled}


_FOR_A_STEP = "on_batch_start", "on_gradients"
_IN_A_STEP = {"forward", "compute_loss", "backward", "optimizer_step"}


def _report(impl: Impl, where: str, error: Exception) -> None:
    """Warn of a plugin that is disabled, at the line that failed; the traceback is a note of the warning."""
    failed = f"plugin {impl.listed.name!r} failed in {impl.hook.name} ({where})"
    warning = RuntimeWarning(f"{failed} and is disabled for the rest of this fit: {type(error).__name__}: {error}")
    warning.add_note("".join(format_exception(error)))
    warnings.warn_explicit(warning, RuntimeWarning, *extract_tb(error.__traceback__)[-1][:2])


def _compiled(hook: Hook, impls: Sequence[Impl]) -> Callable[..., Any]:
    """One function that calls all of them with what each asks for: the price of a tell is one Python call."""
    calls = [f"f{i}({', '.join(impl.arguments)})" for i, impl in enumerate(impls)]
    calls[-1] = f"return {calls[-1]}"
    space: dict[str, Any] = {f"f{i}": impl.function for i, impl in enumerate(impls)}
    exec(f"def {hook.signature}:\n    " + "\n    ".join(calls), space)  # names come from HOOKS, checked before
    return space[hook.name]  # type: ignore[no-any-return]


def _making(call: Callable[..., Any], impl: Impl, core: Callable[..., Any]) -> Callable[..., Any]:
    def make(*values: Any) -> Any:
        answer = call(*values)
        return core(*values) if answer is NotImplemented else _answered(answer, impl)

    return make


# What each must answer, and how that is said. A forward may answer anything; at the loss the loop itself looks.
_ANSWERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "prepare_model": (lambda a: hasattr(a, "training"), "the model"),
    "make_loader": (lambda a: hasattr(a, "__iter__"), "the batches, an iterable"),
    "backward": (lambda a: a is True, "True"),
    "optimizer_step": (lambda a: isinstance(a, bool), "True, or False if it did not step"),
    "reduce": (lambda a: hasattr(a, "tolist"), "a tensor"),
    "agree": (lambda a: isinstance(a, tuple) and len(a) == 2 and isinstance(a[1], tuple), "the pair (stop, save)"),
}


def _answered(answer: Any, impl: Impl) -> Any:
    right, what = _ANSWERS.get(impl.hook.name, (lambda answer: True, "its answer"))
    if answer is None or not right(answer):
        rule = "a wrapper returns what its yield gave" if answer is None and impl.wrapper else f"it must return {what}"
        raise PluginError(f"{impl.place} returned {answer!r:.60}: {rule}")
    return answer


def _for_pluggy(impl: Impl) -> Callable[..., Any]:
    """The function as pluggy shall see it: a make that declines answers None there, one that forgets raises."""
    function = impl.function

    def wrap(*values: Any) -> Any:
        answer = yield from _once(function(*values), impl)
        return answer if impl.hook.kind == "tell" else _answered(answer, impl)

    def make(*values: Any) -> Any:
        answer = function(*values)
        return None if answer is NotImplemented else _answered(answer, impl)

    if not (impl.wrapper or impl.hook.make):
        return function
    return functools.update_wrapper(wrap if impl.wrapper else make, function)


def _once(inner: Generator[Any, Any, Any], impl: Impl) -> Generator[Any, Any, Any]:
    """A wrap held to exactly one yield."""
    for _ in inner:
        break
    else:
        raise PluginError(f"{impl.place} did not yield; a wrapper yields exactly once")
    try:
        try:
            inside = yield
        except BaseException as error:
            inner.throw(error)
        else:
            inner.send(inside)
    except StopIteration as end:
        return end.value
    raise PluginError(f"{impl.place} yielded a second time; a wrapper yields exactly once")
