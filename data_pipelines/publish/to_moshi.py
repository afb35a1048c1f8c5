"""`ppx-data to-moshi`: shards in the format of kyutai-labs/moshi-finetune.

    OUT/train.jsonl, heldout.jsonl        {"path": "data_stereo/ID-left.wav", "duration": seconds}, written last
    OUT/data_stereo/ID-left.wav           24 kHz, 16 bit; the agent is on the left, whatever its side was
    OUT/data_stereo/ID-left.json          {"alignments": [[word, [start, end], "SPEAKER_MAIN"], ...], "ppx": {...}}
    OUT/voices/ID-left.wav                the voice prompt, which moshi-finetune does not use

"ppx" keeps what the format has no place for: role prompts, speakers, licence, masking. Other tools ignore it.
"""

# Shapes: C channels, S samples

import argparse
import io
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
from tqdm import tqdm

from data_pipelines.execution.executor import Executor, executor_of
from data_pipelines.execution.executor import add_arguments as add_executor_arguments
from data_pipelines.files import claim_folder
from data_pipelines.records.provenance import MASKED, is_masked
from data_pipelines.records.schema import SPLITS, Side
from data_pipelines.shards.index import BadSample, ShardReader, open_once
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.sound.audio import Audio
from model.errors import UserError
from model.files import inside, write_bytes

AGENT, USER = "SPEAKER_MAIN", "SPEAKER_USER"
"""How the format names the two parties."""


class SampleJob(NamedTuple):
    """One sample to write, by its row in the shards."""

    name: str
    row: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ppx-data to-moshi`."""
    parser.add_argument("shards", metavar="SHARDS", help="folder or URL of shards, made by `ppx-data shard`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make, or to resume")
    add_executor_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data to-moshi`."""
    counts = export(args.shards, args.out, executor_of(args))
    lists = ", ".join(f"{split}.jsonl {count}" for split, count in counts.items())
    print(f"{args.out}: {lists} files; train with train_data: {args.out / 'train.jsonl'}")


def export(shards: str, out: Path, executor: Executor) -> dict[str, int]:
    """Writes every sample of all splits; returns how many samples the list of each split holds.

    Raises: UserError for shards that are incomplete or damaged, or an `out` that holds something else.
    """
    shards = shards.rstrip("/")
    manifest = read_manifest(shards)
    splits = [split for split in SPLITS if split in manifest.content]
    readers = {split: ShardReader(f"{shards}/{split}", manifest.index.get(split)) for split in splits}
    claim_folder(out, "to-moshi.json", {"shards": manifest.inputs}, "to-moshi")
    for folder in ("data_stereo", "voices"):
        (out / folder).mkdir(exist_ok=True)
    counts = {}
    for split, reader in readers.items():
        work = partial(_write, shards=f"{shards}/{split}", sha256=reader.sha256, out=out)
        jobs = [SampleJob(f"{row.id}-{row.side}", n) for n, row in enumerate(reader.rows)]
        done = list(tqdm(executor.run(work, jobs), total=len(jobs), desc=split, unit="sample", disable=None))
        lines = [json.dumps(entry, sort_keys=True) + "\n" for entry in sorted(done, key=lambda entry: entry["path"])]
        write_bytes(out / f"{split}.jsonl", "".join(lines).encode())
        counts[split] = len(lines)
    return counts


def _write(job: SampleJob, shards: str, sha256: str, out: Path) -> dict[str, Any]:
    """Writes one sample, its JSON last, and returns its line of the list. A sample whose JSON is there is complete."""
    reader, row = open_once(shards, sha256), job.row
    try:
        dialogue, (audio_CS, rate) = reader.dialogue(row), reader.audio(row)
        voice_CS, voice_rate = reader.voice_clip(row)
    except BadSample as why:
        raise UserError(str(why), code=why.code) from why
    side = reader.rows[row].side
    agent, user = dialogue.side(side), dialogue.side("right" if side == "left" else "left")
    name = f"{dialogue.id}-{side}"
    line = {"path": f"data_stereo/{name}.wav", "duration": audio_CS.shape[1] / rate}
    wav, voice, words_file = (inside(out, part) for part in (
        f"data_stereo/{name}.wav", f"voices/{name}.wav", f"data_stereo/{name}.json"))  # fmt: skip
    if not words_file.is_file():
        write_bytes(wav, _wav(audio_CS if side == "left" else audio_CS[::-1], rate))
        write_bytes(voice, _wav(voice_CS, voice_rate))
        words = [
            [word.text, [word.start, word.end], label]
            for label, own in ((AGENT, agent), (USER, user))
            for word in own.words
        ]
        words.sort(key=lambda word: (word[1], word[2]))  # moshi-finetune searches the list by start
        facts: dict[str, Any] = {
            "id": dialogue.id,
            "source": dialogue.source,
            "licence": dialogue.licence,
            "split": dialogue.split,
        }
        if is_masked(dialogue.provenance):
            facts[MASKED] = dialogue.provenance[MASKED]
        facts |= {"left": _facts(agent) | {"voice": f"voices/{name}.wav"}, "right": _facts(user)}
        record = {"alignments": words, "ppx": facts}
        write_bytes(words_file, json.dumps(record, ensure_ascii=False, sort_keys=True).encode())
    return line


def _facts(side: Side) -> dict[str, Any]:
    return {"speaker": side.speaker, "role_prompt": side.role_prompt, "prompt_level": side.prompt_level}


def _wav(audio_CS: Audio, rate: int) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, audio_CS.T, rate, subtype="PCM_16", format="WAV")
    return data.getvalue()
