"""Lab 01: tensors, from rank and shape to operations in place.

A session at the Python prompt: each line is run and its result printed below, so you can type it after.

Expect: m1 + m2 of shapes (1, 2) and (2, 1) is [[4, 5], [5, 6]], and the mean of integers is refused.
The mean of the integers 1 and 2 is 1.5, which is no integer; NumPy answers 1.5 without a word, torch wants to be told
with `.float()`. `max(dim=0)` gives two tensors: the largest values, and where they stand, which is argmax. Below
`in place`, `w.mul(2.)` gives a new tensor and leaves w, `w.mul_(2.)` changes w. tensors.svg shows broadcasting, cat
and stack as cells.

Next: --part broadcasting
Next: --part "in place"
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from framework import UsageError, picture

PARTS = {
    "rank and shape": """
        t = torch.tensor([[1., 2., 3.], [4., 5., 6.], [7., 8., 9.], [10., 11., 12.]])
        t.dim(), t.shape, t.dtype""",
    "indexing": """
        v = torch.arange(7.)
        v[0], v[-1], v[2:5], v[4:-1], v[:2]
        t[:, 1]
        t[:, :-1]""",
    "broadcasting": """
        m1, m2 = torch.tensor([[1., 2.]]), torch.tensor([[3.], [4.]])
        m1.shape, m2.shape, (m1 + m2).shape
        m1 + m2
        m1 + torch.tensor([3.])""",
    "mul and matmul": """
        a, b = torch.tensor([[1., 2.], [3., 4.]]), torch.tensor([[1.], [2.]])
        a.mul(b)
        a.matmul(b)""",
    "mean": """
        torch.tensor([1., 2.]).mean()
        torch.tensor([1, 2]).mean()
        torch.tensor([1, 2]).float().mean()""",
    "sum": """
        a.sum(), a.sum(dim=0), a.sum(dim=1)""",
    "max and argmax": """
        a.max(), a.argmax()
        a.max(dim=0)""",
    "view": """
        ft = torch.arange(12.).view(2, 2, 3)
        ft.view(-1, 3)
        ft.view(-1, 1, 3).shape""",
    "squeeze": """
        torch.tensor([[0.], [1.], [2.]]).squeeze()""",
    "unsqueeze": """
        torch.arange(3.).unsqueeze(0), torch.arange(3.).unsqueeze(1).shape""",
    "casting": """
        torch.tensor([1, 2, 3, 4]).float(), torch.tensor([True, False, False, True]).long()""",
    "concatenate": """
        p, q = torch.tensor([[1., 2.], [3., 4.]]), torch.tensor([[5., 6.], [7., 8.]])
        torch.cat([p, q], dim=0)
        torch.cat([p, q], dim=1)""",
    "stack": """
        x, y, z = torch.tensor([1., 4.]), torch.tensor([2., 5.]), torch.tensor([3., 6.])
        torch.stack([x, y, z])
        torch.stack([x, y, z], dim=1)""",
    "ones and zeros": """
        torch.ones_like(a)
        torch.zeros_like(a)""",
    "in place": """
        w = torch.tensor([[1., 2.], [3., 4.]])
        w.mul(2.)
        w
        w.mul_(2.)
        w""",
}


def recipe(run_dir: Path, part: str = "all") -> None:
    """
    Args:
        part: print this part alone, such as broadcasting or "in place"
    """
    if part not in PARTS and part != "all":
        raise UsageError(f"there is no part {part!r}; there is: all, {', '.join(PARTS)}")
    names: dict[str, Any] = {"torch": torch}
    for title, lines in PARTS.items():
        with contextlib.nullcontext() if part in (title, "all") else contextlib.redirect_stdout(io.StringIO()):
            print(f"\n-- {title}")
            for line in lines.strip().splitlines():
                print(f">>> {line.strip()}")
                try:  # "single" is how the prompt compiles a line: it prints what an expression gives
                    exec(compile(line.strip(), "<lab>", "single"), names)
                except RuntimeError as error:
                    print(f"RuntimeError: {error}")
    draw(names, run_dir / "tensors.svg")


def draw(names: dict[str, Any], path: Path) -> None:
    """Broadcasting, concatenating and stacking as cells."""
    m1, m2, p, q, x, y, z = (names[name] for name in ("m1", "m2", "p", "q", "x", "y", "z"))
    rows = [
        {"m1": m1, "m2": m2, "m1.expand(2, 2)": m1.expand(2, 2), "m2.expand(2, 2)": m2.expand(2, 2),
         "m1 + m2": m1 + m2},
        {"p": p, "q": q, "cat([p, q], dim=0)": torch.cat([p, q]), "cat([p, q], dim=1)": torch.cat([p, q], dim=1)},
        {"x": x, "y": y, "z": z, "stack([x, y, z])": torch.stack([x, y, z]),
         "stack([x, y, z], dim=1)": torch.stack([x, y, z], dim=1)},
    ]  # fmt: skip
    with picture(path, 8, 5.5) as figure:
        for row, all_axes in zip(rows, figure.subplots(3, 5), strict=True):
            for axes in all_axes:
                axes.axis("off")
            for axes, (title, cells) in zip(all_axes, row.items(), strict=False):
                table = cells.reshape(-1, cells.size(-1))  # a vector as one row
                axes.imshow(table.cpu().numpy(), cmap="Blues", vmin=0, vmax=14)
                axes.set_title(f"{title}\n{tuple(cells.shape)}", fontsize=8)
                for at in [(r, c) for r in range(len(table)) for c in range(table.size(1))]:
                    axes.text(at[1], at[0], f"{table[at]:g}", ha="center", va="center")
