"""What the scripts that torchrun starts here share: all cases one after the other, and a line for each."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

STUCK = 100  # seconds after which each rank tells where it is, and ends


def work(cases: Mapping[str, Callable[[Path], Any]]) -> None:
    """Run the cases; what each has found, or the error that it ended with, into the file of this rank."""
    faulthandler.dump_traceback_later(STUCK, exit=True)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    with (folder / f"rank-{rank}.jsonl").open("w", encoding="utf-8") as lines:
        for name, case in cases.items():
            print(f"rank {rank}: {name}", flush=True)  # the last one, where it hangs
            try:
                found = case(folder / name)
            except Exception as error:
                traceback.print_exc()
                told = [str(error), *getattr(error, "__notes__", ())]
                found = {"error": type(error).__name__, "told": "\n".join(told)}
            lines.write(json.dumps({"case": name, "found": found}) + "\n")
            lines.flush()
