"""Former names of classes, so that older configurations, sweeps and checkpoints can still be read.

Imports nothing heavy: it is used before PyTorch is imported.
"""

from typing import Any

from omegaconf import AnyNode, DictConfig, ListConfig, flag_override

#: Former modules of `tasks.datasets`, then a single folder -> current modules.
DATASETS = {
    "audio_files": "audio.files",
    "audio_folder": "audio.folder",
    "speech_commands": "audio.speech_commands",
    "esc50": "audio.esc50",
    "audioset": "audio.audioset",
    "image_files": "image.files",
    "image_folder": "image.folder",
    "imagenet": "image.imagenet",
    "imagenet22k": "image.imagenet22k",
    "cifar": "image.cifar",
    "tiny_imagenet": "image.tiny_imagenet",
    "point_files": "point_cloud.files",
    "point_folder": "point_cloud.folder",
    "modelnet": "point_cloud.modelnet",
    "scanobjectnn": "point_cloud.scanobjectnn",
    "radhar": "point_cloud.radhar",
    "point_choice": "point_cloud.choice",
    "series": "time_series.windows",
    "series_table": "time_series.table",
    "ett": "time_series.ett",
    "long_term": "time_series.long_term",
    "corrformer": "time_series.corrformer",
    "csv_forecast": "time_series.csv_forecast",
    "video_files": "video.files",
    "video_folder": "video.folder",
    "kinetics400": "video.kinetics400",
    "ucf101": "video.ucf101",
    "hmdb51": "video.hmdb51",
}


def current_name(name: Any) -> Any:
    """The current name of a class; any other value is returned unchanged.

    >>> current_name("tasks.datasets.time_series.ett.ETT"), current_name("torch.nn.L1Loss")
    ('tasks.datasets.time_series.ett.ETT', 'torch.nn.L1Loss')
    """
    if not isinstance(name, str) or not name.startswith("tasks.datasets."):
        return name
    module, _, rest = name.removeprefix("tasks.datasets.").partition(".")
    return f"tasks.datasets.{DATASETS[module]}.{rest}" if module in DATASETS and rest else name


def with_current_names(content: Any) -> Any:
    """Plain content of a file with the current name in every `_target_`."""
    if isinstance(content, dict):
        return {
            key: current_name(value) if key == "_target_" else with_current_names(value)
            for key, value in content.items()
        }
    return [with_current_names(value) for value in content] if isinstance(content, list) else content


def take_current_names(cfg: DictConfig | ListConfig) -> None:
    """Like `with_current_names`, for a composed configuration, in place."""
    keys: Any = range(len(cfg)) if isinstance(cfg, ListConfig) else list(cfg)
    for key in keys:
        node = cfg._get_node(key)
        if isinstance(node, (DictConfig, ListConfig)):
            if not (node._is_none() or node._is_missing() or node._is_interpolation()):
                take_current_names(node)
        elif key == "_target_" and isinstance(node, AnyNode):
            with flag_override(cfg, "readonly", False):
                cfg[key] = current_name(node._value())
