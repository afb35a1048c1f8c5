"""A speech engine behind HTTP: the client of `scripts/tts_server.py`, or of any server with its protocol."""

# Shapes: C channels, S samples

import base64
import hashlib
import io
import json
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

import soundfile

from data_pipelines.sound.audio import Audio, decoded
from data_pipelines.speech.protocols import EngineGone
from data_pipelines.web import checked_address, key_of, open_without_redirects, why_no_redirect
from model.errors import UserError

KEY_VARIABLE = "PPX_TTS_KEY"
"""Environment variable with the server's key, if it asks for one."""
MAX_WAIT_SECONDS = 60.0
OWN_FAILURES = 2
"""After this many failures of the engine itself (500) the text is given up; another seed may succeed."""


class HttpBackend:
    """A Backend that asks one server. Workers may ask concurrently; the server handles one request after the other.

    A request is retried, with growing waits, after 429, 5xx and broken connections, and after nothing else.
    """

    def __init__(self, url: str, name: str, *, timeout: float = 300.0, tries: int = 6, wait: float = 2.0) -> None:
        self._url = checked_address(url, "--url", KEY_VARIABLE)
        self._key, self._timeout, self._tries, self._wait = key_of(KEY_VARIABLE), timeout, tries, wait
        try:
            self._identity: dict[str, Any] = dict(json.loads(self._ask("/identity", None)[0]))
        except (ValueError, TypeError) as why:
            if isinstance(why, UserError):
                raise
            raise EngineGone(
                f"{self._url} is no speech server: its /identity is no JSON object: check --url", code="bad-answer"
            ) from why
        if self._identity.get("name") != name:
            raise UserError(
                f"{self._url} serves {self._identity.get('name')!r}, not {name}: give its --url", code="bad-combination"
            )
        self._fingerprint = fingerprint(self._identity)

    def identity(self) -> dict[str, Any]:
        """Returns what the server states about itself, without its address."""
        return self._identity

    def say(self, text: str, reference: bytes, seed: int, options: dict[str, float]) -> tuple[Audio, int]:
        """Speaks as Backend.say does.

        Raises: EngineGone if the server does not respond, redirects or has changed, UserError if it refuses.
        """
        body = {"text": text, "seed": seed, "options": options, "reference": base64.b64encode(reference).decode()}
        data, served_by = self._ask("/speak", body)
        if served_by != self._fingerprint:
            raise EngineGone(
                f"{self._url}: the engine is another one than at the start: give a new --out",
                code="other-settings",
            )
        try:
            audio_CS, rate = decoded(io.BytesIO(data))
        except (soundfile.SoundFileError, RuntimeError) as why:
            raise UserError(f"the engine's answer is no WAV ({why})", code="bad-answer") from why
        return audio_CS[0] if len(audio_CS) == 1 else audio_CS, rate

    def _ask(self, path: str, body: dict[str, Any] | None) -> tuple[bytes, str]:
        """Returns the body of the response and the fingerprint of the engine that made it."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        reason, is_ours = "", False
        for attempt in range(self._tries):
            if is_ours and attempt >= OWN_FAILURES:
                break
            if attempt:
                time.sleep(min(self._wait * 2 ** (attempt - 1), MAX_WAIT_SECONDS))
            try:
                request = urllib.request.Request(self._url + path, data, headers)
                with open_without_redirects(request, self._timeout) as answer:
                    return answer.read(), answer.headers.get("X-Engine", "")
            except urllib.error.HTTPError as why:
                if 300 <= why.code < 400:
                    where = why_no_redirect(self._url + path, why.code, why.headers.get("Location"), "--url")
                    raise EngineGone(where, code="unsafe") from why
                reason = f"{why.code} {_reason(why)}".strip()
                if why.code in (401, 403):
                    raise EngineGone(f"{self._url}: {reason}: set {KEY_VARIABLE} to its key", code="no-access") from why
                if why.code != 429 and why.code < 500:
                    raise UserError(f"the engine refuses: {reason}", code="bad-value") from why
                is_ours = why.code == 500  # The engine failed on this text; another seed may succeed.
            except (OSError, HTTPException) as why:  # The connection was refused, reset, cut short, or timed out.
                reason, is_ours = str(getattr(why, "reason", why)) or type(why).__name__, False
        if is_ours:
            raise UserError(f"the engine failed: {reason}", code="program-failed")
        raise EngineGone(
            f"{self._url}{path}: no response in {self._tries} tries ({reason}): start it and run this again",
            code="unreachable",
        )


def fingerprint(identity: dict[str, Any]) -> str:
    """Returns the hash of an identity, which the server sends with each response so that a change is noticed."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _reason(error: urllib.error.HTTPError) -> str:
    """The server's own words, at most one short line."""
    try:
        text = str(json.loads(error.read(10_000))["error"])
    except (ValueError, KeyError, TypeError, OSError):
        text = str(error.reason)
    return " ".join(text.split())[:200]
