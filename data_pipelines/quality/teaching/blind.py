"""How well a reader does who never looks up a value: by the order of the prompt, by types, by the question alone.

Data that teaches looking up leaves such a reader at chance. All rules see the talk up to the question that a probe
marks, and the facts of the prompt as the record lists them.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from data_pipelines.quality.teaching.lesson import Lesson, Value
from data_pipelines.records.schema import Fact, Probe
from data_pipelines.records.split import bucket
from data_pipelines.writer.duplicates import masked
from data_pipelines.writer.wording import mentions

FEWEST = 30
"""Fewer questions than this are not measured."""
SHARED = 3
"""A wording tells something about the answer's class only if it was asked this often."""
CLASSES = ("present", "absent", "denied", "changed")


def asked_facts(talk: Lesson, probe: Probe) -> tuple[list[Fact], list[Fact]] | None:
    """The facts that a probe asks for, and all facts of the prompt that nobody has said before; None if it has none."""
    asked = [fact for fact in talk.script.facts if fact.label in (probe.facts or ())]
    place = asking_turn(talk, probe)
    if not asked or place is None:
        return None
    said = " ".join(turn.text for turn in talk.turns[:place])
    return asked, [fact for fact in talk.script.facts if not mentions(said, fact.text)]


def asking_turn(talk: Lesson, probe: Probe) -> int | None:
    """The last turn of the user that holds the probe's question, whose capital a lead-in takes away; None if none."""
    question = (probe.question or "")[1:]
    places = [n for n, turn in enumerate(talk.turns) if turn.speaker == "user" and question and question in turn.text]
    return places[-1] if places else None


def order_guess(asked: Sequence[Fact], unsaid: Sequence[Fact]) -> tuple[float, float] | None:
    """Whether "the first fact of the prompt that was not said" is asked for (1 or 0), and the chance of any unsaid one.

    None if everything was said.
    """
    if not unsaid:
        return None
    right = [fact in asked for fact in unsaid]
    return float(right[0]), sum(right) / len(right)


def type_guess(asked: Sequence[Fact], unsaid: Sequence[Fact]) -> tuple[float, float]:
    """How often "a fact of the type asked for, not said so far" is right, and how often if it had at least one rival.

    With r other facts of these types it is right once in 1 + r times: always, if there is no rival.
    """
    types = {fact.type for fact in asked}
    rivals = sum(fact.type in types and fact not in asked for fact in unsaid)
    return 1 / (1 + rivals), 1 / (1 + max(rivals, 1))


def answer_class(probe: Probe) -> str | None:
    """What the prompt says about the thing asked for: one of `CLASSES`; None for a question about something else.

    A record may state it under the key "answer_class" of the probe. Otherwise Q1 and Q2 ask for a fact that is
    present, Q3 for one that is denied, Q5 for one that is absent. That a fact was changed cannot be derived.
    """
    stated = probe.other_keys.get("answer_class")
    if isinstance(stated, str):
        return stated
    return {"Q1": "present", "Q2": "present", "Q3": "denied", "Q5": "absent"}.get(probe.kind)


def masked_question(question: str, facts: Iterable[Fact]) -> str:
    """A question without the values of the prompt, numbers and names, so that only its wording is left."""
    for text in sorted((fact.text for fact in facts), key=len, reverse=True):
        question = question.replace(text, "0")
    return " ".join(masked(question))


def conditional_entropy(pairs: Iterable[tuple[str, str]]) -> Value:
    """H(class | wording) in bits over (wording, class) pairs, of the wordings that were asked at least `SHARED` times.

    Each wording's entropy has the correction of Miller and Madow, (classes - 1) / 2n nats, since few questions look
    more certain than they are. A wording that was asked once would count as certain, so that it is left out.
    """
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for wording, label in pairs:
        groups[wording][label] += 1
    asked = sum(group.total() for group in groups.values())
    shared = [group for group in groups.values() if group.total() >= SHARED]
    total = sum(group.total() for group in shared)
    if total < FEWEST:
        return Value(value=None, note=f"{total} of {asked} questions share a wording with two others")
    bits = 0.0
    for group in shared:
        n = group.total()
        plain = -sum(count / n * math.log2(count / n) for count in group.values())
        bits += n * (plain + (len(group) - 1) / (2 * n * math.log(2)))
    return Value(value=bits / total, note=f"{total} of {asked} questions, {len(shared)} wordings")


def naive_bayes(train: Sequence[tuple[str, str]], test: Sequence[str]) -> list[str]:
    """The class of each text in `test` by multinomial naive Bayes over words and pairs of words, add-one smoothed."""
    prior: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for text, label in train:
        prior[label] += 1
        counts[label].update(_features(text))
    known = {feature for counter in counts.values() for feature in counter}
    totals = {label: counter.total() + len(known) for label, counter in counts.items()}

    def score(label: str, features: Sequence[str]) -> float:
        return math.log(prior[label]) + sum(math.log((counts[label][f] + 1) / totals[label]) for f in features)

    found = ([feature for feature in _features(text) if feature in known] for text in test)
    return [max(sorted(prior), key=lambda label: score(label, features)) for features in found]


def _features(text: str) -> list[str]:
    words = ["<", *re.findall(r"\S+", text), ">"]
    return words + [f"{a} {b}" for a, b in pairwise(words)]


def over_chance(guesses: Sequence[tuple[float, float]]) -> Value:
    """How far the right guesses are above chance, with the 95 % interval; of (right, chance) pairs."""
    n = len(guesses)
    if n < FEWEST:
        return Value(value=None, note=f"{n} questions about stated facts")
    right, chance = (sum(column) / n for column in zip(*guesses, strict=True))
    spread = math.sqrt(sum((a - b - right + chance) ** 2 for a, b in guesses) / (n - 1))
    return Value(
        value=right - chance,
        margin=1.96 * spread / math.sqrt(n),
        note=f"right {right:.3f}, chance {chance:.3f}, {n} questions",
    )


@dataclass
class Blind:
    """Collects the questions of many talks."""

    order: list[tuple[float, float]] = field(default_factory=list)
    type: list[tuple[float, float]] = field(default_factory=list)
    questions: list[tuple[str, str, bool]] = field(default_factory=list)
    """Wording, class, and whether the classifier may learn from it."""

    def add(self, talk: Lesson) -> None:
        """Adds the probes of one talk."""
        learns = bucket(f"blind/{talk.script.id}") < 0.5
        for probe in talk.script.probes:
            if found := asked_facts(talk, probe):
                if guess := order_guess(*found):
                    self.order.append(guess)
                self.type.append(type_guess(*found))
            label = answer_class(probe)
            if label and probe.question:
                self.questions.append((masked_question(probe.question, talk.script.facts), label, learns))

    def values(self) -> Mapping[str, Value]:
        """The measures, by name."""
        classes = Counter(label for _, label, _ in self.questions)
        answers = classes.total()
        absent = Value(value=None, note="no questions with a known class of answer")
        if answers:
            note = ", ".join(f"{label} {count}" for label, count in sorted(classes.items()))
            absent = Value(value=classes["absent"] / answers, note=note)
        return {
            "order_rule": over_chance(self.order),
            "type_rule": over_chance(self.type),
            "question_rule": self._question_rule(),
            "answer_entropy": conditional_entropy((wording, label) for wording, label, _ in self.questions),
            "unanswered": absent,
        }

    def _question_rule(self) -> Value:
        """The classifier of half of the scripts against the most frequent class, on the other half."""
        train = [(wording, label) for wording, label, learns in self.questions if learns]
        test = [(wording, label) for wording, label, learns in self.questions if not learns]
        if min(len(train), len(test)) < FEWEST:
            return Value(value=None, note=f"{len(self.questions)} questions with a known class of answer")
        most = Counter(label for _, label in train).most_common(1)[0][0]
        guessed = naive_bayes(train, [wording for wording, _ in test])
        return over_chance(
            [(float(g == label), float(label == most)) for g, (_, label) in zip(guessed, test, strict=True)]
        )
