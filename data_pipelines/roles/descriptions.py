"""Descriptions of one side of a recorded call by a language model: the question, the rules, and the role prompts.

Levels as in the public examples: (a) a bare sentence, (b) plus tone and topic, (c) plus a short biography. The
biography holds only what this side said of itself: every sentence comes with a quotation that is looked up.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from data_pipelines.records.provenance import topic_of
from data_pipelines.records.schema import SIDES, Dialogue
from data_pipelines.records.turns import group_turns
from data_pipelines.roles.topics import BARE, spoken_topic
from data_pipelines.text.rules import contacts, is_said, names_and_numbers, within
from data_pipelines.text.words import normal_words

PAIRS = {"ab": 2, "ba": 2, "ac": 2, "ca": 2, "bb": 1, "bc": 1, "cb": 1, "cc": 1}
"""Pairs of levels and their weights: every level has a third on either side, but two sides never both have "a"."""
PAUSE_SECONDS = 0.6
MAX_TOPIC_WORDS, MAX_FACTS, MAX_FACT_WORDS, MAX_WORDS = 14, 5, 25, 90
FIRST_PERSON = frozenset("i i'm im i've ive i'd id i'll ill me my mine myself we we're were we've our us".split())
COMMON = frozenset(
    "you the and are was were have has had been for with that this your not but from who lot very now".split()
)
"""Words that are too common to show that a quotation is about what a sentence says."""
SECOND_PERSON = frozenset("you you're youre you've youve you'd you'll your yours yourself".split())

SCHEMA = {
    "type": "object",
    "properties": {
        "topic": {"type": "string"},
        "tone": {"type": "string"},
        "form": {"type": "string", "enum": ["conversation", "discussion"]},
        "facts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "sentence": {"type": "string"},
                    "evidence": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["sentence", "evidence"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["topic", "tone", "form", "facts"],
    "additionalProperties": False,
}

SYSTEM = """You describe one speaker of a telephone call, so that an actor could play this speaker.
Answer in JSON:
- topic: what the call is about, in words that complete "Have a discussion about ...", without a full stop.
  Example: eating at home versus dining out
- tone: one adjective for how the speaker marked ME talks, such as casual, empathetic or reflective.
- form: conversation or discussion.
- facts: up to 4 short sentences about ME, each beginning with "You". For each give evidence: one or more
  quotations, word for word, from lines of ME. Take only what ME says of himself or herself. If ME tells nothing
  personal, give an empty list.
Invent nothing: every name, place and number must be in the quotations. Never give telephone numbers, PINs, e-mail or
street addresses."""


@dataclass(kw_only=True, frozen=True)
class QuotedFact:
    """A sentence about the speaker, and the quotations of the speaker that show it."""

    sentence: str
    evidence: tuple[str, ...]


@dataclass(kw_only=True, frozen=True)
class SpeakerDescription:
    """What a model says of one speaker, as SCHEMA asks for it."""

    topic: str
    tone: str
    form: str
    facts: tuple[QuotedFact, ...]

    def prompt(self, level: str) -> str:
        """The role prompt of a level; "c" without facts is the same as "b"."""
        if level == "a":
            return BARE
        article = "an" if self.tone[:1] in "aeiou" else "a"
        about = f"{BARE} Have {article} {self.tone} {self.form} about {self.topic.strip()}."
        return " ".join([about, *(fact.sentence for fact in self.facts)]) if level == "c" else about


def question_text(dialogue: Dialogue, side: str) -> str:
    """The transcript as a model reads it, with the topic if the corpus states one; lines of `side` are marked ME."""
    lines = [f"{'ME' if name == side else 'OTHER'}: {text}" for name, text in turns_of(dialogue)]
    title = title_of(dialogue)
    return "\n".join([f"The callers were asked to talk about: {title}" if title else "", *lines]).strip()


def turns_of(dialogue: Dialogue) -> list[tuple[str, str]]:
    """Side and text of each turn, in the order in which they start; a side's turn ends at a pause of 0.6 s."""
    turns = [
        (words[0].start, name, " ".join(word.text for word in words))
        for name in SIDES
        for words in group_turns(dialogue.side(name).words, PAUSE_SECONDS, math.inf)
    ]
    return [(name, text) for _, name, text in sorted(turns)]


def title_of(dialogue: Dialogue) -> str:
    """The topic that a corpus states for a call; "" if it states none."""
    return spoken_topic(topic_of(dialogue.provenance))


def said_by(dialogue: Dialogue, side: str) -> list[str]:
    """What a side said, as normal words in order."""
    return normal_words(" ".join(word.text for word in dialogue.side(side).words))


def problems(description: SpeakerDescription, dialogue: Dialogue, side: str) -> list[str]:
    """What is wrong with a description beyond its schema, in words for the model; [] for a good one."""
    heard = said_by(dialogue, side)
    known = [*heard, "", *normal_words(title_of(dialogue))]
    found = _form_problems(description)
    for fact in description.facts:
        found += _fact_problems(fact, heard)
    topic = names_and_numbers(description.prompt("b"))
    found += [f"{term!r} is not in the words of ME" for term in topic if not is_said(term, known)]
    text = description.prompt("c")
    found += [f"the text holds {kind}: leave it out" for kind in contacts(text)]
    if len(text.split()) > MAX_WORDS:
        found.append(f"all together is longer than {MAX_WORDS} words: say less")
    return list(dict.fromkeys(found))


def _form_problems(description: SpeakerDescription) -> list[str]:
    topic, found = description.topic, []
    if not 1 <= len(topic.split()) <= MAX_TOPIC_WORDS or not re.fullmatch(r"[A-Za-z0-9 ,'$%:&-]+", topic):
        found.append(f"topic must be 1 to {MAX_TOPIC_WORDS} plain words without a full stop")
    if not re.fullmatch(r"[a-z]+(-[a-z]+)?", description.tone):
        found.append("tone must be one adjective in lower case")
    if len(description.facts) > MAX_FACTS:
        found.append(f"give at most {MAX_FACTS} facts")
    return found


def _fact_problems(fact: QuotedFact, heard: Sequence[str]) -> list[str]:
    sentence, found = fact.sentence, []
    if not re.fullmatch(r"You(r|'re|'ve|'d)?\b[A-Za-z0-9 ,.'$%:&-]*[A-Za-z0-9%]\.", sentence):
        found.append(f"each fact is one plain sentence that begins with You and ends with a full stop: {sentence!r}")
    elif re.search(r"[.]\s", sentence) or not 3 <= len(sentence.split()) <= MAX_FACT_WORDS:
        found.append(f"each fact is one sentence of 3 to {MAX_FACT_WORDS} words: {sentence!r}")
    quotes = [normal_words(quote) for quote in fact.evidence]
    if not quotes:
        found.append(f"no evidence for {sentence!r}")
    for text, quote in zip(fact.evidence, quotes, strict=True):
        if len(quote) < 2 or not within(quote, heard):
            found.append(f"not a quotation of two words or more from ME: {text!r}")
        elif SECOND_PERSON & set(quote) and not FIRST_PERSON & set(quote):
            found.append(f"{text!r} is about the other speaker")
    quoted = [word for quote in quotes for word in ("", *quote)]
    found += [
        f"{term!r} is not in the evidence for {sentence!r}: quote ME saying it, or leave it out"
        for term in names_and_numbers(sentence)
        if not is_said(term, quoted)
    ]
    if quotes and not _stems(normal_words(sentence)) & _stems(word for quote in quotes for word in quote):
        found.append(f"the evidence says nothing of {sentence!r}: quote the words that do")
    return found


def _stems(words: Iterable[str]) -> set[str]:
    """The beginnings of all words that are not common; "baker" and "baking" begin alike."""
    return {word[:3] for word in words if len(word) > 2 and word not in COMMON}


def draw_levels(seed: int, id: str, sides: Sequence[str]) -> dict[str, str]:
    """The level of each agent side of the dialogue `id`, by seed and id alone.

    Each level has a third, and two sides never both have the bare sentence.
    """
    rng = Random(f"{seed}/levels/{id}")
    if len(sides) == 1:
        return {sides[0]: rng.choice("abc")}
    return dict(zip(sides, rng.choices(list(PAIRS), list(PAIRS.values()))[0], strict=True))
