"""The content of a report, gathered in one pass over dialogues, without their audio.

Only for a few dialogues the place of the audio is kept. Numbers are kept in arrays of 4 bytes each.
"""

# Shapes: C channels, S samples

import hashlib
import json
import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappush, heappushpop
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.quality.teaching.collected import Audit
from data_pipelines.quality.teaching.lesson import Lesson, without_backchannels
from data_pipelines.records.folder import find_dialogues, load_dialogue, rejections
from data_pipelines.records.provenance import engines_of, gate_limits_of
from data_pipelines.records.schema import SIDES, SPLITS, Dialogue, Script, Turn
from data_pipelines.records.turn_taking import TurnTaking, turn_taking
from data_pipelines.records.turns import group_turns
from data_pipelines.shards.index import BadSample, ShardReader
from data_pipelines.shards.manifest import NAME as MANIFEST
from data_pipelines.shards.manifest import stated_index
from data_pipelines.shards.rows import NAME as INDEX
from data_pipelines.shards.scan import split_folders
from data_pipelines.sound.audio import RATE_HZ, Audio, loudness, require_stereo_24k
from model.errors import UserError
from model.files import check_link

LOUDNESS_SAMPLES = 60
"""How many dialogues the loudness is measured of where no gate has measured it."""


@dataclass(frozen=True)
class LazyDialogue:
    """A dialogue whose audio is read only when it is needed."""

    dialogue: Dialogue
    audio: Callable[[], tuple[Audio, int]]
    """Returns float32 [2, samples] and the rate in Hz."""


class Numbers(defaultdict[str, "array[float]"]):
    """Lists of numbers by name."""

    def __init__(self) -> None:
        """A name that is not there has an empty list."""
        super().__init__(lambda: array("f"))


@dataclass
class Group:
    """All dialogues of one source of one split."""

    dialogues: int = 0
    samples: int = 0
    seconds: float = 0.0
    agent_words: int = 0
    agent_seconds: float = 0.0
    """Seconds of the samples; a call between equals counts twice."""
    voices: set[str] = field(default_factory=set)
    turns: TurnTaking = field(default_factory=TurnTaking)
    without_words: int = 0
    """Dialogues left out of the turn taking, because one side has no word times."""
    lists: Numbers = field(default_factory=Numbers)
    """Lists of numbers: seconds, prompt (words), offset, overlap, turn."""

    @property
    def words_per_minute(self) -> float:
        """Words of the agents in a minute of their samples."""
        return 60 * self.agent_words / self.agent_seconds if self.agent_seconds else 0.0


@dataclass
class Content:
    """Everything that a report shows about some shards or folders."""

    names: list[str]
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    hours: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    """Hours by kind ("voice", "domain", "licence", "level"), then by name."""
    engines: Counter[str] = field(default_factory=Counter)
    gates: Numbers = field(default_factory=Numbers)
    limits: dict[str, set[float | None]] = field(default_factory=lambda: defaultdict(set))
    """Limits of the gates, as stored with the dialogues: several where sources were judged by different ones."""
    rejected: Counter[str] = field(default_factory=Counter)
    audits: dict[str, Audit] = field(default_factory=dict)
    """What the talk teaches, by source."""
    examples: list[LazyDialogue] = field(default_factory=list)
    lufs: Numbers = field(default_factory=Numbers)
    """Loudness in LUFS: left, right."""
    lufs_of: str = ""
    """Which dialogues the loudness is measured of."""
    unreadable: int = 0
    """Dialogues that cannot be read."""

    def sources(self) -> list[str]:
        """The names of all sources, sorted."""
        return sorted({source for _, source in self.groups})

    def merged(self, source: str, name: str) -> "array[float]":
        """One list of numbers of a source, over both splits."""
        return sum((g.lists[name] for (_, src), g in self.groups.items() if src == source), array("f"))


def collect(paths: Sequence[Path], num_examples: int = 0, seed: int = 0) -> Content:
    """Reads every dialogue of shards and of dialogue folders once; those that a gate rejects are only counted.

    The examples depend on the seed and the ids alone.
    Raises: UserError if a path is neither, if both kinds are given, or if nothing can be read.
    """
    content = Content(names=[str(path) for path in paths])
    shards, folders = [p for p in paths if is_shards(p)], [p for p in paths if not is_shards(p)]
    if shards and folders:  # a dialogue that lies in both would count twice
        raise UserError(
            f"{shards[0]} holds shards and {folders[0]} does not: report on one kind at a time", code="bad-combination"
        )
    kept = max(num_examples, LOUDNESS_SAMPLES)
    heap: list[tuple[int, int, LazyDialogue]] = []  # the dialogues with the smallest hashes
    count = 0
    for path in paths:
        _count_rejected(content, path)
        for entry in tqdm(entries(path, content), desc=f"read {path.name}", unit="dialogue", disable=None):
            _count(content, entry.dialogue)
            key = int(hashlib.sha256(f"{seed}/{entry.dialogue.id}".encode()).hexdigest()[:15], 16)
            (heappush if len(heap) < kept else heappushpop)(heap, (-key, count := count + 1, entry))
    if not content.groups:
        reasons = [f"rejected for {why} {count}" for why, count in content.rejected.most_common(3)]
        reasons += [f"unreadable {content.unreadable}: see `ppx-data gate`"] if content.unreadable else []
        raise UserError(
            f"{', '.join(content.names)}: no dialogue is left to report on ({', '.join(reasons)})", code="no-data"
        )
    chosen = [entry for _, _, entry in sorted(heap, key=lambda item: (-item[0], item[1]))]
    content.examples = chosen[:num_examples]
    _loudness(content, chosen)
    return content


def is_shards(path: Path) -> bool:
    """Whether the folder holds shards, finished or not, rather than dialogues."""
    return any((path / name).is_file() for name in (MANIFEST, INDEX, *(f"{split}/{INDEX}" for split in SPLITS)))


def entries(path: Path, content: Content) -> Iterator[LazyDialogue]:
    """Yields the dialogues of SHARDS or of a folder of dialogues; counts in `content` what cannot be read."""
    if is_shards(path):
        for folder in split_folders(path):
            yield from _shard_entries(ShardReader(folder, stated_index(folder)), content)
        return
    for folder in find_dialogues([path]):
        try:
            if reasons := rejections(folder):
                content.rejected.update({f"gate: {reason.split(':')[0]}" for reason in reasons})
                continue
            yield LazyDialogue(load_dialogue(folder), partial(_folder_audio, folder))
        except UserError:
            content.unreadable += 1


def _folder_audio(folder: Path) -> tuple[Audio, int]:
    return require_stereo_24k(folder / "audio.flac"), RATE_HZ


def _shard_entries(reader: ShardReader, content: Content) -> Iterator[LazyDialogue]:
    seen: set[str] = set()
    for i in range(len(reader)):
        id = reader.rows[i].id
        if id in seen:
            continue
        seen.add(id)
        try:
            yield LazyDialogue(reader.dialogue(i), partial(reader.audio, i))
        except BadSample:
            content.unreadable += 1


def _count(content: Content, dialogue: Dialogue) -> None:
    group = content.groups.setdefault((dialogue.split, dialogue.source), Group())
    hours = dialogue.seconds / 3600
    group.dialogues += 1
    group.seconds += dialogue.seconds
    group.lists["seconds"].append(dialogue.seconds)
    for name in dialogue.agent_sides:
        side = dialogue.side(name)
        group.samples += 1
        group.agent_words += len(side.words)
        group.agent_seconds += dialogue.seconds
        group.voices.add(side.speaker)
        group.lists["prompt"].append(len(side.role_prompt.split()))
        content.hours["voice"][side.speaker] += hours
        content.hours["level"][side.prompt_level or ("prompt" if side.role_prompt else "no prompt")] += hours
    content.hours["domain"][domain(dialogue)] += hours
    content.hours["licence"][dialogue.licence] += hours
    content.engines.update(engines_of(dialogue.provenance))
    for name, value in dialogue.gates.items():
        if math.isfinite(value):
            content.gates[name].append(value)
    for name, limit in gate_limits_of(dialogue.provenance).items():
        if limit is None or isinstance(limit, (int, float)):
            content.limits[name].add(limit)
    if dialogue.left.words and dialogue.right.words:
        turns = turn_taking(dialogue)
        group.turns.add(turns)
        for name, found in (("offset", turns.offsets), ("overlap", turns.overlaps), ("turn", turns.turns)):
            group.lists[name].extend(found)
    else:
        group.without_words += 1
    content.audits.setdefault(dialogue.source, Audit()).add(spoken(dialogue))


def domain(dialogue: Dialogue) -> str:
    """The first part of the scenario, e.g. "service/restaurant" of "service/restaurant/pizza", else the source."""
    parts = [part for part in dialogue.scenario.split("/") if part and part != dialogue.source]
    return f"{dialogue.source}/{parts[0]}" if parts else dialogue.source


def spoken(dialogue: Dialogue) -> Lesson:
    """A dialogue with what its script said of it."""
    written = dialogue.provenance.get("script")
    script = replace(
        as_script(without_backchannels(dialogue)),
        probes=dialogue.probes,
        provenance=dict(written) if isinstance(written, Mapping) else {},
    )
    return Lesson(script=script, domain=domain(dialogue), dialogue=dialogue)


def as_script(dialogue: Dialogue) -> Script:
    """What is said, as a script; the left side counts as the agent where both sides are."""
    agent = dialogue.agent_sides[0]
    turns = [
        (turn[0].start, side, " ".join(word.text for word in turn))
        for side in SIDES
        for turn in group_turns(dialogue.side(side).words)
    ]
    return Script(
        id=dialogue.id,
        source=dialogue.source,
        split=dialogue.split,
        scenario=dialogue.scenario,
        role_prompt=dialogue.side(agent).role_prompt,
        turns=tuple(Turn(speaker="agent" if side == agent else "user", text=text) for _, side, text in sorted(turns)),
        facts=dialogue.facts,
    )


def _count_rejected(content: Content, path: Path) -> None:
    """Counts what a stage left out, as its OUT/report.json lists it."""
    report = path / "report.json"
    check_link(path, report.name)
    try:
        for item in json.loads(report.read_text("utf-8"))["rejected"] if report.is_file() else ():
            content.rejected.update(reason_kinds(str(item["reason"])))
    except (ValueError, KeyError, TypeError, RecursionError) as why:
        raise UserError(
            f"{report} is not the report of a stage ({type(why).__name__} {why}): make it again", code="bad-record"
        ) from why


def reason_kinds(reason: str) -> set[str]:
    """The kinds that a rejection counts as: every gate that failed, or its reason without paths, numbers and names."""
    if reason.startswith("gate "):
        return {f"gate: {part.split(':')[0]}" for part in reason.removeprefix("gate ").split("; ")}
    reason = re.sub(r"^\S*/\S*:\s+", "", reason)
    reason = re.sub(r"'[^']*'", "'...'", reason)
    return {re.sub(r"-?\d+(\.\d+)?", "N", reason)}


def _loudness(content: Content, chosen: Sequence[LazyDialogue]) -> None:
    """Takes the loudness from the gates if they have measured it, else measures it of some dialogues."""
    if content.gates.get("lufs_left"):
        for side in SIDES:
            content.lufs[side] = content.gates[f"lufs_{side}"]
        content.lufs_of = f"{len(content.lufs['left'])} dialogues"
        return
    for entry in chosen[:LOUDNESS_SAMPLES]:
        try:
            audio_CS, rate = entry.audio()
        except UserError:
            continue
        for side, channel in zip(SIDES, audio_CS, strict=True):
            if len(channel) >= 0.4 * rate and np.isfinite(lufs := loudness(channel, rate)):
                content.lufs[side].append(lufs)
    content.lufs_of = f"{min(len(chosen), LOUDNESS_SAMPLES)} of all dialogues, chosen at random"


def total_turns(content: Content, sources: Sequence[str]) -> TurnTaking:
    """The turn taking of some sources added up."""
    total = TurnTaking()
    for (_, source), group in content.groups.items():
        if source in sources:
            total.add(group.turns)
    return total
