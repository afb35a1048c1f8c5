"""Figures that describe a set of scripts: sizes, variety, behaviours, probes, and how many facts are said."""

import re
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.records.provenance import behaviours_of
from data_pipelines.records.schema import Fact, Script
from data_pipelines.text.claims import claims
from data_pipelines.writer.duplicates import Duplicates
from data_pipelines.writer.problems import people, unsupported
from data_pipelines.writer.wording import estimated_seconds, mentions

LEAK_WORDS = 13
"""A run of this many words in both splits is a leak, as in the papers on test-set contamination."""
NGRAMS = (1, 2, 3)
_BITS = 21
"""Bits of a word's number, so that three words make one 63-bit key."""
_PENDING = 1 << 20
"""Keys that wait before duplicates among them are removed."""
_POWERS = np.array([pow(6_364_136_223_846_793_005, k, 2**64) for k in range(LEAK_WORDS)], dtype=np.uint64)
_WORD = re.compile(r"[a-z0-9$]+(?:['.:,-][a-z0-9]+)*")


class ScriptStats:
    """Collects the figures of a set of scripts, one script at a time."""

    def __init__(self) -> None:
        self.scripts = 0
        self.counts: dict[str, Counter[str]] = {
            name: Counter() for name in ("splits", "domains", "turns", "words", "behaviours", "probes", "facts")
        }
        self.scenarios: set[str] = set()
        self.seconds, self.turns = 0.0, 0
        self.fact_count, self.facts_said, self.claimed, self.unsupported = 0, 0, 0, 0
        self.near_duplicates, self._seen = 0, Duplicates()
        self._numbers: dict[str, int] = {}
        self._grams = {n: _Keys() for n in NGRAMS}
        self._train = _Keys()
        self._heldout: list[NDArray[np.uint64]] = []

    def add(self, script: Script) -> None:
        """Counts one script."""
        self.scripts += 1
        self.scenarios.add(script.scenario)
        self.seconds += estimated_seconds(script.turns)
        self.turns += sum(turn.kind != "backchannel" for turn in script.turns)
        counts = self.counts
        counts["splits"][script.split] += 1
        counts["domains"]["/".join(script.scenario.split("/")[:2])] += 1
        counts["behaviours"].update(behaviours_of(script.provenance))
        counts["probes"].update(probe.kind for probe in script.probes)
        counts["facts"].update(fact.type for fact in script.facts)
        for turn in script.turns:
            counts["turns"][turn.kind] += 1
            counts["words"][turn.speaker] += len(turn.text.split())
        self._add_facts(script)
        self._add_wording(script)
        self.near_duplicates += not self._seen.is_new(script)

    def _add_facts(self, script: Script) -> None:
        said = [fact_is_said(fact, script) for fact in script.facts if fact.used == "yes"]
        self.fact_count += len(said)
        self.facts_said += sum(said)
        if script.facts:  # An agent whose role states facts may claim nothing else.
            self.claimed += sum(len(claims(turn.text, people())) for turn in script.turns if turn.speaker == "agent")
            self.unsupported += len(unsupported(script))

    def _add_wording(self, script: Script) -> None:
        runs = []
        for turn in script.turns:
            for n in NGRAMS:
                self._grams[n].add(self._keys(turn.text.lower().split(), n))
            runs.append(self._runs(_WORD.findall(turn.text.lower())))
        mine = np.unique(np.concatenate(runs)) if runs else np.empty(0, np.uint64)
        if script.split == "heldout":
            self._heldout.append(mine)
        else:
            self._train.add(mine)

    def _ids(self, words: list[str]) -> NDArray[np.uint64]:
        numbers = self._numbers
        return np.array([numbers.setdefault(word, len(numbers)) for word in words], np.uint64)

    def _keys(self, words: list[str], n: int) -> NDArray[np.uint64]:
        ids = self._ids(words)
        keys = ids[: max(0, len(ids) - n + 1)]
        for k in range(1, n):
            keys = (keys << np.uint64(_BITS)) | ids[k : k + len(keys)]
        return keys

    def _runs(self, words: list[str]) -> NDArray[np.uint64]:
        """Keys of all runs of LEAK_WORDS words inside one turn."""
        if len(words) < LEAK_WORDS:
            return np.empty(0, np.uint64)
        return np.lib.stride_tricks.sliding_window_view(self._ids(words) + np.uint64(1), LEAK_WORDS) @ _POWERS

    def result(self) -> dict[str, Any]:
        """The figures, for the statistics file; docs/reference/scripts.md explains the keys."""
        many, counts = max(self.scripts, 1), self.counts
        return {
            "scripts": self.scripts,
            "splits": dict(sorted(counts["splits"].items())),
            "scenarios": len(self.scenarios),
            "domains": dict(sorted(counts["domains"].items())),
            "estimated_hours": round(self.seconds / 3600, 3),
            "mean_seconds": round(self.seconds / many, 2),
            "mean_turns": round(self.turns / many, 2),
            "turn_kinds": dict(sorted(counts["turns"].items())),
            "words": dict(sorted(counts["words"].items())),
            "distinct": {str(n): round(keys.distinct(), 4) for n, keys in self._grams.items()},
            "behaviours": dict(sorted(counts["behaviours"].items())),
            "probes": dict(sorted(counts["probes"].items())),
            "facts": dict(sorted(counts["facts"].items())),
            "fact_coverage": round(self.facts_said / self.fact_count, 4) if self.fact_count else None,
            "agent_claims": self.claimed,
            "agent_claims_supported": round(1 - self.unsupported / self.claimed, 4) if self.claimed else None,
            "near_duplicates": self.near_duplicates,
            "heldout_sharing_13_words_with_train": self._leak(),
        }

    def _leak(self) -> float | None:
        if not self._heldout or not len(self._train.unique()):
            return None
        train = self._train.unique()  # The keys are sorted, and far more than one script holds.
        shared = 0
        for mine in self._heldout:
            places = np.minimum(np.searchsorted(train, mine), len(train) - 1)
            shared += bool((train[places] == mine).any())
        return round(shared / len(self._heldout), 4)


class _Keys:
    """A set of 64-bit keys that stays small: duplicates are removed whenever a million new ones have come."""

    def __init__(self) -> None:
        self.total = self._waiting = 0
        self._new: list[NDArray[np.uint64]] = []

    def add(self, keys: NDArray[np.uint64]) -> None:
        self.total += len(keys)
        self._waiting += len(keys)
        self._new.append(keys)
        if self._waiting > _PENDING:
            self.unique()

    def unique(self) -> NDArray[np.uint64]:
        self._new = [np.unique(np.concatenate(self._new))] if self._new else []
        self._waiting = 0
        return self._new[0] if self._new else np.empty(0, np.uint64)

    def distinct(self) -> float:
        """Distinct-n: different n-grams divided by all of them; 0 without any."""
        return len(self.unique()) / max(self.total, 1)


def fact_is_said(fact: Fact, script: Script) -> bool:
    """True if the fact's text is spoken; a "phrase" also counts if half of its long words are."""
    spoken = " ".join(turn.text for turn in script.turns).lower()
    if mentions(spoken, fact.text):
        return True
    words = [word for word in fact.text.lower().split() if len(word) > 3]
    return fact.type == "phrase" and bool(words) and sum(word in spoken for word in words) * 2 >= len(words)


def summary(stats: dict[str, Any]) -> str:
    """The main figures of `ScriptStats.result`, a few lines for the terminal."""
    splits, kinds, words = (Counter(stats[name]) for name in ("splits", "turn_kinds", "words"))
    variety = " / ".join(f"{value:.3f}" for value in stats["distinct"].values())
    lines = [
        f"split: {splits['train']} train, {splits['heldout']} held out, {stats['scenarios']} scenarios",
        f"words: {words['agent']} agent, {words['user']} user; about {stats['estimated_hours']:.2f} h of speech, "
        f"{stats['mean_seconds']:.1f} s and {stats['mean_turns']:.1f} turns a script",
        f"overlap: {kinds['barge_in']} barge-ins, {kinds['backchannel']} backchannels",
        f"distinct-1/2/3: {variety}",
    ]
    if stats["fact_coverage"] is not None:
        lines.append(f"fact coverage: {stats['fact_coverage']:.1%} of the facts used are said")
    if stats["agent_claims_supported"] is not None:
        lines.append(f"agent's numbers and names: {stats['agent_claims_supported']:.2%} were given to it")
    if stats["heldout_sharing_13_words_with_train"] is not None:
        share = stats["heldout_sharing_13_words_with_train"]
        lines.append(f"held-out scripts that share {LEAK_WORDS} words in a row with training ones: {share:.1%}")
    lines += [
        f"{name}: " + ", ".join(f"{what} {count}" for what, count in stats[name].items())
        for name in ("behaviours", "probes")
        if stats[name]
    ]
    if "writing" in stats:
        near, rejected = stats["writing"]["near_duplicates"], stats["writing"]["rejected"]
        lines.append(f"near-duplicates: {near['drawn_again']} drawn again, {near['kept']} kept")
        lines += [f"rejected: {count} x {reason}" for reason, count in rejected["reasons"].items()]
    return "\n".join(lines)
