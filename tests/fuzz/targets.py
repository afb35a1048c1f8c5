"""The readers of foreign files, each with whole files to damage."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from safetensors.torch import save

from data_pipelines.llm.answers import judge
from data_pipelines.llm.client import _kept
from data_pipelines.llm.settings import FORMATS
from data_pipelines.recordings.fisher import sphere, timed_lines
from data_pipelines.recordings.transcripts import read_transcript
from data_pipelines.records.folder import GATES, ROLES, load_dialogue
from data_pipelines.records.schema import read_scripts
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import BadSample, ShardReader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.scan import build_index
from data_pipelines.sound.audio import read_audio
from data_pipelines.speech.voices import load_pool
from model.mimi.files import load_mimi, save_mimi
from model.text import TextTokenizer
from model.weights.checkpoint import read_config
from model.weights.tensor_files import read_header
from model.weights.voices import read_pickle
from ppx_train.config.load import load, load_saved
from ppx_train.config.run import Run
from ppx_train.inference.sidecar import read_sidecar
from ppx_train.training.checkpoint import FILE, language_model, read_checkpoint
from ppx_train.voices.folder import check_voices
from ppx_train.voices.voice_file import VoiceFile, read_texts, read_voice
from tests.data_pipelines.llm.asking import question
from tests.data_pipelines.tiny_dialogues import TinyCodec, noise, write_dialogue
from tests.fuzz.engine import Target
from tests.fuzz.mutate import Mutation, any_bytes, header_file, json_file, json_lines, same_size, text_file
from tests.model.mimi.test_mimi import tiny_codec
from tests.paths import GOLDEN
from tests.ppx_train.fixtures import run_arguments, sidecar_of
from tests.ppx_train.inference.noise import CONFIG

SCRIPT = {
    "id": "a", "source": "service", "split": "train", "scenario": "s", "role_prompt": "You.",
    "turns": [{"speaker": "agent", "text": "Hello.", "kind": "normal"}, {"speaker": "user", "text": "Hi."}],
    "facts": [{"type": "name", "text": "You"}], "probes": [{"kind": "Q0", "turn": 1}], "provenance": {"writer": "x"},
}  # fmt: skip
WORDS = [{"text": "hello", "start": 0.1, "end": 0.4}, {"text": "there", "start": 0.5, "end": 0.9}]
TRANSCRIPTS: tuple[Any, ...] = (
    {"alignments": [["hello", [0.1, 0.4], "SPEAKER_MAIN"], ["there", [0.5, 0.9], "SPEAKER_MAIN"]]},
    {"left": WORDS, "right": {"text": "yes"}},
    [{"speaker": "A", "text": "hello there", "start": 0.1, "end": 0.9, "words": WORDS, "backchannels": WORDS[:1]}],
)
ROLE = {"format": 1, "left": {"prompt": "You.", "level": "topic"}, "rejected": {"right": "why"}, "provenance": {}}
GATE = {"format": 1, "values": {"dc": 0.01}, "rejected": [], "limits": {"dc": 0.1}, "engines": {"asr": {"name": "x"}}}
BODIES: tuple[Any, ...] = tuple(
    {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11},
    }
    for content in ('{"city": "Oslo"}', "<think>{</think> Here: {\"city\": \"Oslo\"}")
)  # fmt: skip
FISHER = (
    b"# fe_03_00001.sph\n# Transcribed at the LDC\n\n0.50 2.10 A: hello [laughter] how are y-\n\n"
    b"2.00 3.10 B: (( fine )) thanks\n3.50 6.00 A: i work for i._b._m.\n"
)
SRT = b"1\n00:00:00,100 --> 00:00:00,900\nA: hello\n\n2\n00:00:01,000 --> 00:00:01,900\nB: hi\n"


def targets(folder: Path) -> list[Target]:
    """All targets; damaged files are written into `folder`."""
    dialogues = folder / "dialogues"
    write_dialogue(dialogues, "talk", seconds=2.0, agents=("left", "right"))
    build_shards([dialogues], TinyCodec(), folder / "shards")
    train, talk = folder / "shards" / "train", dialogues / "talk"
    tar = next(train.glob("*.tar"))
    for path in (tar, train / "index.safetensors", folder / "shards" / "manifest.json"):
        path.chmod(0o644)

    def at(place: Path, read: Callable[[Path], bool | None]) -> Callable[[bytes], bool | None]:
        """The reader of a file at `place`."""
        place.parent.mkdir(parents=True, exist_ok=True)

        def written(data: bytes) -> bool | None:
            place.write_bytes(data)
            return read(place)

        return written

    def whole_again(place: Path, read: Callable[[bytes], bool | None]) -> Callable[[bytes], bool | None]:
        """Puts the former bytes back after each case, or removes the file, as targets share folders."""
        former = place.read_bytes() if place.exists() else None

        def restored(data: bytes) -> bool | None:
            try:
                return read(data)
            finally:
                place.unlink() if former is None else place.write_bytes(former)

        return restored

    def samples(_: Path) -> bool:
        reader, skipped = ShardReader(train), 0
        for row in range(len(reader)):
            for read in (reader.read, reader.codes, reader.dialogue, reader.audio, reader.voice_clip):
                try:
                    read(row)
                except BadSample:
                    skipped += 1
        return not skipped

    def indexed(_: Path) -> bool:
        former = (train / "index.safetensors").read_bytes()
        try:
            build_index(train)
            return samples(tar)
        finally:
            (train / "index.safetensors").write_bytes(former)

    def answered(path: Path) -> bool:
        """As the client does it: what is no chat completion is asked for again, and a bad answer has its faults."""
        try:
            answer = _kept(path.read_bytes().decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return False
        for answer_format in FORMATS:
            verdict = judge(answer, question(), answer_format)
            "".join(verdict.problems).encode("utf-8", "surrogatepass")
        json.dumps(asdict(answer), ensure_ascii=False).encode()
        return True

    def config(path: Path) -> None:
        read_config(path)

    def sidecar(path: Path) -> None:
        found = read_sidecar(path.parent)
        assert found is not None
        found.lm_config("lm")

    def state(path: Path) -> None:
        language_model(read_checkpoint(path.parent))

    def codec(path: Path) -> None:
        codec = load_mimi(path)
        codec.decode(codec.encode(torch.zeros(1, 1, codec.config.frame_samples)))
        codec.constants()

    def tokenizer(path: Path) -> None:
        pieces = TextTokenizer(path)
        pieces.decode(pieces.encode("hello there"))
        pieces.piece(pieces.card - 1).encode()

    def pool(path: Path) -> None:
        found = load_pool(path)
        for voice in found.voices("chatterbox"):
            found.audio(voice.key.removeprefix("chatterbox/"))

    def voice(path: Path) -> None:
        """As the server, `ppx-voice list` and `check` read it."""
        for _, faults in check_voices(path.parent, CONFIG, "ab" * 32):
            assert all(len(str(fault).splitlines()) == 1 for fault in faults)
        read_texts(path)
        read_voice(path, CONFIG)

    def target(name: str, place: Path, files: list[bytes], mutate: Mutation, read: Callable[[Path], Any]) -> Target:
        def quiet(path: Path) -> bool | None:
            return False if read(path) is False else None

        reader = whole_again(place, at(place, quiet))
        return Target(name=name, files=files, mutate=mutate, read=reader)

    bytes_of = Path.read_bytes
    run = load(run_arguments(folder, folder / "run"))
    saved = run.to_yaml().encode()
    # Most of the time that reading a recipe takes goes into its groups.
    recipe = replace(run, groups=dict(sorted(run.groups.items())[:1])).to_yaml().encode()
    checkpoint = io.BytesIO()
    torch.save(
        {"global_step": 3, "epoch": 0, "state_dict": {"lm.a": torch.ones(40, 3), "lm.b": torch.ones(2)}}, checkpoint
    )
    pcm, bare = noise(0.3, 0.1, 1), save({"codes": torch.ones(8, 30, dtype=torch.int16)}, {"label": "V"})
    sealed = VoiceFile(
        id="voice", label="V", licence="CC0-1.0", consent="yes", codec="ab" * 32, codes_QP=torch.ones(8, 30).long()
    ).to_bytes()
    pickled = io.BytesIO()
    torch.save({"embeddings": torch.ones(30, 1, 1, 8), "cache": torch.ones(1, 17, 4, dtype=torch.long)}, pickled)
    sounds = []
    for kind, subtype in (("FLAC", "PCM_16"), ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("AU", "ULAW"), ("OGG", "VORBIS")):
        sound = io.BytesIO()
        soundfile.write(sound, pcm, 24_000, format=kind, subtype=subtype)
        sounds.append(sound.getvalue())
    clips = write_clips(folder / "clips")
    spheres = []
    for coding in ("ulaw", sphere.SHORTEN_CODING):
        sphere.write_sphere(folder / "one.sph", np.stack([pcm[:2000], pcm[:2000]], 1), coding=coding)  # type: ignore[arg-type]
        spheres.append(bytes_of(folder / "one.sph"))
    return [
        target("shard-in-place", tar, [bytes_of(tar)], same_size, samples),
        target("shard-tar", tar, [bytes_of(tar)], any_bytes, indexed),
        target("index", train / "index.safetensors", [bytes_of(train / "index.safetensors")], any_bytes, samples),
        target("index-header", train / "index.safetensors", [bytes_of(train / "index.safetensors")], header_file,
               samples),
        target("manifest", folder / "shards" / "manifest.json", [bytes_of(folder / "shards" / "manifest.json")],
               json_file, lambda path: read_manifest(path.parent)),
        target("checkpoint", folder / "state" / FILE, [checkpoint.getvalue()], any_bytes, state),
        target("saved-config", folder / "saved.yaml", [saved], text_file, lambda path: load_saved(path, Run)),
        target("recipe", folder / "own.yaml", [recipe], text_file, lambda path: load([f"recipe={path}"])),
        target("recipe-values", folder / "values.yaml", [json.dumps(_plain(recipe)).encode()], json_file,
               lambda path: load([f"recipe={path}"])),
        target("personaplex-json", folder / "model" / "personaplex.json",
               [json.dumps(sidecar_of(CONFIG).to_json()).encode()], json_file, sidecar),
        target("config-json", folder / "model" / "config.json",
               [json.dumps(sidecar_of(CONFIG).to_json()["lm"]).encode()], json_file, config),
        target("weights", folder / "weights.safetensors", [save({"a": torch.ones(3, 2)})], header_file, read_header),
        target("scripts", folder / "scripts.jsonl", [b"\n".join([json.dumps(SCRIPT).encode()] * 3)], json_lines,
               read_scripts),
        target("meta", talk / "meta.json", [bytes_of(talk / "meta.json")], json_file,
               lambda path: load_dialogue(path.parent)),
        target("roles", talk / ROLES, [json.dumps(ROLE).encode()], json_file, lambda path: load_dialogue(path.parent)),
        target("gates", talk / GATES, [json.dumps(GATE).encode()], json_file, lambda path: load_dialogue(path.parent)),
        target("llm-body", folder / "body.json", [json.dumps(body).encode() for body in BODIES], json_file, answered),
        target("transcript-json", folder / "words.json", [json.dumps(one).encode() for one in TRANSCRIPTS],
               json_file,
               lambda path: read_transcript(path, None)),
        target("transcript-srt", folder / "words.srt", [SRT], text_file, lambda path: read_transcript(path, None)),
        target("transcript-fisher", folder / "words.txt", [FISHER], text_file,
               lambda path: timed_lines.read_transcript(path, "00001")),
        target("sphere", folder / "call.sph", spheres, any_bytes, sphere.decode),
        target("sound", folder / "sound.wav", sounds, any_bytes, read_audio),
        target("voice", folder / "voices" / "voice.safetensors", [bare, sealed], header_file, voice),
        target("voice-pickled", folder / "voice.pt", [pickled.getvalue()], any_bytes, read_pickle),
        target("voices-yaml", clips, [bytes_of(clips)], text_file, pool),
        target("voices-values", clips, [json.dumps(_plain(bytes_of(clips))).encode()], json_file, pool),
        target("codec", folder / "mimi.safetensors", [bytes_of(save_mimi(tiny_codec(), folder / "codec"))],
               header_file, codec),
        target("tokenizer", folder / "text.model", [bytes_of(GOLDEN / "training/tokenizer.model")], any_bytes,
               tokenizer),
    ]  # fmt: skip


def write_clips(folder: Path) -> Path:
    """A list of voices with three clips, of which the last states no checksum; returns its path."""
    folder.mkdir()
    entries = []
    for n in range(3):
        soundfile.write(folder / f"{n}.flac", noise(3.2, 0.1, n), 16_000, subtype="PCM_16")
        entries.append(
            {
                "path": f"{n}.flac", "speaker": f"anna-{n}", "sex": "female", "accent": "us", "licence": "CC-BY-4.0",
                "consent": "release of 2026-03-01", "held_out": n == 1,
                "sha256": sha256((folder / f"{n}.flac").read_bytes()).hexdigest(),
            }
        )  # fmt: skip
    del entries[2]["sha256"], entries[2]["held_out"]
    (folder / "voices.yaml").write_text(yaml.safe_dump({"voices": entries, "rejected": {}}, sort_keys=False))
    return folder / "voices.yaml"


def _plain(text: bytes) -> Any:
    return yaml.safe_load(text)
