"""Small shards for training tests: random audio coded by the small golden codec, invented words, a real tokenizer."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_pipelines.records.schema import Dialogue, Side, Word
from data_pipelines.shards import encode
from data_pipelines.sound.audio import write_flac
from model.config import LMConfig
from model.duplex import DuplexLM
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from model.weights.checkpoint import config_to_dict
from ppx_train.config.load import load
from ppx_train.config.run import Run
from ppx_train.inference.sidecar import Origin, PromptFormat, Sidecar
from ppx_train.training.build import base_lm, fingerprint, trainable_lm
from ppx_train.training.checkpoint import BASE, FILE, FILES, read_checkpoint
from ppx_train.training.origin import KEY, origin
from ppx_train.training.saved_tensors import Part, file_name, split, whole_tensors, write_tensors
from tests.model.golden import GOLDEN

RATE = 24000
WORDS = "please could you tell me about the waste pickup schedule it is every other week on april twelfth".split()


def make_codec(path: Path) -> Path:
    """The golden codec (64 codes, random weights) as a codec file."""
    with safe_open(GOLDEN / "mimi_small.safetensors", "pt") as file:
        weights = {key[8:]: file.get_tensor(key) for key in file.keys() if key.startswith("weights.")}
        save_file(weights, path, metadata={"config": file.metadata()["config"]})
    return path


def make_tokenizer(path: Path) -> Path:
    """A SentencePiece model of 300 pieces (256 of them bytes)."""
    lines = [" ".join(np.random.default_rng(n).permutation(WORDS)) for n in range(200)]
    lines += ["<system> You work for CitySan which is a waste management and your name is Ayelen. <system>"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(path.with_suffix("")), vocab_size=320, byte_fallback=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return path


def make_dialogue(folder: Path, name: str, source: str, split: str, seconds: float, both: bool, seed: int) -> None:
    """One dialogue folder: tones that change with every word on the left, noise on the right."""
    rng = np.random.default_rng(seed)
    out = folder / name
    out.mkdir(parents=True)
    times = np.arange(int(seconds * RATE)) / RATE
    words, left = [], np.zeros_like(times)
    at = 0.4
    while at + 0.3 < seconds:
        words.append(Word(text=str(rng.choice(WORDS)), start=round(at, 2), end=round(at + 0.28, 2)))
        inside = (times >= at) & (times < at + 0.28)
        left[inside] = 0.3 * np.sin(2 * np.pi * rng.uniform(150, 900) * times[inside])
        at += rng.uniform(0.35, 0.7)
    right = 0.05 * rng.standard_normal(len(times))
    clip = 0.2 * np.sin(2 * np.pi * rng.uniform(120, 400) * times[: 3 * RATE])
    write_flac(out / "audio.flac", np.stack([left, right]).astype(np.float32), RATE)
    speaker = "a" if both else "espeak/a"
    sides = {"left": Side(speaker=speaker, words=tuple(words), is_agent=True, role_prompt="You work for CitySan.")}
    sides["right"] = Side(speaker="b", words=tuple(words) if both else (), is_agent=both)
    for side in ("left", "right") if both else ("left",):
        write_flac(out / f"{side}.voice.flac", clip.astype(np.float32), RATE)
    dialogue = Dialogue(
        id=name,
        source=source,
        split=split,
        scenario=name,
        seconds=len(times) / RATE,
        licence="CC0-1.0",
        left=sides["left"],
        right=sides["right"],
        provenance={"recorded": True} if both else {"engine": {"name": "espeak"}},
    )
    (out / "meta.json").write_text(dialogue.to_json(), "utf-8")


def make_shards(folder: Path, dialogues: int = 12) -> Path:
    """Codec, tokenizer and shards of two sources in `folder`; returns the shards' path."""
    codec = make_codec(folder / "codec.safetensors")
    make_tokenizer(folder / "tokenizer.model")
    for n in range(dialogues):
        source = "fisher" if n % 3 == 0 else "service"
        split = "heldout" if n >= dialogues - 3 else "train"
        make_dialogue(folder / "dialogues", f"{source}-{n:03d}", source, split, 3.5 + (n % 5) * 0.7, n % 3 == 0, n)
    arguments = ["--dialogues", str(folder / "dialogues"), "--codec", str(codec), "--out", str(folder / "shards")]
    parser = argparse.ArgumentParser()
    encode.add_arguments(parser)
    encode.run(parser.parse_args(arguments))
    return folder / "shards"


def run_arguments(folder: Path, run_dir: Path, *more: str) -> list[str]:
    """Arguments of ppx-train for a model of a few thousand weights on those shards."""
    shape = {"dim": 32, "num_layers": 2, "num_heads": 2, "depformer_dim": 16, "depformer_dim_feedforward": 66}
    shape |= {"depformer_num_heads": 2, "depformer_num_layers": 1, "text_card": 320, "card": 64, "context": 40}
    return [
        "recipe=quickstart",
        f"run_dir={run_dir}",
        f"model.codec={folder / 'codec.safetensors'}",
        f"model.tokenizer={folder / 'tokenizer.model'}",
        *(f"model.lm.{key}={value}" for key, value in shape.items()),
        f"data.paths=[{folder / 'shards'}]",
        "data.mix={service: 2, fisher: 1, assistant: 0}",
        "data.batch=4",
        "data.micro_frames=null",
        "data.micro_batch=1",
        "data.bucket_steps=16",
        "data.heldout_samples=3",
        "steps=8",
        "optim.warmup_steps=2",
        "trainer.checkpoint_every=3",
        "trainer.heldout_every=4",
        "trainer.devices=1",
        "trainer.threads=1",
        "logging.every=2",
        "logging.tensorboard=false",
        *more,
    ]


def write_checkpoint(data: Path, run_dir: Path, step: int, *more: str) -> tuple[Path, DuplexLM]:
    """A checkpoint as the trainer leaves it, with random weights (and adapters); returns it and the model."""
    run = load([*run_arguments(data, run_dir), *more])
    base = base_lm(run)
    saved = {"global_step": step, "epoch": 0, KEY: origin(run)}
    if run.model.lora.rank:
        saved[BASE] = fingerprint(base)
    torch.manual_seed(step)
    lm = trainable_lm(run, base) if run.model.lora.rank else DuplexLM(run.model.lm)
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)  # zeros at the start of training
    folder = run_dir / "checkpoints" / f"step-{step:07d}"
    folder.mkdir(parents=True)
    state = {f"lm.{name}": value.detach() for name, value in lm.named_parameters() if value.requires_grad}
    torch.save({**saved, "state_dict": state}, folder / "checkpoint.ckpt")
    (folder / "config.yaml").write_text(run.to_yaml(), "utf-8")
    logs = run_dir / "logs" / "version_0"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "metrics.csv").write_text(f"step,heldout/loss,train/loss\n{step},2.5,2.0\n{step + 1},9.0,9.0\n")
    return folder, lm.eval()


def cut(whole: Tensor, axis: int, ranks: int) -> list[Part]:
    """The parts of a tensor as ranks hold them; behind the end a rank holds nothing."""
    pieces = [*whole.chunk(ranks, axis), *[whole.narrow(axis, 0, 0)] * ranks][:ranks]
    starts = [sum(piece.shape[axis] for piece in pieces[:k]) for k in range(ranks)]
    return [
        Part(tuple(start if k == axis else 0 for k in range(whole.dim())), piece)
        for start, piece in zip(starts, pieces, strict=True)
    ]


def spread(folder: Path, ranks: int) -> None:
    """Lays the tensors of a checkpoint into files of several ranks, as they would be sharded along the first axis."""
    state, whole = split(whole_tensors(read_checkpoint(folder)))
    of_each = {name: cut(part.values, 0, ranks) for name, part in whole.items()}
    for number in range(ranks):
        write_tensors(folder / file_name(number, ranks), {name: parts[number] for name, parts in of_each.items()})
    torch.save(state | {FILES: ranks}, folder / "new")  # Values are mapped from the old file, which must not change.
    (folder / "new").replace(folder / FILE)


def greedy_tokens(lm: DuplexLM) -> Tensor:
    """Twelve frames [12, 1, 9] that a model says to a random user."""
    stream = DuplexStream(lm, Sampling(greedy=True))
    state = stream.init_state(1)
    user = torch.randint(lm.config.card, (12, 1, 8), generator=torch.Generator().manual_seed(0))
    return torch.stack([stream.step(state, user_BQ) for user_BQ in user])


def sidecar_of(config: LMConfig, **changes: Any) -> Sidecar:
    """The record of personaplex.json of a model that was made from nothing."""
    prompt = PromptFormat(
        order=("voice", "pause", "text", "pause"), system_tag="<system>", pause_frames=6, voice_lufs=-24.0,
        silence_codes=(0,) * 8, sine_codes=(1,) * 8, discarded_frames=1,
    )  # fmt: skip
    sidecar = Sidecar(
        format=2, engine="ppx-train", layout="nvidia", lm=config_to_dict(config), mimi_name="mimi.safetensors",
        tokenizer_name="tokenizer.model", inference_dep_q=8, generated_audio_codebooks=8, prompt=prompt,
        origin=Origin(recipe="tiny", step=1, engine="ppx-train", request=""), ingredients=(),
    )  # fmt: skip
    return replace(sidecar, **changes)


def metrics_of(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    from ppx_train.training.curves import read_metrics

    return read_metrics(run_dir)


def bad_samples(run_dir: Path) -> dict[str, str]:
    return json.loads((run_dir / "bad_samples.json").read_text("utf-8"))


def build_lm(run: Run) -> DuplexLM:
    """The model of `run` at its first step."""
    return trainable_lm(run, base_lm(run))
