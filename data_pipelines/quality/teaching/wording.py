"""How much of talk and prompts is new, held-out ones included, and how people talk: lengths and hesitations."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.quality.role_fidelity import ROLE
from data_pipelines.quality.teaching.blind import masked_question
from data_pipelines.quality.teaching.lesson import Lesson, Value
from data_pipelines.records.schema import Fact
from data_pipelines.writer.stats import ScriptStats
from data_pipelines.writer.wording import SENTENCE

OFTEN = 10
"""A sentence that occurs more often than this counts as repeated."""
SHORT_WORDS = 4
"""Sentences of fewer words ("Thank you.") are everybody's, and count neither as repeated nor as known."""
HESITATIONS = frozenset("uh um er erm".split())
HELDOUT = ("questions", "sentences", "names", "domains")


def masked_sentences(text: str, facts: Sequence[Fact]) -> list[str]:
    """The sentences of a turn without values, numbers and names; short ones are left out."""
    sentences = (masked_question(part, facts) for part in SENTENCE.split(text))
    return [sentence for sentence in sentences if len(sentence.split()) >= SHORT_WORDS]


def repeated_share(counts: Mapping[str, int]) -> float:
    """The share of sentences whose masked form occurs more than `OFTEN` times; counts: by masked form."""
    return sum(n for n in counts.values() if n > OFTEN) / max(sum(counts.values()), 1)


def known_share(heldout: Sequence[str], train: Iterable[str]) -> float:
    """The share of held-out items that training has, too, each as often as it occurs."""
    known = set(train)
    return sum(item in known for item in heldout) / len(heldout)


def role_names(talk: Lesson) -> list[str]:
    """The names that a talk was given: company and agent of the role prompt, and the names among its facts."""
    match = ROLE.match(talk.script.role_prompt)
    names = [match["company"], match["name"]] if match else []
    return names + [fact.text for fact in talk.script.facts if fact.type == "name"]


def hesitations(text: str) -> int:
    """How often a text says "um" and the like."""
    return sum(word in HESITATIONS for word in re.findall(r"[a-z]+", text.lower()))


@dataclass
class Wording:
    """Collects the words of many talks."""

    stats: ScriptStats = field(default_factory=ScriptStats)
    sentences: Counter[str] = field(default_factory=Counter)
    parts: dict[str, dict[str, list[str]]] = field(
        default_factory=lambda: {name: {"train": [], "heldout": []} for name in HELDOUT}
    )
    """What may be new, by kind and split."""
    turn_words: dict[str, list[int]] = field(default_factory=lambda: {"agent": [], "user": []})
    hesitations: Counter[str] = field(default_factory=Counter)
    prompts: list[int] = field(default_factory=list)
    """Words of each role prompt."""
    different_prompts: set[str] = field(default_factory=set)
    facts: list[int] = field(default_factory=list)
    styles: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    """Scripts that hold a question of each kind."""
    scripts: int = 0

    def add(self, talk: Lesson) -> None:
        """Adds one talk."""
        script = talk.script
        self.scripts += 1
        self.stats.add(script)
        self.prompts.append(len(script.role_prompt.split()))
        self.different_prompts.add(script.role_prompt)
        self.facts.append(len(script.facts))
        if isinstance(style := script.provenance.get("prompt_style"), str):
            self.styles[style] += 1
        self.kinds.update({probe.kind for probe in script.probes})
        for turn in talk.turns:
            self.turn_words[turn.speaker].append(len(turn.text.split()))
            self.hesitations[turn.speaker] += hesitations(turn.text)
        for name, items in self._new(talk):
            self.parts[name][script.split].extend(items)

    def _new(self, talk: Lesson) -> Iterator[tuple[str, list[str]]]:
        script = talk.script
        said = [(turn.speaker, masked_sentences(turn.text, script.facts)) for turn in talk.turns]
        self.sentences.update(sentence for _, sentences in said for sentence in sentences)
        yield "questions", [masked_question(p.question, script.facts) for p in script.probes if p.question]
        yield "sentences", [text for speaker, sentences in said for text in sentences if speaker == "agent"]
        yield "names", role_names(talk)
        yield "domains", [talk.domain]

    def values(self) -> Mapping[str, Value]:
        """The measures, by name."""
        words = {side: sum(lengths) for side, lengths in self.turn_words.items()}
        values: dict[str, Value] = {}
        for side, lengths in self.turn_words.items():
            names = (f"turn_words_{side}", f"longest_turn_{side}", f"hesitations_{side}")
            if not words[side]:
                values |= {name: Value(value=None, note=f"the {side} says nothing") for name in names}
                continue
            found = (words[side] / len(lengths), max(lengths), 100 * self.hesitations[side] / words[side])
            note = f"{len(lengths)} turns"
            values |= {name: Value(value=value, note=note) for name, value in zip(names, found, strict=True)}
        distinct = self.stats.result()["distinct"]
        values |= {f"distinct_{n}": Value(value=distinct[str(n)]) for n in (1, 2)}
        values["repeated"] = Value(value=repeated_share(self.sentences), note=f"{self.sentences.total()} sentences")
        return values | self._prompts() | self._kinds() | self._known()

    def _prompts(self) -> dict[str, Value]:
        names = ("prompt_shortest", "prompt_median", "prompt_longest", "facts", "prompt_styles")
        if len(self.different_prompts) == 1:
            return {name: Value(value=None, note="all role prompts are the same") for name in names}
        found = (min(self.prompts), float(np.median(self.prompts)), max(self.prompts), float(np.mean(self.facts)))
        values = {name: Value(value=value) for name, value in zip(names, found, strict=False)}
        marked = ", ".join(f"{style} {count}" for style, count in self.styles.most_common())
        return values | {
            "prompt_styles": Value(value=len(self.styles), note=marked)
            if marked
            else Value(value=None, note="no script names the style of its prompt")
        }

    def _kinds(self) -> dict[str, Value]:
        none = Value(value=None, note="the source marks no questions (probes)")
        return {f"q{n}": Value(value=self.kinds[f"Q{n}"] / self.scripts) if self.kinds else none for n in range(7)}

    def _known(self) -> dict[str, Value]:
        values = {}
        for name, items in self.parts.items():
            none = "nothing is held out" if not self.parts["domains"]["heldout"] else "held-out talk has none"
            values[f"known_{name}"] = (
                Value(value=known_share(items["heldout"], items["train"]), note=f"{len(items['heldout'])} held out")
                if items["heldout"]
                else Value(value=None, note=none)
            )
        return values
