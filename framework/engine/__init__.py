"""The fast paths of a fit. Each gives the bits of the plain loop and is left where that is not certain; one does not.

::

    private.py      every private name of torch, looked for when it is used
    losses.py       the mean of a loss, read from a device now and then
    prefetch.py     batches on the device, copied ahead to a GPU
    samples.py      when the samples of a loader are rows of tensors; vision.py: those of torchvision
    loader.py       the twin of a DataLoader, which gathers rows
    optimizers.py   the steps of SGD, Adam and AdamW without the work around them
    step.py         the five calls of a training step
    graph.py        a step as a CUDA graph
    memory.py       large blocks of memory, kept from step to step
    precision.py    fast="math", which gives up the bits and is never on by itself
    engine.py       which of them a fit takes, and why

The rest of the program imports only the names below.
"""

from framework.engine.engine import Engine
from framework.engine.losses import Mean
from framework.engine.private import copy_over, held_by, hooks_of_state_dict, without_compiler
from framework.engine.step import Step

__all__ = ["Engine", "Mean", "Step", "copy_over", "held_by", "hooks_of_state_dict", "without_compiler"]
