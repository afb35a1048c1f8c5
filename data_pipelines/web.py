"""What all clients of a server share: its address, the key that it may ask for, and that neither leads elsewhere."""

import os
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from model.errors import UserError


def checked_address(url: str, option: str, key_variable: str) -> str:
    """Returns `url` without a slash at its end.

    Raises: UserError if it is no http address, or holds a user name or key: messages show addresses, and would show
    these, too.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # urlsplit refuses brackets that do not close and ports that are no number
        is_address = False
    if "@" in url or "?" in url:
        raise UserError(f"{option} holds a user name or key: put the key into ${key_variable} instead", code="unsafe")
    if not is_address or len(url.split()) != 1:
        raise UserError(f"{option} {url!r}: give a URL like http://127.0.0.1:8000", code="bad-value")
    return url.rstrip("/")


def key_of(variable: str) -> str:
    """The key in an environment variable, or "" if it is not set.

    Raises: UserError if it cannot be sent, before a library shows it in an error of its own.
    """
    key = os.environ.get(variable, "").strip()  # a key that comes from a file may end in a line break
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"the key in ${variable} holds a space or a character that no key has: set it again", code="bad-value"
        )
    return key


def why_no_redirect(url: str, status: int, target: str | None, option: str) -> str:
    """The message for an answer 3xx, which is never followed, because the request carries the key and the texts."""
    return (
        f"{url} answers {status} and redirects to {target or 'an unnamed address'!r:.200}: redirects are not followed, "
        f"give that address as {option} if it is yours"
    )


def open_without_redirects(request: urllib.request.Request, timeout: float) -> Any:
    """The response to a request, as a context. Raises: what urlopen raises; HTTPError for a redirect, too."""
    return _OPENER.open(request, timeout=timeout)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Makes no new request, so that the answer becomes an HTTPError."""


_OPENER = urllib.request.build_opener(_NoRedirects)
