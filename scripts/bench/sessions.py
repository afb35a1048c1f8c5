"""Time and memory of a tick by the number of live sessions, with random weights: codec, model and sampling.

    python scripts/bench/sessions.py --gpu7b --sessions 1 8 16 32 48
    python scripts/bench/sessions.py --size tiny --sessions 1 8

Every session has a full window, as after four minutes of a call. A part of a prompt is what joining callers cost the
others between two ticks. A number of sessions that does not fit is left out with a line.
"""

# Shapes: K streams, P prompt frames, S samples (of a frame)

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DTYPES, SIZES, check_device, machine, synchronise, table, write_json

from model.assets import asset
from model.config import FRAME_SAMPLES
from model.duplex import DuplexLM
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig
from model.mimi.files import load_mimi
from ppx_train.inference.conversations import PART_FRAMES, Conversations
from ppx_train.inference.loading import Release
from ppx_train.inference.session import SessionSettings
from ppx_train.serve.query import MOST


class NoText:
    """Stands for a tokenizer: random tokens spell nothing."""

    def byte(self, i: int) -> int | None:
        return None

    def piece(self, i: int) -> str:
        return ""


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    release = random_release(args)
    name = machine(args.device)
    print(f"{name}\n{args.size} {args.dtype}, full windows, {args.frames} ticks each\n")
    rows = [row for count in args.sessions if (row := ticks(release, count, args))]
    print(table(rows) if rows else "no number of sessions fits")
    write_json(args.json, {"machine": name, "settings": vars(args) | {"json": str(args.json)}, "rows": rows})


def random_release(args: argparse.Namespace) -> Release:
    """A model and a codec of full size, or for other sizes of the shipped codec's."""
    torch.manual_seed(0)
    lm = DuplexLM(SIZES[args.size], device=args.device, dtype=DTYPES[args.dtype]).eval().requires_grad_(False)
    small = load_mimi(asset("mimi_small.safetensors")).config
    small = replace(small, quantizer=replace(small.quantizer, bins=lm.config.card))
    codec = Mimi(MimiConfig.full() if args.size == "7b" else small)
    codec = codec.to(args.device).eval().requires_grad_(False)
    codes = (0,) * 8
    return Release(
        name="random",
        lm=lm,
        codec=codec,
        tokenizer=NoText(),  # type: ignore[arg-type]
        silence_codes=codes,
        sine_codes=codes,
    )


def ticks(release: Release, count: int, args: argparse.Namespace) -> dict[str, Any] | None:
    """One row, or None if the device's memory does not hold them."""
    if args.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(args.device)
    began = time.perf_counter()
    try:
        conversations = Conversations(release, count, most=MOST)
        sessions = [conversations.join(SessionSettings(seed=number)) for number in range(count)]
        start = time.perf_counter() - began
        noise_S = 0.1 * np.random.default_rng(0).standard_normal(FRAME_SAMPLES).astype(np.float32)
        for _ in range(2):  # The first frames of a conversation are start ids.
            conversations.step(dict.fromkeys(sessions, noise_S))
        conversations.state.cache.pretend_full()
        times = []
        for number in range(args.frames + args.warm):
            synchronise(args.device)
            began = time.perf_counter()
            conversations.step(dict.fromkeys(sessions, noise_S))  # It ends with the sound on the host.
            if number >= args.warm:
                times.append(time.perf_counter() - began)
        prompt = prompt_part(conversations, args)
    except torch.OutOfMemoryError as why:
        print(f"{count} sessions do not fit: {str(why).splitlines()[0]}")
        return None
    ms = np.array(times) * 1000
    row = {
        "sessions": count,
        **{f"tick p{p} ms": float(np.percentile(ms, p)) for p in (50, 95, 99)},
        "max ms": float(ms.max()),
        f"prompt part of {PART_FRAMES} ms": 1000 * prompt,
        "start s": start,
    }
    if args.device != "cpu":
        row["peak GiB"] = torch.cuda.max_memory_allocated(args.device) / 2**30
    return row


def prompt_part(conversations: Conversations, args: argparse.Namespace) -> float:
    """Seconds that a part of a joining caller's prompt takes: the median of some."""
    first = conversations.sessions[0]
    assert first is not None
    conversations.leave(first)
    streams = conversations.release.lm.config.num_streams
    prompt_KP = torch.zeros(streams, 6 * PART_FRAMES, dtype=torch.long)
    session = conversations.join(SessionSettings(seed=0, prompt_KP=prompt_KP))
    times = []
    while not session.is_ready:
        synchronise(args.device)
        began = time.perf_counter()
        conversations.feed_prompts(PART_FRAMES)
        synchronise(args.device)
        times.append(time.perf_counter() - began)
    conversations.leave(session)
    return float(np.median(times))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--size", choices=SIZES, default="tiny")
    add("--gpu7b", action="store_true", help="the full shape on a GPU in bf16")
    add("--sessions", type=int, nargs="+", default=[1, 8], help="sessions at a time")
    add("--frames", type=int, default=200, help="ticks that are measured")
    add("--warm", type=int, default=10, help="ticks before them")
    add("--device", default="cpu")
    add("--dtype", choices=DTYPES, default="fp32")
    add("--threads", type=int, default=1)
    add("--json", type=Path, help="writes the figures there")
    args = parser.parse_args()
    if args.gpu7b:
        args.size, args.device, args.dtype = "7b", "cuda", "bf16"
    if min(args.sessions) < 1 or args.frames < 1:
        parser.error(f"--sessions {args.sessions} --frames {args.frames}: give 1 or more")
    check_device(parser, args.device)
    return args


if __name__ == "__main__":
    main()
