"""English words to Kokoro's phoneme symbols, one word at a time so that word times stay known.

Lexicons are misaki's JSON files, fetched with the model (no misaki code is imported: it wants spaCy); what they lack
is built from the stem and a suffix, and the rest is pronounced by eSpeak NG through phonemizer.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.extras import require

# The lexicons are wrong for running speech here: they hold "a" as the letter's name, and "the" as before a vowel.
WEAK = {"a": "\u0250", "an": "\u0250n", "the": "\u00f0\u0259", "to": "t\u0259"}
WEAK_BEFORE_VOWEL = {"the": "\u00f0i", "to": "t\u028a"}
# The lexicons lack these backchannels.
SOUNDS = {"mhm": "\u0259mh\u02c8m", "mmhm": "\u0259mh\u02c8m"}
VOWELS = frozenset(
    "AIOQWYaeiouy\u00e6\u0250\u0251\u0252\u0254\u0259\u025a\u025b\u025c\u026a\u0268\u028a\u028c\u1d4a\u1d7b"
)
VOICELESS = frozenset("ptkf\u03b8")
SIBILANTS = frozenset("sz\u0283\u0292\u02a7\u02a4")
STRESS = "\u02c8\u02cc"

# eSpeak NG's IPA to Kokoro's symbols, in this order. Source: how Kokoro's training text was converted.
ESPEAK_US = (
    "t\u0283>\u02a7 d\u0292>\u02a4 e\u026a>A a\u026a>I a\u028a>W \u0254\u026a>Y o\u028a>O \u025a>\u0259\u0279 "
    "\u025c\u02d0>\u025c\u0279 \u0259l>\u1d4al r>\u0279 \u0250>\u0259 \u02d0> \u0294>t x>k e>A o>\u0254"
)
ESPEAK_GB = (
    "t\u0283>\u02a7 d\u0292>\u02a4 e\u026a>A a\u026a>I a\u028a>W \u0254\u026a>Y \u0259\u028a>Q \u025a>\u0259\u0279 "
    "\u0259l>\u1d4al r>\u0279 \u0250>\u0259 \u0294>t x>k e>A o>\u0254"
)


class Phonemes:
    """Pronunciations in one accent ("us" or "gb"); `folder` holds its lexicons. Raises UserError without extra tts."""

    def __init__(self, accent: str, symbols: frozenset[str], folder: Path) -> None:
        self.is_british = accent == "gb"
        self.symbols = symbols
        self.lexicons = [json.loads((folder / f"{accent}_{n}.json").read_text("utf-8")) for n in ("gold", "silver")]
        self._espeak: Any = None
        self.of = lru_cache(maxsize=20_000)(self._of)

    def words(self, spoken: list[str]) -> list[str]:
        """Returns the phonemes of each word of a phrase; "the" and "to" depend on the sound that follows."""
        found = [self.of(word) for word in spoken]
        for n, word in enumerate(spoken[:-1]):
            strong = WEAK_BEFORE_VOWEL.get(word.lower())
            if strong and found[n + 1].lstrip(STRESS)[:1] in VOWELS:
                found[n] = strong
        return found

    def _of(self, word: str) -> str:
        lower = word.lower()
        # A lone capital is the name of the letter; for the pronoun I that is right, too.
        text = None if len(word) == 1 and word.isupper() else WEAK.get(lower) or SOUNDS.get(lower)
        text = text or self._look_up(word) or self._inflected(lower) or self._guess(word)
        return "".join(c for c in text if c in self.symbols)

    def _look_up(self, word: str) -> str | None:
        for lexicon in self.lexicons:
            for key in (word, word.lower(), word.capitalize()):
                if key in lexicon:
                    entry = lexicon[key]
                    return str(entry["DEFAULT"]) if isinstance(entry, dict) else str(entry)
        return None

    def _inflected(self, word: str) -> str | None:
        """Stem plus suffix; English spelling and voicing rules."""
        if word.endswith("s'"):
            return self._look_up(word[:-1]) or self._inflected(word[:-1])
        for suffix, stems in (
            ("'s", [word[:-2]]),
            (
                "s",
                [word[:-1], word[:-2] if word.endswith("es") else "", word[:-3] + "y" if word.endswith("ies") else ""],
            ),
            ("ed", [word[:-2], word[:-1], word[:-3] if word[-3:-2] == word[-4:-3] else ""]),
            ("ing", [word[:-3], word[:-3] + "e", word[:-4] if word[-4:-3] == word[-5:-4] else ""]),
            ("ly", [word[:-2]]),
        ):
            if not word.endswith(suffix) or (suffix == "s" and word.endswith("ss")):
                continue
            for stem in stems:
                # A letter's name takes a plural ("DVDs"); other stems of one letter are accidents of spelling.
                said = (
                    self._look_up(stem.upper() if len(stem) == 1 else stem)
                    if len(stem) > 2 or (suffix == "'s" and stem)
                    else None
                )
                if said:
                    return said + self._suffix(said, suffix)
        return None

    def _suffix(self, stem: str, suffix: str) -> str:
        last = stem[-1]
        weak_vowel = "\u026a" if self.is_british else "\u1d7b"
        if suffix in ("s", "'s"):
            return f"{weak_vowel}z" if last in SIBILANTS else "s" if last in VOICELESS else "z"
        if suffix == "ed":
            return f"{weak_vowel}d" if last in "td" else "t" if last in VOICELESS | frozenset("s\u0283\u02a7") else "d"
        return {"ing": "\u026a\u014b", "ly": "li"}[suffix]

    def _guess(self, word: str) -> str:
        if self._espeak is None:
            self._espeak = _espeak_backend("en-gb" if self.is_british else "en-us")
        text = str(self._espeak.phonemize([word], strip=True)[0]).replace(" ", "")
        for pair in (ESPEAK_GB if self.is_british else ESPEAK_US).split():
            old, _, new = pair.partition(">")
            text = text.replace(old, new)
        return text


def _espeak_backend(language: str) -> Any:
    loader = require("espeakng_loader", extra="tts")
    wrapper = require("phonemizer.backend.espeak.wrapper", extra="tts").EspeakWrapper
    wrapper.set_library(loader.get_library_path())
    wrapper.set_data_path(loader.get_data_path())
    return require("phonemizer.backend", extra="tts").EspeakBackend(language, with_stress=True)
