"""What all clients of a server share: its address, and the key that it may ask for."""

import os
from urllib.parse import urlsplit

from model.errors import UserError


def checked_address(url: str, option: str, key_variable: str) -> str:
    """`url` without a slash at its end. Raises: UserError if it is no http address, or holds more than that.

    An address is shown in messages, so a key in it would be shown, too.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not close, a port that is none
        is_address = False
    if "@" in url or "?" in url:
        raise UserError(f"{option} holds a user name or key: put the key into ${key_variable} instead")
    if not is_address or len(url.split()) != 1:
        raise UserError(f"{option} {url!r}: give a URL like http://127.0.0.1:8000")
    return url.rstrip("/")


def key_of(variable: str) -> str:
    """The key in an environment variable, "" if there is none.

    Raises: UserError if it cannot be sent, before a library shows it in an error of its own.
    """
    key = os.environ.get(variable, "").strip()  # a file of variables may leave the end of its line
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"the key in ${variable} holds a space or a character that no key has: set it again")
    return key
