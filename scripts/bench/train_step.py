"""Speed and memory of a training step's forward, loss and backward, alone or in turns with Kyutai's `moshi` package.

    python scripts/bench/train_step.py --size mid --dtype bf16 --prompt 0 0.4 --against moshi

On a GPU the 7B with LoRA:  python scripts/bench/train_step.py --gpu7b

`--against moshi` needs `pip install --no-deps moshi==0.2.13` (and einops, sentencepiece, tqdm); both models get the
same weights, and the losses must agree. Its package has no loss: it is the weighted cross-entropy of all its logits.
"""

# Shapes: B batch, K streams, T frames

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from common import DTYPES, SIZES, check_device, clock, machine, matmul_peak, peak_memory, synchronise, table, write_json
from torch import Tensor
from torch.nn import functional as F

from model.adapters.lora import inject
from model.config import LMConfig
from model.duplex import DuplexLM
from model.kernels.allocator import keep_freed_memory
from model.kernels.recompute import MODES
from model.weights.checkpoint import config_to_dict, native_state_dict

LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}
TEXT, SEMANTIC, ACOUSTIC, PADDING = 1.0, 1.0, 0.02, 0.3


def main() -> None:
    args = arguments()
    names = ["ppx-train", *([args.against] if args.against else [])]
    rows, peak = measure(names, args), in_process(matmul_peak_of, args)
    for row in rows:
        base = next((r for r in rows if r["model"] == args.against and r["prompt"] == row["prompt"]), None)
        row["speed ratio"] = base["s"] / row["s"] if base else ""
        row["memory ratio"] = row["peak MiB"] / base["peak MiB"] if base else ""
        row["of matmul peak"] = row["TFLOP/s"] * 1e12 / peak
    torch.set_num_threads(args.threads)
    print(
        f"{machine(args.device)}\n{args.size} {args.dtype}, batch {args.batch} x {args.frames} frames, {options(args)}"
    )
    print(
        f"matrix products reach {peak / 1e12:.3g} TFLOP/s; TFLOP/s count the useful work of all rows, prompt or not\n"
    )
    print(table([{key: value for key, value in row.items() if key != "loss"} for row in rows]))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    write_json(args.json, {"machine": machine(args.device), "settings": settings, "matmul_flops": peak, "rows": rows})


def measure(names: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Best of the rounds of each model at each prompt share. Each model has a process of its own, taking turns."""
    times: dict[tuple[str, float], list[float]] = {(name, share): [] for share in args.prompt for name in names}
    rows = {}
    with ExitStack() as stack:
        steps = {name: stack.enter_context(Worker(name, args)) for name in names}
        for name, share in times:  # also the warm-up
            rows[name, share] = steps[name].ask(share, True)
        for _ in range(args.rounds):
            for name, share in times:
                times[name, share].append(steps[name].ask(share, False)["s"])
    for share in args.prompt:
        losses = [rows[name, share]["loss"] for name in names]
        if max(losses) - min(losses) > LOSS_TOLERANCE[args.dtype] * max(losses):
            raise SystemExit(f"prompt {share:.0%}: the losses differ ({losses}): not the same computation")
    for key, seconds in times.items():
        frames = args.batch * args.frames / min(seconds)
        flops = rows[key].pop("flops") / min(seconds)
        rows[key] |= {"s": min(seconds), "frames/s": frames, "audio s/s": frames / 12.5, "TFLOP/s": flops / 1e12}
    return list(rows.values())


class Worker:
    """One model in a process of its own: its allocator and its peak memory are its own too."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, name, args), daemon=True)

    def __enter__(self) -> "Worker":
        self.process.start()
        return self

    def ask(self, *question: Any) -> dict[str, Any]:
        self.pipe.send(question)
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            raise SystemExit("a model's process ended: see its message above") from None

    def __exit__(self, *_: Any) -> None:
        self.pipe.close()
        self.process.join()


def in_process(call: Callable[[argparse.Namespace], float], args: argparse.Namespace) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, (args,))


def matmul_peak_of(args: argparse.Namespace) -> float:
    torch.set_num_threads(args.threads)
    return matmul_peak(DTYPES[args.dtype], args.device)


def work(pipe: Connection, name: str, args: argparse.Namespace) -> None:
    """Sends figures of a step for each (prompt share, whether to measure memory), until the pipe closes."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = SIZES[args.size]
    model: Any = build(config, args)
    codes = draw_codes(config, args.batch, args.frames).to(args.device)
    flops = (2 if args.lora else 3) * model.flops_per_frame(args.frames) * args.batch * args.frames
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if name == "moshi":
        model = kyutai_model(model, args)
    elif args.device == "cpu":
        keep_freed_memory()
    step, now = (kyutai if name == "moshi" else ours), clock(args.device)
    with suppress(EOFError):
        while True:
            share, with_memory = pipe.recv()
            weights = loss_weights(codes, share, config)
            call = partial(step, model, codes, weights)
            row = {"model": name, "prompt": f"{share:.0%}", "trained": trainable, "flops": flops}
            if with_memory:
                row["loss"] = float(call())
                row["peak MiB"] = peak_memory(call, args.device) / 2**20
            else:
                synchronise(args.device)
                start = now()
                call()
                synchronise(args.device)
                row["s"] = now() - start
            pipe.send(row)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="mid")
    parser.add_argument("--gpu7b", action="store_true", help="the 7B with LoRA 128 in bf16, 16 x 100 s, on a GPU")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=312)
    parser.add_argument("--prompt", type=float, nargs="+", default=[0.0], help="shares of the rows without loss")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK")
    parser.add_argument("--checkpointing", choices=MODES, default="selective")
    parser.add_argument("--compile", action="store_true", help="torch.compile each block")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--against", choices=["moshi"])
    parser.add_argument("--json", type=Path)
    if "--gpu7b" in sys.argv:
        parser.set_defaults(size="7b", device="cuda", lora=128, batch=16, frames=1250, checkpointing="full")
    args = parser.parse_args()
    check_device(parser, args.device)
    if args.against and args.lora:
        parser.error("--against moshi trains all weights: leave --lora out")
    return args


def options(args: argparse.Namespace) -> str:
    lora = f"LoRA {args.lora}" if args.lora else "all weights trained"
    return f"{lora}, checkpointing {args.checkpointing}, {'compiled' if args.compile else 'eager'}"


def build(config: LMConfig, args: argparse.Namespace) -> DuplexLM:
    model = DuplexLM(config, device=args.device, dtype=DTYPES[args.dtype])
    if args.lora:
        inject(model, args.lora, 2.0, [".*"])
    model.set_activation_checkpointing(args.checkpointing)
    if args.compile:
        model.compile_blocks()
    return model.train()


def draw_codes(config: LMConfig, batch: int, frames: int) -> Tensor:
    """Random codes [B, 17, T]; two thirds of the text is padding, as in speech."""
    text = torch.randint(4, config.text_card, (batch, 1, frames))
    text[torch.rand(text.shape) < 0.65] = config.text_padding_id
    return torch.cat((text, torch.randint(config.card, (batch, config.n_q, frames))), dim=1)


def loss_weights(codes_BKT: Tensor, prompt_share: float, config: LMConfig) -> Tensor:
    """Loss weights [B, 17, T]: zero on the first `prompt_share` of the frames."""
    weights_BKT = torch.full(codes_BKT.shape, ACOUSTIC, device=codes_BKT.device)
    weights_BKT[:, [1, 9]] = SEMANTIC
    weights_BKT[:, 0] = torch.where(codes_BKT[:, 0] == config.text_padding_id, PADDING, TEXT)
    weights_BKT[:, :, : round(prompt_share * codes_BKT.shape[2])] = 0
    return weights_BKT


def ours(model: DuplexLM, codes: Tensor, weights: Tensor) -> Tensor:
    sums = model(codes, weights)
    text = sums.loss_K[0] / sums.weight_K[0]
    loss = text + sums.loss_K[1:].sum() / sums.weight_K[1:].sum()
    loss.backward()
    model.zero_grad()
    return loss.detach()


def kyutai_model(model: DuplexLM, args: argparse.Namespace) -> Any:
    os.environ["NO_TORCH_COMPILE"] = "1"
    from moshi.models.lm import LMModel

    theirs = LMModel(**config_to_dict(model.config), device=args.device, dtype=DTYPES[args.dtype])
    theirs.load_state_dict(native_state_dict(model), strict=True)
    return theirs


def kyutai(model: Any, codes: Tensor, weights: Tensor) -> Tensor:
    output = model(codes)
    text = weighted(output.text_logits, output.text_mask, codes[:, :1], weights[:, :1])
    steps = output.logits.shape[1]
    loss = text + weighted(output.logits, output.mask, codes[:, 1 : 1 + steps], weights[:, 1 : 1 + steps])
    loss.backward()
    model.zero_grad()
    return loss.detach()


def weighted(logits: Tensor, mask: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    weights = weights * mask
    losses = F.cross_entropy(logits.float().flatten(0, -2), torch.where(mask, targets, 0).flatten(), reduction="none")
    weights = weights.flatten()
    # unfilled positions hold NaN logits
    return torch.where(weights > 0, losses * weights, 0).sum() / weights.sum()


if __name__ == "__main__":
    main()
