"""What is imported when: help does not wait for torch, and nothing heavy comes along unasked."""

from __future__ import annotations

import subprocess
import sys

import pytest


def modules_after(script: str) -> set[str]:
    """The names of the modules that are loaded in a fresh process after a script."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{script}\nprint('MODULES', *sys.modules)"], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "script",
    [
        "import framework",
        "from framework.cli import main\nassert main(['--help']) == 0",
        "from framework.cli import main\nassert main([]) == 0",
        "from framework.cli import main\nassert main(['--version']) == 0",
        "from framework.cli import main\nassert main(['nosuchverb']) == 2",
        "from framework.cli import main\nassert main(['recipes']) == 0",
        "import framework.errors, framework.hooks, framework.plugins, framework.modules",
    ],
    ids=lambda script: script.splitlines()[-1].removeprefix("assert "),
)
def test_torch_is_not_waited_for(script) -> None:
    heavy = {"torch", "numpy", "matplotlib", "torchvision"}
    assert not heavy & modules_after(script)


def test_nothing_heavy_comes_along_with_the_framework() -> None:
    script = (
        "import torch\nbefore = set(sys.modules)\nimport framework, framework.testing, framework.cli.train\n"
        "names = [getattr(framework, name) for name in framework.__all__]\n"
        "for name in before: del sys.modules[name]"
    )
    came = modules_after(script)
    assert "framework.trainer" in came
    assert "framework.cli.running" in came
    unasked = ("torchvision", "matplotlib", "tensorboard", "torch.distributed", "torch.utils.tensorboard", "pandas",
               "sklearn", "framework_plugins", "framework_recipes", "torch._dynamo", "torch._inductor")  # fmt: skip
    assert not [name for name in came if name.startswith(unasked)]
