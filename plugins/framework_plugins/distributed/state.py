"""What of a checkpoint is the same for all processes, and what is of one: read again by any number of them.

The files of the first process tell what one process by itself would tell: torch's generator in the state of the common
stream, what has been added up over all samples so far. What the processes differ in stands beside it, under OWN in the
place in the fit of each. As many processes take that up again; another number starts from what is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from framework import Snapshot, apply

from .draws import seed_of
from .ranks import Ranks

OWN = "of_rank"
STATES = {"random", "before"}  # of the generators, in a place in a fit: now, and before the epoch


class State:
    """How the state of a fit is written and read.

    A plugin that adds up over the samples that it sees says which entries of its state_dict are such sums, in an
    attribute `added_up`: so that a checkpoint holds the sum over all processes. What it keeps of samples in another way
    it names in `of_samples`: to another number of processes only what the first one has seen is known.

    Args:
        plugins: by name
        piece: what this process holds of a tensor
    """

    def __init__(self, ranks: Ranks, plugins: Mapping[str, Any], piece: Callable[[Tensor], Any] | None = None) -> None:
        self._ranks, self._piece = ranks, piece
        self._sums = {name: plugin.added_up for name, plugin in plugins.items() if hasattr(plugin, "added_up")}
        self._kept = {name: plugin.of_samples for name, plugin in plugins.items() if hasattr(plugin, "of_samples")}
        self._own: dict[str, Any] = {}  # sums of this process

    def local(self, name: str, tree: Any) -> Any:
        """A tree of a snapshot as this process writes it."""
        tree = apply(self._piece, tree) if self._piece else tree
        if name == "plugins":
            self._own = {n: {key: tree[n][key] for key in keys} for n, keys in self._sums.items() if n in tree}
            everyone = self._ranks.gather(self._own)
            summed = {n: _sum([own[n] for own in everyone]) for n in self._own}
            tree = {n: {**state, **summed[n]} if n in summed else state for n, state in tree.items()}
        tree = common_form(tree)
        if name == "loop":
            tree[OWN]["plugins"] = self._own
            if "mean" in tree:
                tree[OWN]["mean"] = tree["mean"]
                totals, counts, batches = zip(*self._ranks.gather(tree["mean"]), strict=True)
                tree["mean"] = [sum(totals), sum(counts), batches[0]]
        return tree

    def take_up(self, snapshot: Snapshot) -> None:
        """Make what was read that of this process."""
        rank, size = self._ranks.rank, self._ranks.size
        mine = len(snapshot.ranks) + 1 == size
        if mine and rank:
            snapshot.plugins, snapshot.loop = (snapshot.ranks[rank - 1][name] for name in ("plugins", "loop"))
        snapshot.ranks = []
        own = snapshot.loop.get(OWN, {}) if mine else {}
        snapshot.plugins, snapshot.loop = (own_form(tree, rank, mine) for tree in (snapshot.plugins, snapshot.loop))
        if "mean" in snapshot.loop:
            total, count, batches = snapshot.loop["mean"]
            snapshot.loop["mean"] = own.get("mean", [total, count, batches] if rank == 0 else [0.0, 0, batches])
        for name in self._kept.keys() & snapshot.plugins.keys() if rank and not mine else ():
            state = snapshot.plugins[name]
            empty: dict[str, Any] = {key: {} if isinstance(state[key], dict) else None for key in self._kept[name]}
            snapshot.plugins[name] = {**state, **empty}
        for name, keys in self._sums.items():
            if name in snapshot.plugins:
                state = snapshot.plugins[name]
                sums = {key: state[key] for key in keys if key in state}
                anew = sums if rank == 0 else _sum([sums], times=0)
                snapshot.plugins[name] = {**state, **own.get("plugins", {}).get(name, anew)}


def _sum(trees: list[Any], times: int = 1) -> Any:
    """The sum of trees of numbers and tensors, entry by entry; what is in only some of them counts there."""
    known = [tree for tree in trees if tree is not None]
    first = known[0] if known else None
    if isinstance(first, dict):
        names = dict.fromkeys(name for tree in known for name in tree)
        return {name: _sum([tree[name] for tree in known if name in tree], times) for name in names}
    if isinstance(first, (list, tuple)):
        return type(first)(_sum(list(parts), times) for parts in zip(*known, strict=True))
    return first if first is None else sum(known[1:], start=first) * times


def common_form(tree: Any) -> Any:
    """Places in a fit as one process would tell them; the common stream is the first generator of the loaders."""
    if not isinstance(tree, dict):
        return tree
    if not _is_place(tree):
        return {key: common_form(value) for key, value in tree.items()}
    own, told = {}, {}
    for name in STATES & tree.keys():
        states = tree[name]
        if "torch" in states:
            (of_all, *others), own[name] = states["generators"], states["torch"]
            told[name] = {**states, "torch": of_all, "generators": others}
    return {**tree, **told, OWN: own}


def own_form(tree: Any, rank: int, mine: bool) -> Any:
    """The inverse of `common_form` for one process.

    Args:
        mine: whether OWN is of this process, out of as many; else its own streams stay as it has seeded them
    """
    if not isinstance(tree, dict):
        return tree
    if not _is_place(tree):
        return {key: own_form(value, rank, mine) for key, value in tree.items()}
    own, told = tree.get(OWN, {}) if mine else {}, {key: value for key, value in tree.items() if key != OWN}
    for name in STATES & tree.keys():
        states = tree[name]
        if "torch" in states:
            of_all = states["torch"]
            generators = [of_all, *states.get("generators", [])]
            anew = torch.Generator().manual_seed(seed_of(of_all, rank)).get_state()
            kept = states if name in own else {}
            told[name] = {**kept, "torch": own.get(name, anew), "generators": generators}
    return told


def _is_place(tree: dict[Any, Any]) -> bool:
    return isinstance(tree.get("random"), dict) and "torch" in tree["random"] and "inside" in tree
