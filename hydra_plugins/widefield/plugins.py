"""Appends the configuration folders of installed plug-ins to Hydra's search path, after our own `conf/`."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from workbench.conf_folders import PROVIDER, plugins


class PluginFolders(SearchPathPlugin):
    """Adds every distribution with an entry point `widefield.plugins` to the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for plugin in plugins():
            if plugin.folder is not None:
                search_path.append(f"{PROVIDER}-{plugin.name}", f"file://{plugin.folder.resolve()}")
