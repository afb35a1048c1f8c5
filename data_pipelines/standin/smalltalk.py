"""Makes small talk between two strangers who answer each other, as turns of text with the marks of real talk.

smalltalk.yaml holds a grammar of sentence patterns, whose facts come from who speaks: home town, work, pets. One asks,
the other answers and asks back; people hesitate, break off words, laugh, and change the subject.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

# These words lose their capital after "um,".
_STARTERS = frozenset(
    "a about an at but do for he how if in is it it's just maybe more mostly my no not only or our right right so that "
    "the there they this to too we well what when where with yes you".split()
)
LAUGH = "{laugh}"


@dataclass(frozen=True, kw_only=True)
class TypedWord:
    """One word as typed, with its punctuation; a `partial` is broken off, a `laugh` is no word."""

    text: str
    kind: Literal["word", "partial", "laugh"] = "word"


@dataclass(frozen=True, kw_only=True)
class TalkTurn:
    """What one of the two (0 or 1) says before the other does: utterances with pauses between them."""

    speaker: int
    utterances: tuple[tuple[TypedWord, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Persona:
    """An invented speaker. `facts` are what the speaker may say of herself or himself, the same in all calls."""

    pin: str
    sex: str
    dialect: str
    voice: str
    speed: float
    level_db: float
    facts: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=1)
def grammar() -> dict[str, Any]:
    """Returns the tables of smalltalk.yaml."""
    tables: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
    return tables


def invent_facts(sex: str, rng: random.Random) -> dict[str, str]:
    """Draws a name, and one entry of every list about people."""
    lists = dict(grammar()["people"])
    names = lists.pop("names")["female" if sex == "f" else "male"]
    return {"name": rng.choice(names)} | {key: rng.choice(values) for key, values in lists.items()}


class Talk:
    """One call: `opening`, then `exchange` as often as there is time for, then `closing`, each a list of turns."""

    def __init__(self, topic: dict[str, Any], people: tuple[Persona, Persona], rng: random.Random) -> None:
        self._topic, self._people, self._rng = topic, people, rng
        self._decks: dict[int, list[str]] = {}
        self._pairs = self._order()

    def _order(self) -> Iterator[dict[str, Any]]:
        """Yields questions about each other and the topic mixed, then about all other topics, without end."""
        tables, rng = grammar(), self._rng
        first = [*self._topic["pairs"], *tables["about_me"]]
        others = [pair for topic in tables["topics"] if topic is not self._topic for pair in topic["pairs"]]
        while True:
            yield from rng.sample(first, len(first))
            yield from rng.sample(others, len(others))

    def opening(self) -> list[TalkTurn]:
        """Returns greetings and names."""
        return self._fixed("opening", first=self._rng.randrange(2))

    def closing(self) -> list[TalkTurn]:
        """Returns farewells."""
        return self._fixed("closing", first=self._rng.randrange(2))

    def exchange(self) -> list[TalkTurn]:
        """Returns a question, its answer, often the same question back, and a reaction."""
        rng, pair = self._rng, next(self._pairs)
        asks = rng.randrange(2)
        question = self._draw(pair["ask"])
        if rng.random() < 0.3:
            change = self._draw(grammar()["changes"])
            question = f"{change} {question if change.endswith('.') else _lowered(question)}"
        answer = self._draw(pair["answer"])
        if rng.random() < 0.55:
            back = f"{answer} / {self._draw(grammar()['returns'])}"
            turns = [(asks, question), (1 - asks, back), (asks, self._draw(pair["answer"]))]
        else:
            turns = [(asks, question), (1 - asks, answer)]
        if rng.random() < 0.7:
            turns.append((1 - turns[-1][0], self._draw(grammar()["reactions"])))
        return [self._turn(speaker, text) for speaker, text in turns]

    def backchannel(self) -> tuple[TypedWord, ...]:
        """Returns one or two words of listening."""
        return tuple(TypedWord(text=word) for word in self._draw(grammar()["backchannels"]).split())

    def _fixed(self, name: str, first: int) -> list[TalkTurn]:
        turns = []
        for ours, theirs in grammar()[name]:
            turns += [self._turn(first, self._draw(ours)), self._turn(1 - first, self._draw(theirs))]
        return turns

    def _draw(self, lines: Sequence[str]) -> str:
        """Returns the next line of a list in shuffled order."""
        deck = self._decks.setdefault(id(lines), [])
        if not deck:
            deck += self._rng.sample(list(lines), len(lines))
        return deck.pop()

    def _turn(self, speaker: int, pattern: str) -> TalkTurn:
        facts = {"my": self._people[speaker].facts, "your": self._people[1 - speaker].facts}
        text = re.sub(r"\{(my|your)\.(\w+)\}", lambda found: facts[found[1]][found[2]], pattern)
        text = text.replace("{topic}", self._topic["spoken"]).replace("..", ".")
        parts = [part.strip() for part in text.split(" / ")]
        return TalkTurn(speaker=speaker, utterances=tuple(self._hesitate(_capital(part)) for part in parts))

    def _hesitate(self, text: str) -> tuple[TypedWord, ...]:
        """Adds a filler before now and then, and a word that is broken off and said again."""
        rng, words = self._rng, text.split()
        if rng.random() < 0.2 and words[0].lower().rstrip(",.") in _STARTERS:
            words = [*rng.choice(grammar()["fillers"]).split(), words[0].lower(), *words[1:]]
        said = [TypedWord(text="", kind="laugh") if word == LAUGH else TypedWord(text=word) for word in words]
        long = [n for n, word in enumerate(words) if n and re.fullmatch(r"[a-z]{5,}[.,?]?", word)]
        if long and rng.random() < 0.08:
            at = rng.choice(long)
            start = re.match(r"[^aeiou]*[aeiou]+[^aeiou]?", words[at])
            if start and len(start[0]) < len(words[at].rstrip(".,?")) - 1:
                said.insert(at, TypedWord(text=start[0], kind="partial"))
        return tuple(said)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _lowered(text: str) -> str:
    return text[0].lower() + text[1:] if text.split()[0].lower() in _STARTERS else text
