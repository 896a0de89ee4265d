"""Lines of code without blanks, comments and docstrings, as the budgets of docs/design.md count them."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

_NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> set[int]:
    """The numbers of the lines of a source that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return lines


def functions(source: str) -> dict[str, int]:
    """The lines of code of each function."""
    lines = code_lines(source)
    return {
        node.name: sum(node.lineno <= line <= (node.end_lineno or 0) for line in lines)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    }


if __name__ == "__main__":
    for folder in ("framework", "framework/cli", "plugins/framework_plugins", "recipes"):
        counts = {path: len(code_lines(path.read_text("utf-8"))) for path in sorted(Path(folder).glob("*.py"))}
        print(f"{folder}: {sum(counts.values())}")
        for path, count in counts.items():
            print(f"  {count:>5}  {path.name}")
