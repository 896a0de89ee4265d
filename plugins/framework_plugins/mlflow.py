"""The figures of each epoch in MLflow."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Mapping
from typing import Any

from framework import Trainer, UsageError, kept_random_states, settings_of


class Mlflow:
    """Logs the figures of each epoch to MLflow as metrics, and the knobs of the run as parameters::

        Mlflow("sqlite:///mlflow.db", experiment="digits")

    The step of a metric is the epoch; `step`, the optimizer's, is one of the metrics. The run is called like its
    directory, such as softmax/001, and ends there as FINISHED, or FAILED after an error. A fit that is resumed goes on
    in the same run, where epochs that a killed one had logged after its last checkpoint are not logged twice.

    Of several processes the first one logs them.

    MLflow keeps runs in a database or on a server; it refuses plain folders since version 3.

    Args:
        tracking_uri: where to; by default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the current directory
        experiment: the runs of one experiment stand together; it is made where there is none

    Raises:
        UsageError: before the first step: the package is missing; MLflow does not take this tracking_uri
    """

    def __init__(self, tracking_uri: str | None = None, experiment: str = "framework", name: str = "mlflow") -> None:
        self.name = name
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self._client: Any = None
        self._id: str | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self._silent = trainer.plugins.keeps_nothing
        if self._silent:  # a dry run, or not the first of several processes
            return
        try:
            from mlflow import MlflowClient, entities, exceptions
        except ImportError as error:
            needs = 'needs the package mlflow-skinny: pip install "framework-trainer[mlflow]"'
            raise UsageError(f"{self.name} {needs}") from error
        self._entities, self._settings, self._status = entities, settings_of(trainer), "FINISHED"
        self._id, self._there = None, -1  # the run, and its last epoch
        directory = trainer.run_dir
        self._title = None if directory is None else f"{directory.parent.name}/{directory.name}"
        try:
            with warnings.catch_warnings():  # of what MLflow asks of SQLAlchemy
                warnings.simplefilter("ignore", DeprecationWarning)
                self._client = MlflowClient(self.tracking_uri)
                found = self._client.get_experiment_by_name(self.experiment)
        except (exceptions.MlflowException, ImportError) as error:
            raise UsageError(f"{self.name}: MLflow cannot keep runs in {self.tracking_uri}: {error}") from error
        self._experiment = found.experiment_id if found else self._client.create_experiment(self.experiment)
        if not trainer.step:  # else the state tells which run it was
            self._begin()

    def _begin(self) -> None:
        with kept_random_states():  # it makes up a name where there is none
            self._id = self._client.create_run(self._experiment, run_name=self._title).info.run_id
        told = [self._entities.Param(key, str(value)) for key, value in self._settings.items()]
        self._client.log_batch(self._id, params=told)

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        if self._silent:
            return
        if self._id is None:  # resumed from a checkpoint that knows nothing of it
            self._begin()
        if epoch > self._there:
            now, figures = int(time.time() * 1000), {name: value for name, value in metrics.items() if name != "epoch"}
            named = {re.sub(r"[^\w./ -]", "_", name): value for name, value in figures.items()}  # it takes no others
            told = [self._entities.Metric(name, value, now, epoch) for name, value in named.items()]
            self._client.log_batch(self._id, metrics=told)

    def on_exception(self) -> None:
        self._status = "FAILED"

    def on_teardown(self) -> None:
        if self._client is not None and self._id is not None:
            self._client.set_terminated(self._id, self._status)
        self._client = None

    def state_dict(self) -> dict[str, Any]:
        return {"id": self._id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["id"] is not None and not self._silent:
            self._id = state["id"]
            self._client.update_run(self._id, status="RUNNING")
            self._there = max((row.step for row in self._client.get_metric_history(self._id, "train_loss")), default=-1)
