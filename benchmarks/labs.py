"""The figures of every lab, as a learner gets them: `python benchmarks/labs.py`.

Runs each recipe with its defaults, the whole length, in a process of its own, and writes what it printed into
docs/labs/figures.md and docs/ko/labs/figures.md, and its pictures into docs/labs/img/. Takes about four minutes on two
cores and needs MNIST (FRAMEWORK_DATA, or a network). With names, such as `python benchmarks/labs.py xor softmax`, it
runs those and only prints.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from framework_recipes import COURSE

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
DOCS = ROOT / "docs"
SHOWN = 25  # lines of a run at the most

# The pictures that the pages show, by recipe: where one is in the run directory, and its name in docs/labs/img. For a
# recipe that is not named here it is the comparison of its variants, else the curves.
PICTURES = {
    "checkpointing": {"last weights/curves.svg": "checkpointing"},
    "cpu_vs_gpu": {"cpu_vs_gpu.svg": "cpu_vs_gpu"},
    "data_loader": {"shuffled/batches.svg": "data_loader"},
    "digits": {"confusion_test.svg": "digits"},
    "initialization": {"compare.svg": "initialization", "signal.svg": "initialization-signal"},
    "logistic_regression": {"curves.svg": "logistic_regression",
                            "decision_boundary.svg": "logistic_regression-boundary"},
    "maximum_likelihood": {"likelihood.svg": "maximum_likelihood"},
    "mnist_cnn": {"filters.svg": "mnist_cnn", "top_losses_test.svg": "mnist_cnn-top_losses"},
    "mnist_mlp": {"confusion_test.svg": "mnist_mlp", "top_losses_test.svg": "mnist_mlp-top_losses"},
    "mnist_softmax": {"weights.svg": "mnist_softmax", "curves.svg": "mnist_softmax-curves"},
    "network_diagrams": {"mnist.svg": "network_diagrams", "bent_line.svg": "network_diagrams-bent_line"},
    "preprocessing": {"compare.svg": "preprocessing", "standardized/features.svg": "preprocessing-features"},
    "sgd_variants": {"versions.svg": "sgd_variants"},
    "tensor_manipulation": {"tensors.svg": "tensor_manipulation"},
    "xor": {"one layer/decision_boundary.svg": "xor-one_layer", "two layers/decision_boundary.svg": "xor"},
}  # fmt: skip

HEAD = {
    "en": """\
# The figures of all labs

Measured by `python benchmarks/labs.py`, which runs every recipe with its defaults from beginning to end; the seconds
are those of the whole process. {machine}.
""",
    "ko": """\
# 모든 실습의 수치

`python benchmarks/labs.py`로 잰 값입니다. 모든 레시피(recipe)를 기본값 그대로 처음부터 끝까지 실행하며,
초는 프로세스 전체의 시간입니다. {machine}.
""",
}


@dataclass
class Measured:
    """What a recipe printed, without its head and its table of epochs."""

    name: str
    title: str
    expected: str
    said: str
    seconds: float

    def section(self) -> str:
        return f"\n## {self.name}\n\n{self.title}\n\nExpect: {self.expected}\n\n```text\n{self.said}```\n"


def measure(name: str, pictures: Path | None = None) -> Measured:
    """Run a recipe with its defaults.

    Raises:
        SystemExit: it failed
    """
    documentation = ast.get_docstring(ast.parse((RECIPES / f"{name}.py").read_text(encoding="utf-8"))) or ""
    expected = re.search(r"^Expect: (.+)$", documentation, re.MULTILINE)
    assert expected is not None
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "framework", str(RECIPES / f"{name}.py"), "-p", "no:progress"]
        data = str(Path(os.environ.get("FRAMEWORK_DATA") or "data").absolute())
        environment = {**os.environ, "FRAMEWORK_DATA": data, "PYTHONIOENCODING": "utf-8"}
        begun = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
        seconds = time.perf_counter() - begun
        if done.returncode != 0:
            sys.exit(f"{name} ended with {done.returncode}: {done.stderr}")
        if pictures is not None:
            run = Path(folder, "runs", name, "001")
            main = "compare.svg" if (run / "compare.svg").is_file() else "curves.svg"
            for source, target in PICTURES.get(name, {main: name}).items():
                shutil.copyfile(run / source, pictures / f"{target}.svg")
    title = documentation.partition("\n")[0]
    return Measured(name, title, expected[1], tail(done.stdout), seconds)


def tail(out: str) -> str:
    """The lines that tell a result: not the head of a run, not its epochs, not where it is saved."""
    head = r"(recipe|seed|data|val|model|device|plugins|epoch|saved|pictures|drawn|next) .*"
    lines = [line for line in out.splitlines() if not re.fullmatch(rf"|{head}|\s*\d+(  +\S+)+", line)]
    return "".join(f"{line}\n" for line in lines[-SHOWN:])


def main(names: list[str]) -> None:
    pictures = None if names else DOCS / "labs" / "img"
    sections = []
    for name in names or COURSE:
        measured = measure(name, pictures)
        print(measured.section(), end="", flush=True)
        print(f"({measured.seconds:.0f} s)")
        sections.append(measured)
    if not names:
        machine = f"torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads"
        for language, folder in (("en", DOCS / "labs"), ("ko", DOCS / "ko" / "labs")):
            rows = "".join(f"| [{m.name}]({m.name}.md) | {m.seconds:.0f} |\n" for m in sections)
            text = HEAD[language].format(machine=machine) + f"\n| recipe | seconds |\n|---|---|\n{rows}"
            text += "".join(m.section() for m in sections)
            (folder / "figures.md").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
