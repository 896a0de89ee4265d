"""The built-in plugins, one file each, found through the same entry points as anyone's."""

DEFAULT = ["progress", "console", "history", "best_checkpoint", "plot"]
DRY_RUN = ["framework_plugins.limits:DryRun"]  # of --dry-run
