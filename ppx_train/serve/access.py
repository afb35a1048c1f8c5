"""Who may call: the token, and the origin of web pages."""

import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from ppx_train.serve.protocol import TOKEN_SUBPROTOCOLS
from ppx_train.serve.query import Refusal
from ppx_train.serve.settings import is_loopback

ANY_ORIGIN = "*"


class Access:
    """Checks requests. is_local: whether only this machine can reach the server."""

    def __init__(self, token: str | None, origins: tuple[str, ...], *, is_local: bool) -> None:
        self._token = token.encode() if token is not None else None
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self._is_local = is_local

    def check(self, headers: Mapping[str, str], query: Mapping[str, str], host: str) -> None:
        """Raises: Refusal with status 403 for a page of another origin, 401 without the token."""
        origin = headers.get("Origin")
        if origin is not None and not self._allows(origin.rstrip("/").lower(), host.lower()):
            raise Refusal(403, "pages of this origin may not call: start the server with --origin ORIGIN to allow it")
        if self._token is not None and not self._has_token(headers, query):
            raise Refusal(401, "a token is needed: as Authorization: Bearer, ?token=, or a subprotocol ppx-token.TOKEN")

    def _allows(self, origin: str, host: str) -> bool:
        """Whether pages of an origin may call: those that are named, and the server's own.

        Without a token, a server for this machine alone must be addressed as such: else a foreign name that is made
        to point here would turn a foreign page into its own.
        """
        if ANY_ORIGIN in self._origins or origin in self._origins:
            return True
        try:
            parts = urlsplit(origin)
            name = parts.hostname or ""
        except ValueError:
            return False
        is_own = parts.scheme in ("http", "https") and parts.netloc == host
        return is_own and (self._token is not None or not self._is_local or is_loopback(name))

    def _has_token(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """Whether one of the three places has the token; comparisons take the same time for every wrong one."""
        kind, _, bearer = headers.get("Authorization", "").partition(" ")
        given = [bearer.strip() if kind.lower() == "bearer" else "", query.get("token", "")]
        offers = [offer.strip() for offer in headers.get("Sec-WebSocket-Protocol", "").split(",")]
        for start in TOKEN_SUBPROTOCOLS:
            given += [offer.removeprefix(start) for offer in offers if offer.startswith(start)]
        assert self._token is not None
        return any(hmac.compare_digest(each.encode("utf-8", "replace"), self._token) for each in given)
