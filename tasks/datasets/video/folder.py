"""Any collection of video files: a folder per class, a table, or labels in the file names.

Examples:
    Split by name, or below train/, val/ and test/::

        python run.py task=video_folder data_dir=PATH

    Five-fold cross-validation::

        python run.py -m task=video_folder data_dir=PATH task.data.fold=1,2,3,4,5

    A table with the columns path, label and optionally split, fold or group::

        python run.py task=video_folder data_dir=PATH task.data.csv=labels.csv
"""

import re
from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.labelled_files import FromLabelledFiles, LabelledFiles, LabelSettings, label_settings
from tasks.datasets.video.files import VideoData, VideoSettings


class VideoFolderSettings(LabelSettings, VideoSettings, total=False):
    """Arguments that `VideoFolder` passes on."""


class VideoFolder(FromLabelledFiles, VideoData):
    """Your own video files.

    Args:
        multilabel: a file may have several labels (`LabelledFiles`).
        **settings: see `LabelledFiles`, `VideoData` and `DataModule`.
    """

    layout = (
        "a folder of video files per class, or train/, val/ and test/ with such folders, "
        "or task.data.csv=FILE with the columns path,label[,split|fold|group], "
        "or task.data.label_from=REGEX for labels in names"
    )
    title = "videos of your own"

    def __init__(self, *, multilabel: bool = False, **settings: Unpack[VideoFolderSettings]) -> None:
        labels, common = label_settings(settings)
        super().__init__(**common)
        self.targets.multilabel = multilabel
        self.files = LabelledFiles(self.extensions, multilabel=multilabel, order=by_number, **labels)

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.video.sample import video_folder

        video_folder(root)


def by_number(path: Path) -> tuple[list[int], str]:
    """Sort key of files: the numbers in their names, then the names."""
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.as_posix()
