"""The figures of each epoch at Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from framework import Trainer, UsageError, settings_of


class Wandb:
    """Sends the figures of each epoch to Weights & Biases, with the knobs of the run::

        Wandb("digits", tags=["baseline"], mode="offline")

    The Step of W&B is the epoch; `step`, the optimizer's, is one of the figures. The run is called like its directory,
    such as softmax/001. A fit that failed ends as failed there. A fit that is resumed goes on in the same run; epochs
    that a killed one had sent after its last checkpoint are sent again, with the same numbers, and W&B takes each once.
    Of several processes the first one sends them.
    Without an account: `mode="offline"`, or the environment variable WANDB_MODE=offline; `wandb sync` sends it later.
    A run that is open already is left alone; to log into it, as a sweep of W&B does, say `reinit="return_previous"`.

    Args:
        project: the project of the run
        options: what wandb.init takes besides, such as entity, group, tags, notes and mode; `id`, if you want your own

    Raises:
        UsageError: before the first step: the package wandb is missing; nobody is logged in
    """

    def __init__(self, project: str = "framework", *, name: str = "wandb", **options: Any) -> None:
        self.name = name
        self.project = project
        self.options = options
        self._run: Any = None
        self._id: str | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self._silent = trainer.plugins.keeps_nothing
        if self._silent:  # a dry run, or not the first of several processes
            return
        try:
            import wandb
        except ImportError as error:
            raise UsageError(f'{self.name} needs the package wandb: pip install "framework-trainer[wandb]"') from error
        self._wandb, self._settings, self._failed, self._id = wandb, settings_of(trainer), False, None
        self._where = {"dir": str(Path.cwd())}  # else it stays where an earlier run of this process was
        if (directory := trainer.run_dir) is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._where = {"dir": str(directory), "name": f"{directory.parent.name}/{directory.name}"}
        if not trainer.step:  # else the state tells which run it was
            self._begin()

    def _begin(self) -> None:
        quiet = self._wandb.Settings(silent=True, console="off")  # the terminal is the program's
        options = {"settings": quiet, **self._where, **self.options}
        known: dict[str, Any] = {"id": self._id, "resume": "allow"} if self._id else {}
        if self._wandb.run is not None:  # of the user, or of another instance; else wandb.log shall find this one
            options = {"reinit": "create_new", **options}
        try:
            self._run = self._wandb.init(project=self.project, config=self._settings, **options, **known)
        except self._wandb.errors.UsageError as error:
            said = f"{self.name}: {error} (wandb login; or mode='offline', and wandb sync later)"
            raise UsageError(said) from error
        self._id = self._run.id
        tqdm.write(f"wandb     {self._run.dir if self._run.offline else self._run.url}")

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        if self._silent:
            return
        if self._run is None:  # resumed from a checkpoint that knows nothing of it
            self._begin()
        self._run.log(dict(metrics), step=epoch)

    def on_exception(self) -> None:
        self._failed = True

    def on_teardown(self) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(self._failed))
            self._run = None

    def state_dict(self) -> dict[str, Any]:
        return {"id": self._id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._id = state["id"]
        if not self._silent:
            self._begin()
