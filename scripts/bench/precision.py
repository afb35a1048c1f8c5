"""Memory, speed and agreement of a model's precisions: fp32, bf16, fp16 and int8 weights.

    python scripts/bench/precision.py --size mid --batch 1 4 8
    python scripts/bench/precision.py --model quickstart/export
    python scripts/bench/precision.py --gpu7b --batch 1 8 --precision bf16 int8

Agreement is teacher-forced: of all tokens of one conversation, which a first pass in the widest of the precisions draws
with the default sampling, the share whose likeliest choice is the same. Models of random weights are nearly undecided
between tokens, so that their agreement says little; give a trained one. Times are medians of steps in turns.
"""

# Shapes: B batch, K streams, T frames, Q codebooks, V vocabulary

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from common import SIZES, check_device, in_turns, machine, table, write_json
from torch import Tensor

from model.duplex import DuplexLM
from model.streaming.int8 import hold_in_int8
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from model.weights.checkpoint import from_pretrained

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FRAMES = 250
"""Of the conversation on which precisions must agree, 20 s."""


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    full = load(args)
    codes_BKT = conversation(in_precision(full, args.precision[0], args))
    rows, wanted = [], None
    for precision in args.precision:
        model = in_precision(full, precision, args)
        chosen = likeliest(model, codes_BKT)
        wanted = wanted or chosen
        row: dict[str, Any] = {"precision": precision, "weights MiB": weight_bytes(model) / 2**20}
        row |= {f"step of {batch} ms": step_ms(model, batch, args) for batch in args.batch}
        row |= {f"{name} agree %": 100 * share(chosen[name], wanted[name]) for name in ("text", "audio")}
        rows.append(row)
        del model
    name = machine(args.device)
    print(f"{name}\n{args.model or args.size}, {args.filled} frames behind\n\n{table(rows)}")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    write_json(args.json, {"machine": name, "settings": settings, "rows": rows})


def load(args: argparse.Namespace) -> DuplexLM:
    """The model in the host's memory, in its widest type."""
    dtype = DTYPES.get(args.precision[0], torch.float32)
    if args.model:
        return from_pretrained(args.model, dtype=dtype).eval().requires_grad_(False)
    torch.manual_seed(0)
    return DuplexLM(SIZES[args.size], dtype=dtype).eval().requires_grad_(False)


def in_precision(full: DuplexLM, precision: str, args: argparse.Namespace) -> DuplexLM:
    """A copy in another precision, on the device."""
    model = copy.deepcopy(full)
    if precision == "int8":
        model = model.to(torch.float32 if args.device == "cpu" else torch.bfloat16)
        hold_in_int8(model, args.device)
        return model
    return model.to(args.device, DTYPES[precision])


def conversation(model: DuplexLM) -> Tensor:
    """Codes [1, 17, T] of a conversation with a user of random codes."""
    stream = DuplexStream(model, Sampling())
    state = stream.init_state(1, [0])
    generator = torch.Generator().manual_seed(1)
    user = torch.randint(model.config.card, (FRAMES, 1, model.config.num_codebooks), generator=generator)
    frames = [torch.cat([stream.step(state, codes.to(stream.device)).cpu(), codes], 1) for codes in user]
    return torch.stack(frames[1:], 2)


@torch.no_grad()
def likeliest(model: DuplexLM, codes_BKT: Tensor) -> dict[str, Tensor]:
    """The likeliest token at each place of the agent's text and audio, given everything before it."""
    logits = model.logits(codes_BKT.to(model.text_emb.weight.device))
    agent = model.config.num_codebooks
    return {
        "text": logits.text_BTV.argmax(-1)[logits.text_mask_BT].cpu(),
        "audio": logits.audio_BQTV[:, :agent].argmax(-1)[logits.audio_mask_BQT[:, :agent]].cpu(),
    }


def share(found: Tensor, wanted: Tensor) -> float:
    return float((found == wanted).float().mean())


def weight_bytes(model: DuplexLM) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def step_ms(model: DuplexLM, batch: int, args: argparse.Namespace) -> float:
    """Median time of a streaming step with `filled` frames behind it."""
    stream = DuplexStream(model, Sampling())
    state = stream.init_state(batch, list(range(batch)))
    prompt = torch.zeros(batch, model.config.num_streams, args.filled, dtype=torch.long)
    stream.prefill(state, prompt)
    user = torch.zeros(batch, model.config.num_codebooks, dtype=torch.long, device=args.device)
    times = in_turns({"step": lambda: stream.step(state, user)}, args.frames, args.device)["step"]
    return 1000 * sorted(times)[len(times) // 2]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, help="a folder made by ppx-export")
    add("--size", choices=SIZES, default="tiny", help="of random weights, without --model")
    add("--gpu7b", action="store_true", help="the full shape on a GPU")
    add("--precision", nargs="+", choices=[*DTYPES, "int8"], default=["fp32", "bf16", "int8"])
    add("--batch", type=int, nargs="+", default=[1, 4, 8])
    add("--filled", type=int, default=100, help="frames that are seen before")
    add("--frames", type=int, default=30, help="steps that are timed")
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--json", type=Path, help="writes the figures there")
    args = parser.parse_args()
    if args.gpu7b:
        args.size, args.device = "7b", "cuda"
    check_device(parser, args.device)
    return args


if __name__ == "__main__":
    main()
