"""Common mistakes, said in the user's own names, shapes and values.

`checked` looks at a first batch, where torch would go on without a word. `explain` and `nonfinite_from` are asked only
after something has failed, so they cost a healthy run nothing. `guarded` makes what fails in a worker process arrive.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from framework.errors import DataError, DeviceError, FrameworkError
from framework.mistakes import labels, layers, samples
from framework.mistakes.case import Case
from framework.mistakes.first import checked
from framework.mistakes.memory import short
from framework.mistakes.nonfinite import nonfinite_from, nonfinite_in
from framework.mistakes.samples import guarded, kind_of, no_pair, repeated

__all__ = ["checked", "explain", "guarded", "kind_of", "no_pair", "nonfinite_from", "nonfinite_in", "repeated"]


def explain(error: BaseException, model: nn.Module, loss: Any, batch: Any, output: Any) -> FrameworkError | None:
    """The mistake behind torch's error or that of a data set, or None where none of the known ones fits."""
    case = Case(error, model, loss, batch, output)
    text, split = f"{type(error).__name__}: {error}", case.known_as("split") or "train"  # train's pass names none
    if isinstance(error, FrameworkError) or not isinstance(error, Exception):
        return samples.in_worker(case)
    if found := short(case) or samples.failed(error, split):
        return found
    if isinstance(batch, dict) and isinstance(error, KeyError):  # one of forward and compute_loss is not replaced
        return DataError(no_pair(batch))
    if re.search(r"device|meta tensor|backend", str(error)) and (sentence := layers.devices(case)):
        return DeviceError(sentence)
    of_a_step = (*labels.RULES, *layers.RULES) if batch is not None else ()
    for rules, about in ((of_a_step, ""), (samples.RULES, f"{split}: ")):
        for pattern, rule in rules:
            if re.search(pattern, text) and (said := rule if isinstance(rule, str) else rule(case)):
                return DataError(about + said)
    return None
