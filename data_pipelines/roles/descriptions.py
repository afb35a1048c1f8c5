"""Role prompts for one side of a real call: what a model is asked, what its answer must fulfil, what becomes of it.

Levels as in the public examples: (a) a bare sentence, (b) plus tone and topic, (c) plus a short biography. The
biography holds only what this side said of itself: every sentence comes with a quotation that is looked up.
"""

import re
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from data_pipelines.records.schema import SIDES, Dialogue
from data_pipelines.roles.topics import BARE, spoken_topic
from data_pipelines.text.rules import contacts, is_said, names_and_numbers, within
from data_pipelines.text.words import normal_words

# Pairs of levels in which every level has a third on either side, and never both sides the bare sentence
PAIRS = {"ab": 2, "ba": 2, "ac": 2, "ca": 2, "bb": 1, "bc": 1, "cb": 1, "cc": 1}
PAUSE_SECONDS = 0.6
MAX_TOPIC_WORDS, MAX_FACTS, MAX_FACT_WORDS, MAX_WORDS = 14, 5, 25, 90
FIRST_PERSON = frozenset("i i'm im i've ive i'd id i'll ill me my mine myself we we're were we've our us".split())
# Too common to show that a quotation is about what a sentence says
COMMON = frozenset(
    "you the and are was were have has had been for with that this your not but from who lot very now".split()
)
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


def question_text(dialogue: Dialogue, side: str) -> str:
    """The transcript as a model reads it, with the topic if the corpus states one."""
    other = SIDES[1 - SIDES.index(side)]
    lines = [f"{'ME' if name == side else 'OTHER'}: {text}" for name, text in turns_of(dialogue, (side, other))]
    title = title_of(dialogue)
    return "\n".join([f"The callers were asked to talk about: {title}" if title else "", *lines]).strip()


def turns_of(dialogue: Dialogue, sides: Sequence[str]) -> list[tuple[str, str]]:
    """(side, text) in the order in which they start; a side's turn ends at a pause."""
    turns: list[tuple[float, str, list[str]]] = []
    for name in sides:
        end = -PAUSE_SECONDS
        for word in dialogue.side(name).words:
            if word.start - end >= PAUSE_SECONDS:
                turns.append((word.start, name, []))
            turns[-1][2].append(word.text)
            end = word.end
    return [(name, " ".join(texts)) for _, name, texts in sorted(turns)]


def title_of(dialogue: Dialogue) -> str:
    """The topic that a corpus states for a call; "" if it states none."""
    topic = dialogue.provenance.get("topic")
    return spoken_topic(topic) if isinstance(topic, str) else ""


def said_by(dialogue: Dialogue, side: str) -> list[str]:
    """What a side said, as normal words in order."""
    return normal_words(" ".join(word.text for word in dialogue.side(side).words))


def problems(answer: dict[str, Any], dialogue: Dialogue, side: str) -> list[str]:
    """What is wrong with an annotation beyond its schema, in words for the model; empty for a good one."""
    heard = said_by(dialogue, side)
    known = [*heard, "", *normal_words(title_of(dialogue))]
    found = _form_problems(answer)
    for fact in answer["facts"]:
        found += _fact_problems(fact, heard)
    topic = names_and_numbers(prompt(answer, "b"))
    found += [f"{term!r} is not in the words of ME" for term in topic if not is_said(term, known)]
    text = prompt(answer, "c")
    found += [f"the text holds {kind}: leave it out" for kind in contacts(text)]
    if len(text.split()) > MAX_WORDS:
        found.append(f"all together is longer than {MAX_WORDS} words: say less")
    return list(dict.fromkeys(found))


def _form_problems(answer: dict[str, Any]) -> list[str]:
    topic, found = answer["topic"], []
    if not 1 <= len(topic.split()) <= MAX_TOPIC_WORDS or not re.fullmatch(r"[A-Za-z0-9 ,'$%:&-]+", topic):
        found.append(f"topic must be 1 to {MAX_TOPIC_WORDS} plain words without a full stop")
    if not re.fullmatch(r"[a-z]+(-[a-z]+)?", answer["tone"]):
        found.append("tone must be one adjective in lower case")
    if len(answer["facts"]) > MAX_FACTS:
        found.append(f"give at most {MAX_FACTS} facts")
    return found


def _fact_problems(fact: dict[str, Any], heard: Sequence[str]) -> list[str]:
    sentence, found = fact["sentence"], []
    if not re.fullmatch(r"You(r|'re|'ve|'d)?\b[A-Za-z0-9 ,.'$%:&-]*[A-Za-z0-9%]\.", sentence):
        found.append(f"each fact is one plain sentence that begins with You and ends with a full stop: {sentence!r}")
    elif re.search(r"[.]\s", sentence) or not 3 <= len(sentence.split()) <= MAX_FACT_WORDS:
        found.append(f"each fact is one sentence of 3 to {MAX_FACT_WORDS} words: {sentence!r}")
    quotes = [normal_words(quote) for quote in fact["evidence"]]
    if not quotes:
        found.append(f"no evidence for {sentence!r}")
    for text, quote in zip(fact["evidence"], quotes, strict=True):
        if len(quote) < 2 or not within(quote, heard):
            found.append(f"not a quotation of two words or more from ME: {text!r}")
        elif SECOND_PERSON & set(quote) and not FIRST_PERSON & set(quote):
            found.append(f"{text!r} is about the other speaker")
    quoted = [word for quote in quotes for word in ("", *quote)]
    for term in names_and_numbers(sentence):
        if not is_said(term, quoted):
            found.append(f"{term!r} is not in the evidence for {sentence!r}: quote ME saying it, or leave it out")
    if quotes and not _stems(normal_words(sentence)) & _stems(word for quote in quotes for word in quote):
        found.append(f"the evidence says nothing of {sentence!r}: quote the words that do")
    return found


def _stems(words: Iterable[str]) -> set[str]:
    """Beginnings of the telling words: "baker" and "baking" have the same."""
    return {word[:3] for word in words if len(word) > 2 and word not in COMMON}


def prompt(answer: dict[str, Any], level: str) -> str:
    """The role prompt of a level; "c" without facts is the same as "b"."""
    if level == "a":
        return BARE
    article = "an" if answer["tone"][:1] in "aeiou" else "a"
    about = f"{BARE} Have {article} {answer['tone']} {answer['form']} about {answer['topic'].strip()}."
    return " ".join([about, *(fact["sentence"] for fact in answer["facts"])]) if level == "c" else about


def draw_levels(seed: int, dialogue: Dialogue) -> dict[str, str]:
    """The level of each agent side: a third each, and not the bare sentence for both. Depends on seed and id alone."""
    rng = Random(f"{seed}/levels/{dialogue.id}")
    sides = dialogue.agent_sides
    if len(sides) == 1:
        return {sides[0]: rng.choice("abc")}
    return dict(zip(sides, rng.choices(list(PAIRS), list(PAIRS.values()))[0], strict=True))
