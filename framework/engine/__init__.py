"""The exact fast paths: each gives the bits of the plain loop, and is left wherever that is not certain.

::

    private.py      every private name of torch, looked for when it is used
    optimizers.py   the steps of SGD, Adam and AdamW without the work around them
    step.py         the five calls of a training step
    engine.py       which way a fit takes, and why

The rest of the program knows only the names below.
"""

from framework.engine.engine import Engine
from framework.engine.losses import Mean
from framework.engine.private import copy_over, hooks_of_state_dict, set_mode, without_compiler
from framework.engine.step import Step

__all__ = ["Engine", "Mean", "Step", "copy_over", "hooks_of_state_dict", "set_mode", "without_compiler"]
