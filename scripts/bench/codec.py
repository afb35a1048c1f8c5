"""Speed of Mimi at full size with random weights: whole files and frame by frame, alone or against Kyutai's `moshi`.

    python scripts/bench/codec.py --against moshi

`--against moshi` needs `pip install --no-deps moshi==0.2.13` (and einops, sentencepiece, tqdm); both codecs get the
same weights, and their codes must agree.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import check_device, in_turns, machine, table, write_json
from torch import Tensor

from model.config import FRAME_SAMPLES, SAMPLE_RATE
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig

STREAMED_FRAMES = 12


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    codec = Mimi(MimiConfig.full()).to(args.device).eval()
    wav = 0.1 * torch.randn(
        1, 1, round(args.seconds * SAMPLE_RATE) // FRAME_SAMPLES * FRAME_SAMPLES, device=args.device
    )
    with torch.no_grad():
        codes = codec.encode(wav)
        work = {("ppx-train", what): call for what, call in ours(codec, wav, codes).items()}
        if args.against:
            theirs = kyutai_codec(codec, args.device)
            same = float((theirs.encode(wav) == codes).float().mean())
            print(f"codes equal to moshi's: {same:.2%}")
            if same < 0.99:  # random weights make near-ties
                raise SystemExit("the codes differ: not the same computation")
            work |= {("moshi", what): call for what, call in kyutai(theirs, wav, codes).items()}
        seconds = {key: min(times) for key, times in in_turns(work, args.rounds, args.device).items()}
    rows = []
    for (model, what), value in seconds.items():
        streamed = what.startswith("stream")
        milliseconds = value * 1e3 / (STREAMED_FRAMES if streamed else 1)
        audio = STREAMED_FRAMES / 12.5 if streamed else wav.shape[-1] / SAMPLE_RATE
        row = {"model": model, "what": what, "ms": milliseconds, "x real time": audio / value}
        if args.against:
            row["time over moshi's"] = value / seconds["moshi", what]
        rows.append(row)
    print(machine(args.device))
    print(f"Mimi, full size, random weights, fp32, {args.seconds:g} s of audio; streaming: per frame of 80 ms\n")
    print(table(rows))
    write_json(args.json, {"machine": machine(args.device), "seconds": args.seconds, "rows": rows})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--against", choices=["moshi"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    check_device(parser, args.device)
    return args


def ours(codec: Mimi, wav: Tensor, codes: Tensor) -> dict[str, Callable[[], Any]]:
    frames = wav.split(FRAME_SAMPLES, dim=-1)[:STREAMED_FRAMES]
    encoding, decoding = codec.init_encoder_state(1), codec.init_decoder_state(1)

    def stream_encode() -> None:
        for frame in frames:
            codec.encode_frame(encoding, frame)

    def stream_decode() -> None:
        for k in range(STREAMED_FRAMES):
            codec.decode_frame(decoding, codes[:, :, k : k + 1])

    return {
        "encode": lambda: codec.encode(wav),
        "decode": lambda: codec.decode(codes),
        "stream encode": stream_encode,
        "stream decode": stream_decode,
    }


def kyutai_codec(codec: Mimi, device: str) -> Any:
    os.environ["NO_TORCH_COMPILE"] = "1"
    from moshi.models.loaders import get_mimi

    theirs = get_mimi(None, device=device, num_codebooks=8)
    theirs.load_state_dict(codec.state_dict())
    return theirs


def kyutai(codec: Any, wav: Tensor, codes: Tensor) -> dict[str, Callable[[], Any]]:
    frames = wav.split(FRAME_SAMPLES, dim=-1)[:STREAMED_FRAMES]

    def stream(step: Callable[[int], Any]) -> Callable[[], None]:
        def run() -> None:
            with codec.streaming(1):
                for k in range(STREAMED_FRAMES):
                    step(k)

        return run

    return {
        "encode": lambda: codec.encode(wav),
        "decode": lambda: codec.decode(codes),
        "stream encode": stream(lambda k: codec.encode(frames[k])),
        "stream decode": stream(lambda k: codec.decode(codes[:, :, k : k + 1])),
    }


if __name__ == "__main__":
    main()
