"""What can be wrong with data; nothing heavy is imported here."""


class DataError(ValueError):
    """Data that cannot be used as asked; the message is one sentence for the user."""


class ReadError(DataError):
    """One file that cannot be read; the message says why, without the file's name."""


class UnreadableItem(DataError):
    """One item that cannot be read; the message names it."""
