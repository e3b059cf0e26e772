"""Our plug-ins of Hydra, made known by hand.

Hydra looks through the folders of the package `hydra_plugins`; an editable install has none there, only an import hook.
"""

from hydra.core.plugins import Plugins

from hydra_plugins.widefield.plugins import PluginFolders
from hydra_plugins.widefield.study import StudySweeper
from hydra_plugins.widefield.sweepers import GridSweeper


def register_plugins() -> None:
    """Make the sweepers and the search path of plug-ins known to Hydra; twice is as good as once."""
    for ours in (GridSweeper, StudySweeper, PluginFolders):
        Plugins.instance().register(ours)
