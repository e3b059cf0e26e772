"""The 35 words of Speech Commands v2, and its split rule, shared by the reader and the embedded sample."""

import hashlib

HASH_DIVIDER = "_nohash_"
# fmt: off
WORDS = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go",
    "happy", "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven",
    "sheila", "six", "stop", "three", "tree", "two", "up", "visual", "wow", "yes", "zero",
)
# fmt: on


def split_by_hash(name: str, val_percent: float = 10.0, test_percent: float = 10.0) -> str:
    """Split of a clip by the rule in the data set's README (``which_set``), from its file name alone."""
    most = 2**27 - 1  # maximum clips per class in the rule
    speaker = name.split(HASH_DIVIDER)[0]
    digest = int(hashlib.sha1(speaker.encode()).hexdigest(), 16)
    percent = digest % (most + 1) * (100.0 / most)
    if percent < val_percent:
        return "val"
    return "test" if percent < val_percent + test_percent else "train"
