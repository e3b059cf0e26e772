"""Registers this project's Hydra plug-ins explicitly.

Hydra scans the folders of the package `hydra_plugins`; an editable install has only an import hook there.
"""

from hydra.core.plugins import Plugins

from hydra_plugins.widefield.plugins import PluginFolders
from hydra_plugins.widefield.study import StudySweeper
from hydra_plugins.widefield.sweepers import GridSweeper


def register_plugins() -> None:
    """Register the sweepers and the plug-ins' search path with Hydra; idempotent."""
    for ours in (GridSweeper, StudySweeper, PluginFolders):
        Plugins.instance().register(ours)
