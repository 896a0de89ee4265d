"""Signals at random instants of runs of the command line: `python benchmarks/signals.py --cases 200`.

Each case is a run that gets SIGINT, SIGTERM, SIGHUP or SIGUSR1, or two of them, up to three times, and is resumed until
it ends. The instant is the n-th call of a Python function, whatever it is part of: a step, a write, a step boundary; in
every fourth case it is any moment after a line of the table. Each time the exit status and what was said must be right,
the fit must have stopped at the next step boundary, and the last checkpoint must be of the last step. The end must have
the bits of the run that was left alone.

`--seed S` chooses other instants; `--case N` runs one case and shows what it printed. Ends with 1 if a case went wrong,
and names it. Needs os.fork.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import framework.cli.train  # noqa: F401  (each child would import it anew)
from framework.checkpoint import find
from framework.cli import main as command_line

SIGNALLED = 3  # times that a run gets signals; then it is left alone
STOPS = {signal.SIGINT: ("Ctrl-C", 130), signal.SIGTERM: ("SIGTERM", 143), signal.SIGHUP: ("SIGHUP", 129)}
ALL = [*STOPS, signal.SIGUSR1]
RECIPE = '''"""A fit that draws in every part."""
import torch
from torch import nn
from framework import Recipe
from framework_plugins.best_checkpoint import BestCheckpoint

def recipe(epochs: int = 6):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.ReLU(), nn.Linear(4, 1))
    x = torch.randn(20, 3)
    y = x.sum(1, keepdim=True)
    return Recipe(model=model, loss=nn.MSELoss(), optimizer=torch.optim.Adam(model.parameters(), lr=0.05),
                  train=(x, y), val=(x[:5], y[:5]), batch_size=3, epochs=epochs,
                  plugins=[BestCheckpoint(every_seconds=0)])
'''
OWN = ["-p", f"{__name__}:Marks"]
START = ["lab.py", "--run-dir", "run", "--device", "cpu", "-p", "no:plot", "-p", "no:progress", *OWN]
RESUME = ["resume", "run", *OWN]

Plan = list[tuple[int, signal.Signals]]  # at which call, counted from where the fit begins, which signal comes


class Marks:
    """Sends the signals of a plan to its own process, and marks in the output when, and where the fit has ended."""

    plan: Plan | None = None

    def __init__(self) -> None:
        self.calls = 0

    def on_fit_start(self, trainer: Any) -> None:
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # where a fit is resumed, before anything else happens
        self.on_epoch_start()

    def on_epoch_start(self) -> None:
        if not self.plan:
            return
        plan, Marks.plan = self.plan, None

        def count(*_: Any) -> None:
            self.calls += 1
            while plan and self.calls >= plan[0][0]:
                number = plan.pop(0)[1]
                os.write(1, f"SENT {number} IN {self.trainer.step}\n".encode())
                os.kill(os.getpid(), number)
            if not plan:
                sys.setprofile(None)

        sys.setprofile(count)

    def on_teardown(self, trainer: Any) -> None:
        sys.setprofile(None)
        os.write(1, f"END {trainer.step} CALLS {self.calls}\n".encode())


def attempt(arguments: list[str], plan: Plan, outside: bool = False) -> tuple[int, str]:
    """Run a command line in a process of its own, which gets the signals of a plan; exit status and output.

    Args:
        outside: send the first of them from here, when so many lines of the table are there
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for number in ALL:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.close(reading)
            sys.stdout, sys.stderr = (os.fdopen(os.dup2(writing, n), "w", encoding="utf-8") for n in (1, 2))
            os.close(writing)
            Marks.plan = None if outside else plan
            status = command_line(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    said, lines = [], plan[0][0] if outside else -1
    with os.fdopen(reading, encoding="utf-8") as output:
        for line in output:
            said.append(line)
            lines -= bool(re.match(r" +\d+ ", line))
            if lines == 0:
                os.kill(child, plan[0][1])
                said.append(f"SENT {plan[0][1]} IN -1\n")
                lines = -1
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "".join(said)


def wrong(status: int, said: str) -> Iterator[str]:
    """What is wrong with a run, from what it printed and what is in its directory."""
    sent = [(signal.Signals(int(number)), int(step)) for number, step in re.findall(r"SENT (\d+) IN (-?\d+)", said)]
    first = next((index for index, (number, _) in enumerate(sent) if number in STOPS), len(sent))
    stopped_by, asked_in = sent[first] if first < len(sent) else (None, -1)
    reason, expected = STOPS[stopped_by] if stopped_by else ("completed", 0)
    info = json.loads(Path("run/run.json").read_text("utf-8"))
    if "Traceback" in said:
        yield "a traceback"
    if any(number == signal.SIGINT for number, _ in sent[first + 1 :]):
        if status != 130 or "interrupted" not in said or info["stop_reason"] is not None:
            yield f"a second SIGINT: status {status}, stop reason {info['stop_reason']}"
        return
    if sent and asked_in < 0 and "after this step" not in said:  # from outside, when the fit was over
        return
    if status != expected:
        yield f"exit status {status} in place of {expected}"
    if info["stop_reason"] not in (reason, "completed"):
        yield f"stop reason {info['stop_reason']}"
    ended, last = re.findall(r"END (\d+)", said), find(Path("run"), "last")
    step = int(ended[0]) if ended else -1
    if last is None or int(last.name.split("-")[1]) != step or info.get("steps") != step:
        yield f"the last checkpoint is {last and last.name}, the last step {step}, run.json says {info.get('steps')}"
    if stopped_by and info["stop_reason"] == reason:
        if f"saved step {step}; it is safe to kill" not in said and f"from step {step} " not in said:
            yield "nothing was said of the save"
        if asked_in >= 0 and step > asked_in + 1:
            yield f"stopped after step {step}, when it was asked to in step {asked_in}"


def plan_of(chance: random.Random, calls: int) -> Plan:
    """One signal, or a second one while the first is being honoured."""
    first, second = (signal.SIGINT if chance.random() < 0.3 else chance.choice(ALL) for _ in range(2))
    at = chance.randrange(calls) if chance.random() < 0.8 else chance.randrange(calls // 50)
    return [(at, first), (at + chance.randrange(calls // 10), second)][: chance.choice([1, 1, 2])]


def case(chance: random.Random, calls: int, outside: bool, show: bool) -> tuple[Counter[str], str]:
    """How often one run was sent which signal, and what went wrong before its end, or nothing."""
    sent: Counter[str] = Counter()
    for times in range(SIGNALLED + 1):
        plan = plan_of(chance, calls) if times < SIGNALLED else []
        if outside and plan:
            plan = [(chance.randrange(1, 7), plan[0][1])]
        arguments = RESUME if find(Path("run"), "last") else START
        status, said = attempt(arguments, plan, outside and bool(plan))
        if show:
            print(f"--- {' '.join(arguments)}, {plan}: {status}\n{said}")
        sent.update(signal.Signals(int(number)).name for number in re.findall(r"SENT (\d+)", said))
        if found := "; ".join(wrong(status, said)):
            return sent, f"{found} (the {times + 1}. time, {plan})"
        if json.loads(Path("run/run.json").read_text("utf-8"))["stop_reason"] == "completed":
            return sent, ""
    return sent, "it did not end"


def end() -> dict[str, bytes]:
    """Every bit of the end of a run; what best_checkpoint knows to be on the disk depends on the signals."""
    last = find(Path("run"), "last")
    assert last is not None
    state = json.loads((last / "state.json").read_text("utf-8"))
    del state["plugins"]["best_checkpoint"]
    files = [last / f"{part}.safetensors" for part in ("model", "optimizer", "loop")]
    found = {file.name: file.read_bytes() for file in (*files, Path("run/metrics.jsonl"))}
    return {"state.json": json.dumps(state).encode(), **found}


@contextlib.contextmanager
def folder() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as path, contextlib.chdir(path):
        Path("lab.py").write_text(RECIPE, "utf-8")
        yield


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, default=None)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the threads of OpenMP do not live on in a forked process
    with folder():
        status, said = attempt(START, [(10**9, signal.SIGTERM)])  # only to count the calls
        assert status == 0, said
        wanted, calls = end(), int(said.partition("CALLS ")[2].split()[0])
    sent, failures, began = Counter[str](), 0, time.perf_counter()
    for number in range(options.cases) if options.case is None else [options.case]:
        with folder():
            chance = random.Random(f"{options.seed} {number}")
            signals, why = case(chance, calls, number % 4 == 3, options.case is not None)
            if not why:
                different = [name for name, data in end().items() if data != wanted[name]]
                why = f"it ended with another {' and '.join(different)}" if different else ""
        sent += signals
        if why:
            failures += 1
            print(f"case {number} of seed {options.seed}: {why}")
    told = ", ".join(f"{count} {name}" for name, count in sorted(sent.items()))
    seconds = time.perf_counter() - began
    print(f"{options.cases} runs, {sent.total()} signals ({told}), {failures} went wrong ({seconds:.0f} s)")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
