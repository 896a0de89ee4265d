"""What a recipe does before the training, as the statements of a script."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .source_text import UNKNOWN, Known, Names, Source, bound, defaults, literal, tables, value_of


@dataclass
class Parts:
    """What a recipe does before the training: statements in their order, and the arguments of its Recipe."""

    knobs: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)  # before a variant is chosen
    own: list[str] = field(default_factory=list)
    arguments: dict[str, tuple[ast.expr, str]] = field(default_factory=dict)
    eager: bool = False  # the variant was made before the seed was set for it


class Flattened:
    """The function recipe() as statements of a script, with what makes a variant put in its place."""

    def __init__(self, source: Source, settings: Mapping[str, Any], label: str) -> None:
        self.source, self.label, self.parts = source, label, Parts()
        function = source.defined.get("recipe")
        if not isinstance(function, ast.FunctionDef):
            raise source.refuse(source.tree, "recipe is no function that is written here")
        self.functions = {node.name: node for node in source.tree.body if isinstance(node, ast.FunctionDef)}
        changed = set().union(*map(bound, function.body))
        known = {name: Known(value=table) for name, table in tables(source.tree.body)}
        for argument, default in defaults(function):
            value = settings.get(argument, UNKNOWN)
            text = source.text(default, {}) if value is UNKNOWN else literal(value)
            self.parts.knobs.append(f"{argument} = {text}")
            known[argument] = Known(value=value_of(default, {}) if value is UNKNOWN else value)
            if argument in changed:
                known.pop(argument)
        self._body(function, known, self.parts.shared)

    def _body(self, function: ast.FunctionDef, names: Names, into: list[str]) -> None:
        *before, last = function.body
        returns = [n for n in ast.walk(function) if isinstance(n, ast.Return)]
        nested = [r for n in before if isinstance(n, ast.FunctionDef) for r in ast.walk(n) if isinstance(r, ast.Return)]
        if not isinstance(last, ast.Return) or last.value is None or len(returns) - len(nested) != 1:
            raise self.source.refuse(function, f"{function.name}() does not end in its only return")
        self.functions |= {node.name: node for node in before if isinstance(node, ast.FunctionDef)}
        names = {**names, **{name: Known(value=value) for name, value in tables(before)}}
        into += self.source.statements(before, names)
        self._returned(last.value, names)

    def _returned(self, node: ast.expr, names: Names) -> None:
        match node:
            case ast.Call(func=ast.Name(id=name), args=[]) if self.source.ours.get(name) == "framework":
                if any(keyword.arg is None for keyword in node.keywords):
                    raise self.source.refuse(node, "the Recipe is made of **arguments")
                for keyword in node.keywords:
                    text = self.source.text(keyword.value, names, keyword.col_offset)
                    comment = self.source.comment(keyword)
                    self.parts.arguments[str(keyword.arg)] = keyword.value, text + comment
            case ast.Dict():
                for key, value in zip(node.keys, node.values, strict=True):
                    if key is not None and value_of(key, names) == self.label:
                        return self._variant(value, names)
                raise self.source.refuse(node, f"the variant {self.label!r} is not written out")
            case ast.DictComp(generators=[ast.comprehension(target=ast.Name(id=name), iter=items, ifs=[])]):
                for item in self._items(items, names):
                    inner = {**names, name: Known(literal(item), item)}
                    if value_of(node.key, inner) == self.label:
                        return self._variant(node.value, inner)
                raise self.source.refuse(node, f"the variant {self.label!r} is made of what is not written out")
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                self._inline(self.functions[name], node.args, node.keywords, names)
            case _:
                raise self.source.refuse(node, "what is returned is made in a way of its own")

    def _variant(self, node: ast.expr, names: Names) -> None:
        match node:
            case ast.Lambda(body=body) if not node.args.args:
                self._returned(body, names)
            case ast.Call(func=ast.Name(id="partial"), args=[ast.Name(id=name), *args]) if name in self.functions:
                self._inline(self.functions[name], args, node.keywords, names)
            case ast.Name(id=name) if name in self.functions:
                self._inline(self.functions[name], [], [], names)
            case _:
                self.parts.eager = True
                self._returned(node, names)

    def _items(self, node: ast.expr, names: Names) -> list[Any]:
        value = value_of(node, names)
        if value is UNKNOWN and isinstance(node, ast.Name) and node.id in names:
            table = names[node.id].value
            return [value_of(key, {}) for key in table.keys] if isinstance(table, ast.Dict) else []
        return [] if value is UNKNOWN else list(value)

    def _inline(
        self, function: ast.FunctionDef, args: list[ast.expr], keywords: list[ast.keyword], names: Names
    ) -> None:
        """The body of a function, its parameters replaced by what is plain, and given a value where it is not."""
        if any(isinstance(arg, ast.Starred) for arg in args) or any(keyword.arg is None for keyword in keywords):
            raise self.source.refuse(function, f"{function.name}() is called with * or **")
        written = [parameter.arg for parameter in function.args.args]
        given = dict(zip(written, args, strict=False)) | {str(keyword.arg): keyword.value for keyword in keywords}
        given = {name: node for name, node in defaults(function) if name not in given and node} | given
        stored, asked = set().union(*map(bound, function.body)), _asked(function)
        inner = {name: known for name, known in names.items() if name not in stored}
        for name, node in given.items():
            if name not in asked:
                continue
            text, value = self.source.text(node, names, node.col_offset), value_of(node, names)
            if name not in stored and (text.isidentifier() or isinstance(value, (bool, str, type(None)))):
                inner[name] = Known(text, value)
            else:
                self.parts.own.append(f"{name} = {text}")
                inner[name] = Known(value=value) if name not in stored else Known()
        if function.args.vararg:
            inner[function.args.vararg.arg] = Known(items=[self.source.text(a, names) for a in args[len(written) :]])
        self._body(function, inner, self.parts.own)


def _asked(function: ast.FunctionDef) -> set[str]:
    """The names that a function looks up for anything but the plugins of its Recipe."""
    keywords = [node for node in ast.walk(function) if isinstance(node, ast.keyword) and node.arg == "plugins"]
    apart = {id(node) for keyword in keywords for node in ast.walk(keyword)}
    return {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and id(node) not in apart}
