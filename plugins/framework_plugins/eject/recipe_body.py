"""What a recipe does before the training, as the statements of a script."""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Mapping
from typing import Any

import torch

from .source_text import Source, is_recipe, used


class RecipeBody:
    """The function recipe() as statements of a script; a call that makes a variant is replaced by what it does.

    Attributes:
        knobs, shared, own: statements; shared are those before a variant is chosen
        arguments: those of its Recipe, each with its text and the comment behind it
        draws: whether the shared ones draw random numbers
        eager: whether the variant was made before the seed was set for it
    """

    def __init__(self, source: Source, settings: Mapping[str, Any], label: str) -> None:
        self.source, self.label, self.functions = source, label, dict(source.functions)
        self.shared: list[str] = []
        self.own: list[str] = []
        self.arguments: dict[str, tuple[ast.expr, str, str]] = {}
        self.draws = self.eager = False
        if "recipe" not in self.functions:
            raise source.refuse(source.tree, "recipe is no function that is written here")
        texts = {name: source.expression(default) for name, default in _defaults(self.functions["recipe"]).items()}
        texts |= {name: _literal(value) for name, value in settings.items()}
        self.knobs = [f"{name} = {text}" for name, text in texts.items()]
        self._body(self.functions["recipe"], self.shared)

    def _body(self, function: ast.FunctionDef, into: list[str]) -> None:
        *before, last = function.body
        self.functions |= {node.name: node for node in before if isinstance(node, ast.FunctionDef)}
        run = [part for node in before if not isinstance(node, ast.FunctionDef) for part in ast.walk(node)]
        if not isinstance(last, ast.Return) or not last.value or any(isinstance(part, ast.Return) for part in run):
            raise self.source.refuse(function, f"{function.name}() does not end in its only return")
        into += self.source.statements(before)
        self._returned(last.value)

    def _returned(self, node: ast.expr) -> None:
        match node:
            case ast.Call(args=[]) if is_recipe(node):
                for keyword in node.keywords:
                    if keyword.arg is None:
                        raise self.source.refuse(node, "the Recipe is made of **arguments")
                    text, comment = self.source.expression(keyword.value), self.source.comment(keyword)
                    self.arguments[keyword.arg] = keyword.value, text, comment
            case ast.Dict() | ast.DictComp():
                self._variant(self._chosen(node))
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                self._inline(self.functions[name], node.args, node.keywords)
            case _:
                raise self.source.refuse(node, "what is returned is made in a way of its own")

    def _chosen(self, node: ast.Dict | ast.DictComp) -> ast.expr:
        """What makes the variant; the shared statements are executed to see which it is, and whether they draw."""
        space: dict[str, Any] = {"__name__": "ejected"}
        before = torch.get_rng_state(), random.getstate()
        exec("\n".join([self.source.text, *self.knobs, *self.shared]), space)
        self.draws = not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate()
        if isinstance(node, ast.Dict):
            keys = [key and eval(ast.unparse(key), space) for key in node.keys]
            if self.label not in keys:  # it is in a **dict
                raise self.source.refuse(node, f"the variant {self.label!r} is not written out")
            return node.values[keys.index(self.label)]
        item, items = ast.unparse(node.generators[0].target), ast.unparse(node.generators[0].iter)
        chosen = dict(eval(f"[({ast.unparse(node.key)}, {item}) for {item} in {items}]", space))[self.label]
        try:
            ast.literal_eval(_literal(chosen))
        except (SyntaxError, ValueError) as error:
            raise self.source.refuse(node, f"{item} is {chosen!r} in the variant {self.label!r}") from error
        self.own.append(f"{item} = {_literal(chosen)}")
        return node.value

    def _variant(self, node: ast.expr) -> None:
        match node:
            case ast.Lambda(body=body):
                self._returned(body)
            case ast.Call(func=ast.Name(id="partial"), args=[ast.Name(id=name), *args]) if name in self.functions:
                self._inline(self.functions[name], args, node.keywords)
            case ast.Name(id=name) if name in self.functions:
                self._inline(self.functions[name], [], [])
            case _:
                self.eager = True
                self._returned(node)

    def _inline(self, function: ast.FunctionDef, args: list[ast.expr], keywords: list[ast.keyword]) -> None:
        """The body of a function, after its parameters have been given a value."""
        parameters = function.args.args
        given = _defaults(function) | {parameter.arg: value for parameter, value in zip(parameters, args, strict=False)}
        given |= {keyword.arg or "**": keyword.value for keyword in keywords}
        if function.args.vararg:
            given[function.args.vararg.arg] = ast.Tuple(args[len(parameters) :], ast.Load())
        if any(isinstance(arg, ast.Starred) for arg in args) or "**" in given:
            raise self.source.refuse(function, f"{function.name}() is called with * or **")
        asked, changed = set().union(*map(used, function.body)), set[str]()
        for name, value in given.items():
            text = ast.unparse(value)
            if changed & used(value):
                raise self.source.refuse(value, f"{text} would be another {name} after those before it were given")
            if name in asked and text != name:
                self.own.append(f"{name} = {text}")
                changed.add(name)
        self._body(function, self.own)


def _defaults(function: ast.FunctionDef) -> dict[str, ast.expr]:
    """The parameters that have a default, and it."""
    arguments = function.args
    positional = zip(reversed(arguments.args), reversed(arguments.defaults), strict=False)
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {a.arg: default for a, default in (*reversed([*positional]), *named) if default is not None}


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
