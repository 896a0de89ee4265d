"""Checkpoints: tensors in safetensors, everything else in JSON, no pickle. Written beside and renamed.

::

    checkpoints/
        step-000000001200/          complete as soon as it has this name
            model.safetensors  optimizer.safetensors  state.json
        LAST  BEST                  JSON with the name of a checkpoint, one file a label

A `Snapshot` is the whole state in memory; the rest of the program knows only the names below.
"""

from framework.checkpoint.codec import decode, encode
from framework.checkpoint.restore import restore_model
from framework.checkpoint.snapshot import Snapshot, copy, take
from framework.checkpoint.store import find, read, write

__all__ = ["Snapshot", "copy", "decode", "encode", "find", "read", "restore_model", "take", "write"]
