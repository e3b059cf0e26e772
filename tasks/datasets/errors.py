"""Errors about data; nothing heavy is imported here."""


class DataError(ValueError):
    """Data that cannot be used as requested; the message is one sentence for the user."""


class ReadError(DataError):
    """A file that cannot be read; the message is the reason, without the file's name."""


class UnreadableItem(DataError):
    """An item that cannot be read; the message names it."""
