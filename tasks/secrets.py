"""Detection of secret values, and their redaction in everything that is written or shown.

A value is secret because of its key (`is_secret`), because it precedes the `@` of a URL or is a secret parameter of its
query (`s3://KEY:SECRET@bucket`, `https://host/file?token=…`), or because it was registered (`learn`): registered values
are hidden wherever they occur, e.g. in the error message of a library.
"""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"
LONG_ENOUGH = 8  # minimum length of a registered value; shorter ones may be ordinary words
LONG_USER = 16  # minimum length of a secret user name: access key ids are secret, most user names are not

_LAST = {
    *("secret", "token", "password", "passwd", "passphrase", "pwd"),
    *("credential", "credentials", "authorization", "apikey", "signature", "sig"),
}
_BEFORE_KEY = {"access", "account", "api", "encryption", "private", "secret", "shared", "signing"}
_BEFORE_ID = {"key", "secret", "token"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USER = re.compile(r"(?<=://)[^/\s'\"<>]+(?=@)")
_QUERY = re.compile(r"([?&])([^=&\s?]+)=([^&\s#'\"<>]+)")
_REFERENCE = re.compile(r"\$\{[^{}]*\}")

_known: set[str] = set()


def is_secret(key: str) -> bool:
    """Whether a setting holds a secret, judged by its name.

    Args:
        key: its path in the configuration, or its name alone; the name `key` is secret only below a `storage` node.

    >>> is_secret("task.data.shards.storage.key"), is_secret("aws_secret_access_key"), is_secret("client-secret")
    (True, True, True)
    >>> is_secret("labels_key"), is_secret("key"), is_secret("embedder.tokens"), is_secret("token_map")
    (False, False, False, False)
    """
    *above, name = key.split(".")
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if words == ["key"]:
        return any("storage" in part for part in above)
    return (
        last in _LAST
        or (last == "key" and before in _BEFORE_KEY)
        or (last == "id" and before in _BEFORE_ID)
        or words[-2:] == ["connection", "string"]
    )


def secrets_in(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every secret in plain containers: its path and its value (for a URL, the part before the `@` and the secret query
    parameters).

    References (`${…}`) and values that are already hidden are not secrets.
    """
    if isinstance(content, dict):
        for key, value in content.items():
            at = f"{place}.{key}".lstrip(".")
            yield from secrets_in(_below(value) if is_secret(at) else value, at)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from secrets_in(value, place)
    elif isinstance(content, _Secret):
        if _worth(str(content)):
            yield place, str(content)
    elif isinstance(content, str) and "://" in content:
        yield from ((place, found) for found in _USER.findall(content) if _worth(found))
        for _, name, value in _QUERY.findall(content):
            if is_secret(name) and _worth(value):
                yield place, value


def hide(content: Any, place: str = "") -> Any:
    """Returns plain containers with all secrets hidden.

    >>> hide({"storage": {"secret": "abc", "anon": False}, "data_dir": "s3://me:abc@bucket/set"})
    {'storage': {'secret': '***', 'anon': False}, 'data_dir': 's3://***@bucket/set'}
    """
    if isinstance(content, dict):
        return {
            key: hide(_below(value) if is_secret(f"{place}.{key}") else value, f"{place}.{key}".lstrip("."))
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [hide(value, place) for value in content]
    if isinstance(content, _Secret):
        return HIDDEN
    return mask(content) if isinstance(content, str) else content


def mask(text: str) -> str:
    """Returns a text with registered secrets and those in URLs hidden.

    >>> mask("https://me:pass@host/file?token=abc&size=3 is not there")
    'https://***@host/file?token=***&size=3 is not there'
    """
    if "://" in text:
        text = _USER.sub(HIDDEN, text)
        text = _QUERY.sub(_query, text)
    for value in sorted(_known, key=len, reverse=True):
        if value in text:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", HIDDEN, text)
    return text


def learn(content: Any, place: str = "") -> None:
    """Registers every secret in plain containers, so that `mask` hides it wherever it occurs."""
    for at, value in secrets_in(content, place):
        user, colon, password = value.partition(":")
        if is_secret(at) or not colon:
            learn_value(value)
        else:
            learn_value(password)
            if len(user) >= LONG_USER:
                learn_value(user)


def learn_value(value: str) -> None:
    """Registers one value; short values are not registered, only hidden at their own keys."""
    if len(value) >= LONG_ENOUGH:
        _known.update((value, quote(value, safe=""), unquote(value)))


class _Secret(str):
    """A value below a secret key."""


def _below(value: Any) -> Any:
    """Marks the values below a secret key as `_Secret`; booleans, None and empty strings are not secrets."""
    if isinstance(value, dict):
        return {key: _below(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_below(inner) for inner in value]
    return value if value is None or isinstance(value, bool) or value == "" else _Secret(value)


def _worth(value: str) -> bool:
    return value != HIDDEN and bool(_REFERENCE.sub("", value).strip(":"))


def _query(found: "re.Match[str]") -> str:
    start, name, value = found.groups()
    return f"{start}{name}={HIDDEN if is_secret(name) else value}"
