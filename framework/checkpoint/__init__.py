"""Checkpoints: tensors in safetensors, everything else in JSON, no pickle. Written beside and renamed.

::

    checkpoints/
        step-000000001200/          complete as soon as it has this name
            MANIFEST.json  state.json
            model.safetensors  optimizer.safetensors  plugins.safetensors  loop.safetensors
            rank-00001.json  rank-00001.safetensors   of each further process that trained
        LAST  BEST                  JSON with the name of a checkpoint, one file a label
    run.lock                        held by the process that writes

A `Snapshot` is the whole state in memory; the rest of the program knows only the names below.
"""

from framework.checkpoint.codec import decode, encode
from framework.checkpoint.files import write_whole
from framework.checkpoint.place import Place
from framework.checkpoint.processes import ALONE, Piece, Processes
from framework.checkpoint.restore import Resumed, restore_model, storable
from framework.checkpoint.runlock import lock
from framework.checkpoint.snapshot import Snapshot, copy, take
from framework.checkpoint.store import candidates, find, fingerprint, manifest, newest, read, write
from framework.checkpoint.writer import Writer

__all__ = ["ALONE", "Piece", "Place", "Processes", "Resumed", "Snapshot", "Writer", "candidates", "copy", "decode",
           "encode", "find", "fingerprint", "lock", "manifest", "newest", "read", "restore_model", "storable", "take",
           "write", "write_whole"]  # fmt: skip
