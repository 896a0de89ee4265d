"""Several processes that train one model, on one machine or on many: torch's DDP and FSDP2, started by torchrun.

::

    plugin.py     the plugin: what each hook does
    ranks.py      the processes: how they find each other, agree, and tell what became of one
    agreement.py  what must be the same in all of them, and when they stop and save
    batches.py    the part of each batch that is for one of them
    draws.py      random numbers: which of them are the same in all processes
    state.py      what of a checkpoint is of all of them, and what of one
    sharding.py   a model whose weights are cut over the processes
    launch.py     a run of the command line: which process prints, where each of them writes
"""

from .launch import around_run
from .plugin import Distributed

__all__ = ["Distributed", "around_run"]
