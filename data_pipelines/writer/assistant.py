"""Assistant scripts: a user asks a teacher questions of everyday knowledge; the role prompt is always the same.

The second question is of one of six kinds (`KINDS`); half of the second questions cut into the first answer.
Further questions follow as long as there is time.
"""

import re
from random import Random
from typing import Any

from data_pipelines.records.schema import Script
from data_pipelines.records.split import members
from data_pipelines.writer.conversation import TurnList, with_backchannels, with_fillers
from data_pipelines.writer.tables import table
from data_pipelines.writer.wording import chosen, joined, pick

PROMPT = "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."
BARGES_IN, AGENT_GREETS, SAYS_HELLO, LEADS_IN, THANKS = 0.5, 0.15, 0.3, 0.4, 0.45
KINDS = {"follow_up": 3, "topic_change": 3, "clarification": 2, "check_back": 1, "doubt": 1, "repeat": 1}
"""Kinds of the second question and how often each comes: the next question about the topic, one about something else,
a request for simpler words, the answer in the user's own words, disbelief, and a request to say it again."""
OPENED = ("follow_up", "topic_change")
"""Kinds whose question may open with a word on the answer before, and whose answer with a word on the question."""
# Answers that open like this sound wrong after "Happy to explain.".
ANSWERS_AT_ONCE = re.compile(
    r"(Yes|No|Not|Sure|Of course|Put|Absolutely|Exactly|Hardly|Maybe|Partly|Better not|Very much)\b"
)
SHORTEST, LONGEST = 28.0, 62.0
"""Bounds of the length aimed at, in seconds by the estimate, which is on the slow side."""


def topics() -> dict[str, dict[str, Any]]:
    """All topics by id."""
    return table("assistant")["topics"]


def write_assistant(name: str, rng: Random, split: str, heldout: float, limit: float | None) -> Script:
    """One script named `name`. Its length may exceed `limit` seconds; the caller then draws again."""
    first, other = rng.sample(members(tuple(topics()), heldout, split, least=2), 2)
    kind = rng.choice([kind for kind, share in KINDS.items() for _ in range(share)])
    barges_in = rng.random() < BARGES_IN
    writer = _Writer(rng, limit)
    talk = writer.transcript(topics()[first], topics()[other], kind, barges_in)
    behaviours = [kind] + ["barge_in"] * barges_in + writer.behaviours
    return Script(
        id=name,
        source="assistant",
        split=split,
        scenario=f"assistant/{first}",
        role_prompt=PROMPT,
        turns=tuple(with_backchannels(with_fillers(talk.turns, rng), rng)),
        provenance={
            "generator": "assistant templates 2",
            "topics": [first, other] if kind == "topic_change" else [first],
            "behaviours": behaviours,
        },
    )


class _Writer:
    def __init__(self, rng: Random, limit: float | None) -> None:
        self.rng = rng
        self.target = rng.uniform(SHORTEST, LONGEST) if limit is None else min(limit, rng.uniform(SHORTEST, LONGEST))
        self.brief = limit is not None and limit < 25
        self.phrases = table("assistant")["phrases"]
        self.behaviours: list[str] = []
        self.spent: list[str] = []
        """Phrases that were used."""

    def phrase(self, kind: str) -> str:
        """One of the phrases of a kind; none comes again before all were used."""
        options = [text for text in self.phrases[kind] if text not in self.spent] or self.phrases[kind]
        text = self.rng.choice(sorted(options, key=len)[: (len(options) + 1) // 2] if self.brief else options)
        self.spent.append(text)
        return chosen(self.rng, text)

    def transcript(self, topic: dict, other: dict, kind: str, barges_in: bool) -> TurnList:
        talk = TurnList()
        if self.rng.random() < AGENT_GREETS and not self.brief:
            talk.agent(self.phrase("greet"))
        hello = self.phrase("hello") if self.rng.random() < SAYS_HELLO else ""
        talk.user(joined(hello, pick(self.rng, topic["ask"], self.brief)))
        talk.agent(self.answer(topic["answer"], leave=0.45, at_least=2 if barges_in and not self.brief else 1))
        ask, answer, lead = self.second(topic, other, kind, said=talk.turns[-1].text)
        cut_in = self.phrase("cut_in") if barges_in and kind in OPENED else lead
        talk.user(joined(cut_in, ask), barges_in=barges_in)
        at_least = 2 if kind == "check_back" else 1
        leave = 0.0 if self.brief else 0.15
        talk.agent(self.answer(answer, leave=leave, at_least=at_least, spent=talk.seconds, leads_in=kind in OPENED))
        self.further(talk, other if kind == "topic_change" else topic)
        if talk.seconds + 4 < self.target and self.rng.random() < THANKS:
            talk.user(self.phrase("thanks"))
            talk.agent(self.phrase("welcome"))
        return talk

    def second(self, topic: dict, other: dict, kind: str, said: str) -> tuple[str, list[str], str]:
        """The second question, its answer and the words that lead to it."""
        if kind == "clarification":
            return self.phrase("clarify"), [joined(self.phrase("simply"), topic["simple"])], ""
        if kind == "check_back":
            ask = joined(self.phrase("check_back"), f"{topic['simple']} {self.phrase('right')}")
            unsaid = [sentence for sentence in topic["answer"] if sentence not in said]
            return ask, [self.phrase("confirm"), *unsaid[-1:]], ""
        if kind == "doubt":
            return self.phrase("doubt"), [joined(self.phrase("reassure"), topic["simple"])], ""
        if kind == "repeat":
            return self.phrase("repeat"), [joined(self.phrase("again"), topic["answer"][0])], ""
        if kind == "topic_change":
            return pick(self.rng, other["ask"], self.brief), other["answer"], self.phrase("change")
        more = self.rng.choice(topic["more"])
        return more["ask"], more["answer"], self.phrase("next")

    def further(self, talk: TurnList, topic: dict) -> None:
        """Adds further questions, as long as there is time for them."""
        for more in self.rng.sample(topic["more"], len(topic["more"])):
            longer = talk.copy()
            longer.user(joined(self.phrase("next"), more["ask"]))
            longer.agent(self.answer(more["answer"], leave=0.0, spent=longer.seconds))
            asked = any(more["ask"] in turn.text or more["ask"][1:] in turn.text for turn in talk.turns)
            if longer.seconds < self.target and not asked and not self.brief:
                talk.turns = longer.turns
                self.behaviours.append("further_question")

    def answer(
        self, sentences: list[str], *, leave: float, at_least: int = 1, spent: float = 3.0, leads_in: bool = True
    ) -> str:
        """As many sentences as fit into the time left, keeping `leave` of the target for what follows."""
        text = sentences[0]
        if leads_in and self.rng.random() < LEADS_IN and not self.brief and not ANSWERS_AT_ONCE.match(text):
            text = f"{self.phrase('lead')} {text}"
        for n, sentence in enumerate(sentences[1:], 2):
            seconds = spent + len(f"{text} {sentence}".split()) / 2.6
            if n > at_least and seconds > self.target * (1 - leave):
                break
            text = f"{text} {sentence}"
        return text
