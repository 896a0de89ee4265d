"""A recipe's source: any piece of it as it was written, with what is known put in."""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework import UsageError

OURS = ("framework", "framework_plugins")  # what a script must do without
UNKNOWN = object()


@dataclass
class Known:
    """What is known of a name: the text to put in its place, and its value, a dict literal, or what a * stands for."""

    text: str | None = None
    value: Any = UNKNOWN
    items: list[str] | None = None


Names = Mapping[str, Known]


class Source:
    """A module, of which any piece is given as it was written, with what is known put in and settled."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        self.name, self.tree, self.code = path.name, ast.parse(text), text.encode()
        self.starts = [0, *itertools.accumulate(len(line) + 1 for line in self.code.split(b"\n"))]
        self.defined = {name: node for node in self.tree.body for name in bound(node)}
        self.ours = {
            alias.asname or alias.name: node.module or ""
            for node in self.tree.body
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS
            for alias in node.names
        }

    def refuse(self, node: ast.AST, why: str) -> UsageError:
        return UsageError(f"{self.name}, line {getattr(node, 'lineno', 1)}: {why}, which cannot be ejected")

    def span(self, node: Any) -> tuple[int, int]:
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
        return self.starts[first - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: Any, names: Names, column: int = 0) -> str:
        """A piece without the indentation of where it stands."""
        settled = self._settled(node, names)
        if settled is None:
            (at, end), settled = self.span(node), ""
            for start, stop, text in sorted(self._edits(node, names)):
                settled += self.code[at:start].decode() + text
                at = stop
            settled += self.code[at:end].decode()
        return re.sub(rf"\n {{1,{column}}}", "\n", settled) if column else settled

    def _edits(self, node: ast.AST, names: Names) -> Iterator[tuple[int, int, str]]:
        for child in ast.iter_child_nodes(node):
            inner = {name: known for name, known in names.items() if name not in own_names(child)}
            if (settled := self._settled(child, inner)) is not None:
                yield (*self.span(child), settled)
            else:
                yield from self._edits(child, inner)

    def _settled(self, node: Any, names: Names) -> str | None:
        """What stands for a piece of which all is known."""
        match node:
            case ast.Name(id=name, ctx=ast.Load()) if name in names:
                known = names[name]
                return f"({', '.join(known.items)})" if known.items is not None else known.text
            case ast.IfExp() if (test := value_of(node.test, names)) is not UNKNOWN:
                return self.text(node.body if test else node.orelse, names)
            case ast.Subscript(value=ast.Name(id=name)) if isinstance(getattr(names.get(name), "value", 0), ast.Dict):
                key, table = value_of(node.slice, names), names[name].value
                for candidate, value in zip(table.keys, table.values, strict=True):
                    if key is not UNKNOWN and candidate is not None and value_of(candidate, {}) == key:
                        return self.text(value, names)
            case ast.List() if any(self._unpacked(part, names) is not None for part in node.elts):
                return f"[{', '.join(self._parts(node.elts, names))}]"
            case ast.Call() if any(self._unpacked(part, names) is not None for part in node.args):
                parts = [*self._parts(node.args, names), *(self.text(part, names) for part in node.keywords)]
                return f"{self.text(node.func, names)}({', '.join(parts)})"
        return None

    def _unpacked(self, node: Any, names: Names) -> list[str] | None:
        """The parts that a starred one comes down to."""
        if not isinstance(node, ast.Starred):
            return None
        match node.value:
            case ast.Name(id=name) if name in names:
                return names[name].items
            case ast.IfExp(test=test) if (value := value_of(test, names)) is not UNKNOWN:
                chosen = node.value.body if value else node.value.orelse
                return self._parts(chosen.elts, names) if isinstance(chosen, ast.List) else None
        return None

    def _parts(self, nodes: Iterable[Any], names: Names) -> list[str]:
        parts = []
        for node in nodes:
            unpacked = self._unpacked(node, names)
            parts += [self.text(node, names)] if unpacked is None else unpacked
        return parts

    def statements(self, body: Iterable[Any], names: Names) -> Iterator[str]:
        """A function's statements one by one, without its checks and what is known not to be run."""
        for node in body:
            if isinstance(node, ast.If) and (test := value_of(node.test, names)) is not UNKNOWN:
                yield from self.statements(node.body if test else node.orelse, names)
            elif isinstance(node, ast.If) and (chosen := self._chosen(node.test, names)):
                yield from [] if chosen[1] == "None" else [" = ".join(chosen)]
                yield from self.statements(node.orelse if chosen[1] == "None" else node.body, names)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                yield f"{node.target.id} = {self.text(node.value, names, node.col_offset)}{self.comment(node)}"
            elif not (is_documentation(node) or self._is_check(node)):
                yield self._above(node) + self.text(node, names, node.col_offset) + self.comment(node)

    def _chosen(self, test: ast.expr, names: Names) -> tuple[str, str] | None:
        """Name and text of `if name := table[key]`; an entry that is no None is taken for true."""
        match test:
            case ast.NamedExpr(target=ast.Name(id=name), value=ast.Subscript() as entry):
                text = self._settled(entry, names)
                return None if text is None else (name, text)
        return None

    def _is_check(self, node: ast.AST) -> bool:
        """Whether a statement only raises an error of the framework."""
        match node:
            case ast.If(body=[ast.Raise(exc=ast.Call(func=ast.Name(id=name)))], orelse=[]):
                return name in self.ours
        return False

    def comment(self, node: Any) -> str:
        """The comment at the end of its last line."""
        rest = self.code[self.span(node)[1] :].partition(b"\n")[0].decode()
        found = re.match(r",?\s*(#.*)$", rest)
        return f"  {found[1]}" if found and not re.match(r"#\s*(fmt|type|noqa)", found[1]) else ""

    def _above(self, node: Any) -> str:
        """The lines of comment above it."""
        lines = self.code.decode().split("\n")[: node.lineno - 1]
        comments = list(itertools.takewhile(lambda line: line.lstrip().startswith("#"), reversed(lines)))
        return "".join(f"{line.strip()}\n" for line in reversed(comments))


def value_of(node: Any, names: Names) -> Any:
    """What an expression of constants and known names comes to."""
    if any(isinstance(part, (ast.Call, ast.Lambda, ast.Attribute, ast.NamedExpr)) for part in ast.walk(node)):
        return UNKNOWN
    used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    values = {name: names[name].value for name in used if name in names}
    if len(values) < len(used) or any(value is UNKNOWN or isinstance(value, ast.AST) for value in values.values()):
        return UNKNOWN
    try:
        return eval(compile(ast.Expression(node), "<recipe>", "eval"), {}, values)
    except (ArithmeticError, LookupError, TypeError, ValueError):  # it is in a branch that is not taken
        return UNKNOWN


def bound(node: ast.AST) -> set[str]:
    """The names that a statement gives a value to."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    scopes = [part for part in ast.walk(node) if isinstance(part, (*SCOPES, ast.ClassDef))]
    inner = {id(part) for scope in scopes for part in ast.walk(scope)}
    stored = (part for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))
    return {part.id for part in stored if id(part) not in inner}


COMPREHENSIONS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
SCOPES = ast.FunctionDef, ast.Lambda, *COMPREHENSIONS


def own_names(node: ast.AST) -> set[str]:
    """The names that mean something else inside of it."""
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        inside = node.body if isinstance(node, ast.FunctionDef) else []
        given = {part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)}
        return given.union(*map(bound, inside))
    if isinstance(node, COMPREHENSIONS):
        return {n.id for part in node.generators for n in ast.walk(part.target) if isinstance(n, ast.Name)}
    return set()


def is_documentation(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def defaults(function: ast.FunctionDef) -> Iterator[tuple[str, Any]]:
    """The parameters with a default, and it."""
    arguments = function.args
    positional = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    yield from zip([a.arg for a in positional], arguments.defaults, strict=True)
    yield from ((a.arg, default) for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))


def tables(body: Iterable[ast.AST]) -> Iterator[tuple[str, ast.Dict]]:
    """The dict literals that are given a name once."""
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict() as table):
                yield name, table
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict() as table):
                yield name, table
