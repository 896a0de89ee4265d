from framework.architecture import described as described
from framework.architecture import layers as layers
from framework.architecture import settings_of as settings_of
from framework.checkpoint import Snapshot as Snapshot
from framework.checkpoint import write_whole as write_whole
from framework.cli.building import assemble as assemble
from framework.cli.building import build as build
from framework.cli.building import command_of as command_of
from framework.cli.building import fit_recipe as fit_recipe
from framework.cli.building import knobs as knobs
from framework.cli.building import rebuild as rebuild
from framework.cli.options import PluginOption as PluginOption
from framework.cli.pictures import picture as picture
from framework.cli.pictures import plain as plain
from framework.cli.rundir import read_runs as read_runs
from framework.cli.running import run as run
from framework.data import unpadded as unpadded
from framework.errors import CheckpointError as CheckpointError
from framework.errors import DataError as DataError
from framework.errors import DeviceError as DeviceError
from framework.errors import FrameworkError as FrameworkError
from framework.errors import NonFiniteError as NonFiniteError
from framework.errors import PluginError as PluginError
from framework.errors import RecipeError as RecipeError
from framework.errors import RunDirError as RunDirError
from framework.errors import UsageError as UsageError
from framework.hooks import hookimpl as hookimpl
from framework.metrics import Monitor as Monitor
from framework.metrics import mode_of as mode_of
from framework.metrics import target_of as target_of
from framework.recipe import Recipe as Recipe
from framework.seed import kept_random_states as kept_random_states
from framework.trainer import Result as Result
from framework.trainer import Trainer as Trainer

__version__: str
__all__: list[str]
