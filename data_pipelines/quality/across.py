"""What only the whole set shows: duplicates, text and names of training dialogues in held-out ones, foreign roles.

The second pass of `ppx-data gate` is pure arithmetic over one small record a dialogue, in the order of their ids, so
that the result does not depend on the order in which they were measured.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.quality.gates import Limits
from data_pipelines.text.minhash import HASHES, Keys, Runs, jaccard
from data_pipelines.text.words import normal_words

RUN_WORDS = 13
"""Words of a run, as usual in tests for test data that leaked into training data."""
BANDS, ROWS = 32, HASHES // 32
"""Two texts that share half of their runs have an equal sketch in one of the 32 bands of 4 hashes with 87 %
probability, those that share 0.7 with 99.98 %."""
_RUNS = Runs(RUN_WORDS, multiplier=6_364_136_223_846_793_005, seed=13, first=1)


@dataclass(kw_only=True, frozen=True)
class Record:
    """What the second pass needs to know about a dialogue."""

    id: str
    split: str
    scenario: str
    companies: Sequence[str]
    speakers: Sequence[str]
    text: str
    audio_sha256: str


@dataclass
class Finding:
    """The values that one dialogue has by comparison with the others, and the reasons to reject it."""

    values: dict[str, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def judge(self, limits: Limits, name: str, value: float, detail: str) -> None:
        """Stores a value and, if it breaks its limit, the reason, which ends with what it was compared with."""
        self.values[name] = round(value, 4)
        if why := limits.breach(name, value):
            self.reasons.append(f"{why}: {detail}")


def compare(records: Iterable[Record], limits: Limits) -> dict[str, Finding]:
    """Compares dialogues that no gate of their own rejects; returns the findings by id.

    Of dialogues with the same audio or nearly the same text, the one with the first id stays. Of a held-out dialogue
    and the training dialogues that it shares something with, the training dialogues stay.
    """
    ordered = sorted(records, key=lambda record: record.id)
    findings = {record.id: Finding() for record in ordered}
    _foreign_roles(ordered, findings, limits)
    kept = [record for record in ordered if not findings[record.id].reasons]
    runs = {record.id: _RUNS.keys(record.text.split()) for record in kept}
    _duplicates(kept, runs, findings, limits)
    kept = [record for record in kept if not findings[record.id].reasons]
    train = [record for record in kept if record.split == "train"]
    heldout = [record for record in kept if record.split != "train"]
    _leaks(train, heldout, runs, findings, limits)
    return findings


def _duplicates(
    records: Sequence[Record], runs: Mapping[str, Keys], findings: Mapping[str, Finding], limits: Limits
) -> None:
    audio: dict[str, str] = {}
    kept: dict[tuple[int, int], list[str]] = defaultdict(list)  # ids by (band, key), for keys of several texts
    for record, keys in zip(records, _meeting_keys([runs[record.id] for record in records]), strict=True):
        finding, mine = findings[record.id], runs[record.id]
        likeness = {other: jaccard(mine, runs[other]) for key in keys for other in kept.get(key, ())}
        nearest = min(likeness, key=lambda other: (-likeness[other], other), default="")
        finding.judge(limits, "shared_text", likeness.get(nearest, 0.0), nearest)
        same = audio.setdefault(record.audio_sha256, record.id)
        finding.judge(limits, "same_audio", float(same != record.id), same)
        if not finding.reasons:
            for key in keys:
                kept[key].append(record.id)


def _meeting_keys(texts: Sequence[Keys]) -> Iterator[list[tuple[int, int]]]:
    """Yields for each text the (band, key) pairs that another text has, too."""
    keys = np.zeros((len(texts), BANDS), np.uint64)
    for n, runs in enumerate(texts):
        if len(runs):
            keys[n] = _RUNS.sketch(runs).reshape(BANDS, ROWS) @ _RUNS.powers[1 : ROWS + 1]
    meets = np.zeros(keys.shape, bool)
    for band in range(BANDS):
        _, place, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        meets[:, band] = counts[place] > 1
    for n, runs in enumerate(texts):
        yield [(int(b), int(keys[n, b])) for b in np.flatnonzero(meets[n])] if len(runs) else []


def _leaks(
    train: Sequence[Record],
    heldout: Sequence[Record],
    runs: Mapping[str, Keys],
    findings: Mapping[str, Finding],
    limits: Limits,
) -> None:
    """Finds what held-out dialogues have in common with training dialogues."""
    if not heldout:
        return
    wanted = np.unique(np.concatenate([runs[record.id] for record in heldout] + [np.zeros(1, np.uint64)]))
    found = np.zeros(len(wanted), bool)
    for record in train:
        place = np.minimum(np.searchsorted(wanted, runs[record.id]), len(wanted) - 1)
        found[place[wanted[place] == runs[record.id]]] = True
    scenarios = {record.scenario for record in train}
    companies = {company for record in train for company in record.companies}
    speakers = {speaker for record in train for speaker in record.speakers}
    leaked = wanted[found]
    for record in heldout:
        finding, mine = findings[record.id], runs[record.id]
        share = float(np.isin(mine, leaked).mean()) if len(mine) else 0.0
        finding.judge(limits, "leaked_text", share, f"{len(train)} dialogues")
        common: tuple[tuple[str, Sequence[str], set[str]], ...] = (
            ("leaked_scenario", [record.scenario], scenarios),
            ("leaked_company", record.companies, companies),
            ("leaked_voice", record.speakers, speakers),
        )
        for name, own, others in common:
            shared = sorted(set(own) & others)
            finding.judge(limits, name, len(shared), ", ".join(shared))


def _foreign_roles(records: Sequence[Record], findings: Mapping[str, Finding], limits: Limits) -> None:
    """Finds companies of other dialogues' roles that are named as if the agent had another dialogue's prompt."""
    names: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for record in records:
        for company in record.companies:
            if len(name := tuple(normal_words(company))) > 1:  # a name of one word may be any word
                names[name[0]].add(name)
    for record in records:
        if not record.companies:
            continue
        mine = {tuple(normal_words(company)) for company in record.companies}
        words = record.text.split()
        said = {
            name
            for n, word in enumerate(words)
            for name in names.get(word, ())
            if name not in mine and tuple(words[n : n + len(name)]) == name
        }
        detail = ", ".join(sorted(" ".join(name) for name in said))
        findings[record.id].judge(limits, "foreign_companies", len(said), detail)
