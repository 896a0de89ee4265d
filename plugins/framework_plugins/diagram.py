"""A network of Linear layers as a picture of its nodes, and the verb that draws that of a recipe."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn
from tqdm import tqdm

from framework import Trainer, UsageError, build, described, layers, picture

MOST = 8  # nodes of a layer that are drawn; of more, the first few and the last


class Diagram:
    """Draws `diagram.svg` at the start of a fit: the nodes of each layer, and what joins them.

    A column is the input or a Linear layer with the activation behind it; a node is one number of it. The nodes of the
    biases, which are always 1, are left out. For models that are a chain of Linear layers; of others it says so.
    """

    def __init__(self, name: str = "diagram") -> None:
        self.name = name

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.run_dir is not None:
            try:
                draw(trainer.model, trainer.run_dir / "diagram.svg")
            except UsageError as error:
                tqdm.write(f"diagram   {error}")


@dataclass
class Column:
    """The nodes of the input or of a Linear layer, with what happens to them before the next layer."""

    nodes: int
    kinds: list[str] = field(default_factory=list)


def columns(model: nn.Module) -> list[Column]:
    """The input and each Linear layer of a chain.

    Raises:
        UsageError: another kind of layer, or layers that do not follow each other
    """
    found: list[Column] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if found and found[-1].nodes != module.in_features:
                raise UsageError(
                    f"the layer {name!r} takes {module.in_features} numbers, and the one before gives "
                    f"{found[-1].nodes}: only a chain of Linear layers can be drawn"
                )
            found = found or [Column(module.in_features)]
            found.append(Column(module.out_features, ["Linear"]))
        elif any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):  # of a norm all have one
            what = f"the layer {name!r}" if name else "the model"
            raise UsageError(f"{what} is a {type(module).__name__}: only Linear layers can be drawn")
        elif found and not list(module.children()):
            found[-1].kinds.append(type(module).__name__)
    if not found:
        raise UsageError(f"{type(model).__name__} has no Linear layer to draw")
    return found


def draw(model: nn.Module, path: Path, title: str = "") -> None:
    """Draw the nodes of a chain of Linear layers.

    Raises:
        UsageError: as `columns`
        RunDirError: the file cannot be written
    """
    import networkx as nx

    found = columns(model)
    last = len(found) - 1
    graph: nx.Graph[tuple[int, int | None]] = nx.Graph()
    # By column, from the bottom up, as networkx places them; None stands for nodes that are left out
    nodes = {number: [(number, row) for row in reversed(_shown(c.nodes))] for number, c in enumerate(found)}
    for number, column in nodes.items():
        graph.add_nodes_from(column)
        joined = itertools.product(column, nodes.get(number + 1, []))
        graph.add_edges_from((a, b) for a, b in joined if a[1] and b[1])
    places = nx.multipartite_layout(graph, subset_key=nodes, scale=1)
    circles = [node for node in graph if node[1]]
    colors = ["#cfe2f3" if number == 0 else "#f9cb9c" if number == last else "#d9ead3" for number, _ in circles]
    with picture(path, 8, 1.6 + 0.5 * max(map(len, nodes.values()))) as figure:
        axes = figure.subplots()
        nx.draw_networkx_edges(graph, places, ax=axes, edge_color="0.6", width=0.7)
        nx.draw_networkx_nodes(graph, places, circles, ax=axes, node_size=420, edgecolors="black", node_color=colors)
        names = {(number, row): _name(number, row, last) for number, row in graph}
        nx.draw_networkx_labels(graph, places, names, ax=axes, font_size=9)
        top = max(y for _, y in places.values())
        for number, column in nodes.items():
            at = (places[column[0]][0], top)
            axes.annotate(_heading(number, found[number], last), at, (0, 16), textcoords="offset points",
                          ha="center", va="bottom", fontsize=9)  # fmt: skip
        axes.margins(0.12, 0.2 / max(map(len, nodes.values())))
        axes.axis("off")
        counted = len(layers(model)) == last  # else norms count as layers, and the picture shows no column for them
        figure.suptitle(title or (described(model) if counted else type(model).__name__), fontsize=11)


def _shown(nodes: int) -> list[int | None]:
    """The numbers of the nodes that are drawn, from 1; None stands for those that are left out."""
    return [*range(1, nodes + 1)] if nodes <= MOST else [*range(1, MOST - 2), None, nodes]


def _name(column: int, row: int | None, last: int) -> str:
    if row is None:
        return r"$\vdots$"
    if column == 0:
        return f"$x_{{{row}}}$"
    return f"$\\hat{{y}}_{{{row}}}$" if column == last else f"$v^{{({column})}}_{{{row}}}$"


def _heading(number: int, column: Column, last: int) -> str:
    name = "Input" if number == 0 else "Output" if number == last else f"Hidden {number}"
    kinds = "\n".join(column.kinds)
    return "\n".join(part for part in (name, f"{column.nodes} node{'s' * (column.nodes != 1)}", kinds) if part)


# ------------------------------------------------------------------------------------------------------ the verb


def diagram(recipe: str, output: str = "") -> None:
    """Draw the network of a recipe: layers, nodes and what joins them.

    Args:
        recipe: a recipe whose model is a chain of Linear layers, built with its defaults
        output: the picture; by default NAME.svg here, and NAME-LABEL.svg for each of several variants

    Raises:
        UsageError: the recipe trains nothing, or has another kind of model
    """
    made = build(recipe)
    if made is None:
        raise UsageError(f"the recipe {recipe} trains nothing: it has no model")
    path = Path(output or f"{Path(recipe).stem}.svg")
    for label, one in made.items() if isinstance(made, dict) else [("", made)]:
        file = path.with_stem(f"{path.stem}-{label}") if label else path
        draw(one.model, file)
        print(f"{label or 'model':<9} {described(one.model)}")
        print(f"drawn     {file}")
