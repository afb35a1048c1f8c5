"""Role prompts for a conversation between equals, from the topic alone.

Levels as in the public examples: (a) a bare sentence, (b) plus tone and topic. Level (c), a short biography, needs a
reader of the transcript: `ppx-data prompts` makes it. The tone is drawn, because the call is not heard here.
"""

import random
import re

BARE = "You enjoy having a good conversation."
_TONES = ("casual", "friendly", "relaxed", "thoughtful", "reflective", "lively")
_KINDS = ("conversation", "discussion")
# These words of the topic titles keep their capital.
_NAMES = frozenset(
    "America American Americans Iraq Middle East September Internet Christmas Thanksgiving Hollywood English".split()
)


def role_prompts(title: str, rng: random.Random) -> tuple[tuple[str, str], tuple[str, str]]:
    """(prompt, level) for both sides of a call: levels a and b, b and a, or b twice, with a third each.

    With a title the two prompts always differ; without one both sides get the bare sentence.
    """
    topic = spoken_topic(title)
    if not topic:
        return (BARE, "a"), (BARE, "a")
    choices = rng.sample([(tone, kind) for tone in _TONES for kind in _KINDS], 2)
    first, second = [(f"{BARE} Have a {tone} {kind} about {topic}.", "b") for tone, kind in choices]
    pattern = rng.choice(("ab", "ba", "bb"))
    return ((BARE, "a") if pattern[0] == "a" else first), ((BARE, "a") if pattern[1] == "a" else second)


def longest_prompt(title: str) -> str:
    """The longest prompt that `role_prompts` may draw for a title."""
    topic = spoken_topic(title)
    longest = max((f"{tone} {kind}" for tone in _TONES for kind in _KINDS), key=len)
    return f"{BARE} Have a {longest} about {topic}." if topic else BARE


def spoken_topic(title: str) -> str:
    """A title as it reads inside a sentence: "Professional Sports on TV." becomes "professional sports on TV"."""
    parts = [part.strip() for part in re.split(r"(?<!\b[A-Z])\.\s+|\.$", title.strip()) if part and part.strip()]
    phrase = " ".join(": ".join(parts).split())
    phrase = re.sub(r"^hypothetical situations?:", "a hypothetical situation:", phrase, flags=re.IGNORECASE)
    return re.sub(r"[A-Za-z][\w'.]*", lambda found: _lowered(found[0]), phrase)


def _lowered(word: str) -> str:
    keeps = word in _NAMES or re.fullmatch(r"(?:[A-Z]\.)+|[A-Z]{2,}s?", word)
    return word if keeps else word.lower()
