"""Checkpoints: tensors in safetensors, everything else in JSON, no pickle. Written beside and renamed.

::

    checkpoints/
        step-000000001200/          complete as soon as it has this name
            model.safetensors  optimizer.safetensors  state.json
        LAST  BEST                  JSON with the name of a checkpoint, one file a label

A `Snapshot` is the whole state in memory; the rest of the program knows only the names below.
"""

from framework.checkpoint.codec import decode, encode
from framework.checkpoint.place import Place
from framework.checkpoint.restore import Resumed, restore_model
from framework.checkpoint.snapshot import Snapshot, copy, take
from framework.checkpoint.store import find, read, write
from framework.checkpoint.writer import Writer

__all__ = [
    "Place",
    "Resumed",
    "Snapshot",
    "Writer",
    "copy",
    "decode",
    "encode",
    "find",
    "read",
    "restore_model",
    "take",
    "write",
]
