"""A recipe's source: its statements and expressions as they were written, and the names in them."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from framework import UsageError

OURS = ("framework", "framework_plugins")  # what a script must do without


class Source:
    """A module, of which any piece is given as it was written; its Recipes have no plugins, which a script has not."""

    def __init__(self, path: Path) -> None:
        self.name, self.text = path.name, path.read_text(encoding="utf-8")
        self.tree, self.lines = ast.parse(self.text), self.text.split("\n")
        self.functions = {node.name: node for node in self.tree.body if isinstance(node, ast.FunctionDef)}
        self.imports = {
            (alias.asname or alias.name).partition(".")[0]: (getattr(node, "module", "") or "", alias)
            for node in ast.walk(self.tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and is_recipe(node):
                node.keywords = [keyword for keyword in node.keywords if keyword.arg != "plugins"]

    def refuse(self, node: ast.AST, why: str) -> UsageError:
        return UsageError(f"{self.name}, line {getattr(node, 'lineno', 1)}: {why}, which cannot be ejected")

    def is_ours(self, name: str) -> bool:
        """Whether a name is imported from the framework."""
        module, alias = self.imports.get(name, ("", ast.alias("")))
        return (module or alias.name).partition(".")[0] in OURS

    def expression(self, node: ast.expr) -> str:
        """An expression without the indentation of the line where it begins."""
        line = self.lines[node.lineno - 1]
        indentation = len(line) - len(line.lstrip())
        return re.sub(rf"\n {{0,{indentation}}}", "\n", ast.get_source_segment(self.text, node) or "")

    def comment(self, node: ast.keyword) -> str:
        """The comment behind an argument."""
        rest = self.lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode() if node.end_lineno else ""
        found = re.fullmatch(r",?\s*(#.*)", rest)
        return f"  {found[1]}" if found else ""

    def statements(self, body: Iterable[ast.stmt]) -> Iterator[str]:
        """Statements one by one with the comments above them, without documentation and checks."""
        last = 0
        for node in body:
            check = isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise)
            if is_documentation(node) or check or node.lineno <= last:  # such as y in `x = 1; y = 2`
                continue
            last = node.end_lineno or node.lineno
            first = min(part.lineno for part in (node, *getattr(node, "decorator_list", ())))
            while first > 1 and self.lines[first - 2].lstrip().startswith("#"):
                first -= 1
            text = textwrap.dedent("\n".join(self.lines[first - 1 : node.end_lineno]))
            if isinstance(node, ast.AnnAssign):
                text = text.replace(f": {ast.get_source_segment(self.text, node.annotation)} =", " =", 1)
            yield re.sub(r"  # (fmt|type|noqa)\b.*", "", text)


def is_documentation(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_recipe(call: ast.Call) -> bool:
    return ast.unparse(call.func) in ("Recipe", "framework.Recipe")


def used(node: ast.AST) -> set[str]:
    """The names that a piece of code looks up outside of its functions' own."""
    names = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else set()
    names = names.union(*map(used, ast.iter_child_nodes(node)))
    if isinstance(node, ast.FunctionDef):
        names -= {part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)}.union(*map(bound, node.body))
    return names


def bound(node: ast.AST) -> set[str]:
    """The names that a statement gives a value to."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    names = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
    inside = () if isinstance(node, (ast.Lambda, ast.comprehension)) else ast.iter_child_nodes(node)
    return names.union(*map(bound, inside))
