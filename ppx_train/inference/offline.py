"""`ppx-chat`: a WAV of the user in, a WAV of the agent of the same length out, frame by frame as in a live call.

Flags and outputs follow the published PersonaPlex tool, with a picture of the conversation on top.
"""

# Shapes: A agent streams (9), B batch, K streams (17), P prompt frames, Q codebooks, S samples, T frames

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from data_pipelines.sound.audio import read_audio, to_mono_24k
from model.config import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE, UNGENERATED_ID
from model.errors import UserError
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from model.text import SPECIAL_NAMES, TextTokenizer
from ppx_train.inference.loading import Release, find_voice, load_release
from ppx_train.inference.timeline import SpokenWord, draw_timeline, printable

Audio = npt.NDArray[np.float32]

NO_VOICE = "none"
ROLE = "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."


@dataclass(kw_only=True)
class Conversation:
    """What came of a conversation.

    agent_S: mono 24 kHz, as long as the user's audio. codes_AT: the agent's tokens [9, T], text first; frame 0 of an
    unprompted conversation is UNGENERATED_ID. prompt_seconds and step_seconds: time spent computing.
    """

    agent_S: Audio
    codes_AT: Tensor
    prompt_seconds: float
    step_seconds: float

    @property
    def text_ids(self) -> list[int]:
        return self.codes_AT[0].tolist()

    @property
    def real_time_factor(self) -> float:
        """Time computing over time speaking: below 1 is faster than real time."""
        return self.step_seconds / (self.codes_AT.shape[1] / FRAME_RATE)

    def pieces(self, tokenizer: TextTokenizer) -> list[str]:
        """One entry a frame: a piece of text with a space for the word mark, or EPAD, BOS, EOS, PAD."""
        return [tokenizer.piece(i) if i != UNGENERATED_ID else "PAD" for i in self.text_ids]

    def words(self, tokenizer: TextTokenizer) -> list[SpokenWord]:
        """Words at the time of their first piece."""
        groups: list[tuple[int, list[int]]] = []
        for frame, i in enumerate(self.text_ids):
            if i < len(SPECIAL_NAMES):
                continue
            if not groups or tokenizer.piece(i).startswith(" "):
                groups.append((frame, []))
            groups[-1][1].append(i)
        words = [SpokenWord(text=tokenizer.decode(ids), seconds=frame / FRAME_RATE) for frame, ids in groups]
        return [word for word in words if word.text]


def chat(
    release: Release,
    user_S: Audio,
    *,
    prompt_KP: Tensor | None = None,
    sampling: Sampling,
    seed: int | None = None,
    show_progress: bool = False,
) -> Conversation:
    """Streams the user's audio (mono 24 kHz) through the model and returns the agent's side.

    The codec state is fresh: the prompt's audio does not leak into the user's. A last partial frame is filled with
    zeros and the output cut to the input's length.
    Raises: UserError for empty audio.
    """
    num_frames = -(-len(user_S) // FRAME_SAMPLES)
    if not num_frames:
        raise UserError("the user's audio is empty: give a recording")
    device = release.device
    padded_S = np.pad(user_S, (0, num_frames * FRAME_SAMPLES - len(user_S)))
    frames_TS = torch.from_numpy(padded_S).to(device, torch.float32).view(num_frames, FRAME_SAMPLES)

    stream = DuplexStream(release.lm, sampling)
    state = stream.init_state(1, None if seed is None else [seed])
    started = time.perf_counter()
    if prompt_KP is not None:
        stream.prefill(state, prompt_KP[None])
    prompted = time.perf_counter()
    encoder, decoder = release.codec.init_encoder_state(1), release.codec.init_decoder_state(1)
    tokens, waves = [], []
    for frame_S in tqdm(frames_TS, desc="chat", unit="frame", disable=not show_progress, dynamic_ncols=True):
        user_BQ = release.codec.encode_frame(encoder, frame_S[None, None])[:, :, 0]
        agent_BA = stream.step(state, user_BQ)
        tokens.append(agent_BA[0].cpu())
        if tokens[-1][0] == UNGENERATED_ID:
            waves.append(torch.zeros(FRAME_SAMPLES))  # no code to decode; silence keeps both sides in step
        else:
            waves.append(release.codec.decode_frame(decoder, agent_BA[:, 1:, None])[0, 0].float().cpu())
    return Conversation(
        agent_S=torch.cat(waves)[: len(user_S)].numpy(),
        codes_AT=torch.stack(tokens, dim=1),
        prompt_seconds=prompted - started,
        step_seconds=time.perf_counter() - prompted,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `ppx-chat`."""
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="folder made by ppx-export, or a hub repository")
    add("--revision", help="revision of the hub repository")
    add("--input-wav", type=Path, required=True, metavar="WAV", help="the user's audio, any rate and channels")
    add("--output-wav", type=Path, required=True, metavar="WAV", help="agent's audio to write, mono 24 kHz")
    add("--output-text", type=Path, metavar="JSON", help="text to write, one entry a frame (default: by --output-wav)")
    add("--timeline", type=Path, metavar="PNG", help="picture to write (default: by --output-wav)")
    add("--text-prompt", default=ROLE, help=f'role of the agent; "" for none (default: {ROLE!r})')
    add("--voice-prompt", metavar="NAME|WAV", help='voice of the model or audio file; "none" (default: first voice)')
    add("--voice-prompt-dir", type=Path, metavar="DIR", help="look the voice up in this folder instead of the model's")
    add("--seed", type=int, default=-1, help="same seed, same conversation; -1 is a new one each time (default)")
    add("--temp-audio", type=float, default=0.8, help="temperature of audio tokens (default: 0.8)")
    add("--temp-text", type=float, default=0.7, help="temperature of text tokens (default: 0.7)")
    add("--topk-audio", type=int, default=250, help="sample among so many audio tokens; 0 all (default: 250)")
    add("--topk-text", type=int, default=25, help="sample among so many text tokens; 0 all (default: 25)")
    add("--greedy", action="store_true", help="take the likeliest token always: no sampling")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add("--overwrite", action="store_true", help="replace existing outputs")


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-chat`. Raises UserError before any work if an output exists or an input is unusable."""
    text_path, picture_path = args.output_text, args.timeline
    text_path = args.output_wav.with_suffix(".json") if text_path is None else text_path
    picture_path = args.output_wav.with_suffix(".png") if picture_path is None else picture_path
    check_outputs([args.output_wav, text_path, picture_path], args.input_wav, args.overwrite)
    sampling = Sampling(
        greedy=args.greedy,
        text_temperature=args.temp_text,
        text_top_k=args.topk_text,
        audio_temperature=args.temp_audio,
        audio_top_k=args.topk_audio,
    )
    if args.seed < -1:
        raise UserError(f"--seed {args.seed}: give a number from 0 on, or -1 for a new conversation each time")
    user_S = to_mono_24k(*read_audio(args.input_wav))
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    release = load_release(args.model, device=device, revision=args.revision)
    voice = voice_name(release, args.voice_prompt, args.voice_prompt_dir)
    voice_codes_QP = None if voice == NO_VOICE else find_voice(release, voice, args.voice_prompt_dir)
    prompt_KP = release.prompt(voice_codes_QP, args.text_prompt)
    prompt_seconds = 0.0 if prompt_KP is None else prompt_KP.shape[1] / FRAME_RATE
    print(f"{release.name} on {device}: voice {voice}, prompt of {prompt_seconds:.1f} s")

    seed = None if args.seed == -1 else args.seed
    conversation = chat(release, user_S, prompt_KP=prompt_KP, sampling=sampling, seed=seed, show_progress=True)
    words = conversation.words(release.tokenizer)
    spoke = f"first word after {words[0].seconds:.2f} s" if words else "no word"
    speed = f"{conversation.real_time_factor:.2f} x real time"
    seconds = f"{len(user_S) / SAMPLE_RATE:.1f} s"

    pieces = json.dumps(conversation.pieces(release.tokenizer), ensure_ascii=False)
    agent_S = np.clip(conversation.agent_S, -1.0, 1.0)
    write_whole(text_path, lambda path: path.write_text(pieces, "utf-8"))
    choice = "greedy" if args.greedy else ("no seed" if seed is None else f"seed {seed}")
    role = args.text_prompt.strip()
    facts = [f"voice {Path(voice).stem}", f"role: {shorten(role, 90)}" if role else "no role", seconds, choice, spoke]
    title = f"{args.input_wav.name} with {release.name}"
    draw_timeline(picture_path, user_S, conversation.agent_S, words, title=title, facts=facts)
    write_whole(args.output_wav, lambda path: soundfile.write(path, agent_S, SAMPLE_RATE, "PCM_16", format="WAV"))
    print(f"{args.output_wav}: {seconds}, {spoke}, {speed}, prompt in {conversation.prompt_seconds:.2f} s")
    clipped = float(np.mean(np.abs(conversation.agent_S) > 1.0))
    if clipped > 0:
        print(f"{clipped:.2%} of the samples were clipped")
    if words:
        print("agent: " + shorten(printable(" ".join(word.text for word in words)), 400))


def voice_name(release: Release, wanted: str | None, voice_dir: Path | None) -> str:
    """The voice to use: as asked, else the model's first, else none. Raises UserError for a folder without a name."""
    if wanted is not None:
        return wanted
    if voice_dir is not None:
        raise UserError(f"--voice-prompt-dir {voice_dir} without --voice-prompt: name the voice to take from it")
    return next(iter(release.voices), NO_VOICE)


def check_outputs(outputs: Sequence[Path], user_wav: Path, overwrite: bool) -> None:
    """Raises UserError if an output is named twice, exists (without `overwrite`), is the input, or has no folder."""
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UserError(f"two outputs have the same name: {', '.join(str(path) for path in outputs)}")
    for path in outputs:
        if path.resolve() == user_wav.resolve():
            raise UserError(f"{path} is the input: write the output elsewhere")
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"{path}: not a file in an existing folder: make the folder or choose another name")
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists: choose another name, or add --overwrite")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` on a temporary name and moves the file into place: it appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def shorten(text: str, letters: int) -> str:
    """At most `letters` characters, with dots where something is missing."""
    return text if len(text) <= letters else text[: letters - 3].rstrip() + "..."
