"""Time of a streaming step and of a prompt, alone or in turns with a public runtime on the same weights.

    python scripts/bench/stream_step.py --size mid --batch 1 8 --against personaplex --checkout path/to/personaplex
    python scripts/bench/stream_step.py --size mid --against moshi
    python scripts/bench/stream_step.py --gpu7b --batch 1 32 --filled 1500

All choose the likeliest token, so the tokens of ours and theirs must be equal. Theirs run as they come: NVIDIA's with
16 depth steps, Kyutai's with 8. `--against moshi` needs `pip install --no-deps moshi==0.2.13` (and einops,
sentencepiece, tqdm), NVIDIA's package sphn too. Ours alone is filled by one pass, beside another frame by frame.
"""

# Shapes: B batch, Q codebooks

import argparse
import importlib
import importlib.util
import os
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import DTYPES, SIZES, check_device, clock, in_turns, machine, synchronise, table, write_json
from torch import Tensor

from model.config import LMConfig
from model.duplex import DuplexLM
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from model.weights.checkpoint import config_to_dict, native_state_dict
from model.weights.native import cut_depth

OURS = "ppx-train"
PROMPT_FRAMES = 150


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    model = random_model(args)
    rows = step_rows(model, args)
    prompt = prefill_row(model, args, rows[0]["ms"])
    name = machine(args.device)
    print(f"{name}\n{args.size} {args.dtype}, {args.filled} frames behind, median of {args.frames} steps\n")
    print(table(rows))
    print(f"\nprompt of {PROMPT_FRAMES} frames in one pass: {prompt['ms']:.1f} ms, {prompt['steps']:.1f} steps' time")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    write_json(args.json, {"machine": name, "settings": settings, "rows": rows, "prompt": prompt})


def random_model(args: argparse.Namespace) -> DuplexLM:
    torch.manual_seed(0)
    model = DuplexLM(SIZES[args.size], device=args.device, dtype=DTYPES[args.dtype]).eval().requires_grad_(False)
    for head in (model.text_head, model.depth.heads):
        head.weight.mul_(10)  # fresh heads are nearly uniform: make the likeliest token stand out
    return model


def step_rows(model: DuplexLM, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per runtime and batch size: medians of steps taken in turns, and the ratios per conversation."""
    first = args.batch[0]
    with ExitStack() as stack:
        runs = {(OURS, batch): ours(model, batch, args) for batch in args.batch}
        if args.against:
            runs[args.against, first] = theirs(model, first, args, stack)
            for _ in range(args.filled):
                for run in runs.values():
                    run.frame()
        taken = in_turns({str(key): run.frame for key, run in runs.items()}, args.frames, args.device)
    if args.against:
        check_tokens(runs[OURS, first], runs[args.against, first], args.against)
    seconds = {key: sorted(taken[str(key)]) for key in runs}
    each = {key: statistics.median(times) / key[1] for key, times in seconds.items()}
    rows = []
    for key, times in seconds.items():
        row: dict[str, Any] = {"runtime": key[0], "batch": key[1], "ms": 1e3 * statistics.median(times)}
        row |= {"p95 ms": 1e3 * times[int(0.95 * len(times))], "ms a conversation": 1e3 * each[key]}
        row["speed ratio"] = each[args.against, first] / each[key] if args.against else ""
        row[f"share of batch {first}"] = each[key] / each[OURS, first]
        rows.append(row)
    return rows


class SteppedRun:
    """A runtime that is stepped: every call of `frame` feeds the next random user frame and keeps the agent's."""

    def __init__(self, batch: int, args: argparse.Namespace, step: Callable[[Tensor], Tensor | None]) -> None:
        self.user = torch.Generator().manual_seed(1)
        self.batch, self.step, self.card, self.device = batch, step, SIZES[args.size].card, args.device
        self.tokens: list[Tensor | None] = []

    def frame(self) -> None:
        row_1Q = torch.randint(self.card, (1, 8), generator=self.user)  # the same for every row and runtime
        self.tokens.append(self.step(row_1Q.expand(self.batch, -1).to(self.device)))


def ours(model: DuplexLM, batch: int, args: argparse.Namespace) -> SteppedRun:
    stream = DuplexStream(model, Sampling(greedy=True))
    state = stream.init_state(batch)
    if not args.against and args.filled:
        stream.prefill(state, random_prompt(model.config, batch, args.filled))
    return SteppedRun(batch, args, lambda user_BQ: stream.step(state, user_BQ))


def theirs(model: DuplexLM, batch: int, args: argparse.Namespace, stack: ExitStack) -> SteppedRun:
    """The generator of the public runtime, on our very weights."""
    models = public_models(args)
    weights, config = native_state_dict(model), model.config
    if args.against == "moshi":  # with 16 depth steps it would not listen
        weights, config = cut_depth(weights), replace(config, dep_q=8)
    shapes = models.loaders._lm_kwargs | config_to_dict(config)
    if args.against == "moshi":
        shapes.pop("depformer_causal", None)
    lm = models.lm.LMModel(device="meta", dtype=DTYPES[args.dtype], **shapes).eval()
    lm.load_state_dict(weights, assign=True)
    more = {"device": args.device} if args.against == "personaplex" else {}
    generator = models.LMGen(lm, use_sampling=False, **more)
    stack.enter_context(torch.no_grad())
    stack.enter_context(generator.streaming(batch))

    def step(user_BQ: Tensor) -> Tensor | None:
        tokens = generator.step(user_BQ[:, :, None])
        return None if tokens is None else tokens[:, :9, 0]

    return SteppedRun(batch, args, step)


def public_models(args: argparse.Namespace) -> Any:
    """`moshi.models` of Kyutai's package, or of NVIDIA's under another name: both are called moshi."""
    os.environ["NO_TORCH_COMPILE"] = "1"
    if args.against == "moshi":
        return importlib.import_module("moshi.models")
    folders = (args.checkout / "moshi/moshi", args.checkout / "moshi")
    package = next((folder for folder in folders if (folder / "models").is_dir()), None)
    if package is None:
        raise SystemExit(f"--checkout {args.checkout}: no package moshi there: give a clone of NVIDIA/personaplex")
    spec = importlib.util.spec_from_file_location(
        "moshi_of_personaplex", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    return importlib.import_module(f"{spec.name}.models")


def check_tokens(ours: SteppedRun, theirs: SteppedRun, name: str) -> None:
    """Ours answer frame j with frame j, NVIDIA's one call later; both begin with nothing."""
    late = 1 if name == "personaplex" else 0
    pairs = [(a, b) for a, b in zip(ours.tokens, theirs.tokens[late:], strict=False) if b is not None]
    wrong = next((j for j, (a, b) in enumerate(pairs) if not torch.equal(a, b)), None)
    if wrong is not None:
        raise SystemExit(f"the tokens differ from pair {wrong} of {len(pairs)} on: not the same computation")
    print(f"{len(pairs)} frames of tokens equal those of {name}\n")


def random_prompt(config: LMConfig, batch: int, frames: int) -> Tensor:
    return torch.randint(min(config.card, config.text_card), (batch, 17, frames))


def prefill_row(model: DuplexLM, args: argparse.Namespace, step_ms: float) -> dict[str, float]:
    """Best of a few prompts of 150 frames in one pass, batch 1."""
    stream, times = DuplexStream(model, Sampling(greedy=True)), []
    state, prompt = stream.init_state(1), random_prompt(model.config, 1, PROMPT_FRAMES)
    now = clock(args.device)
    for _ in range(4):
        stream.reset(state, [0])
        synchronise(args.device)
        start = now()
        stream.prefill(state, prompt)
        synchronise(args.device)
        times.append(1e3 * (now() - start))
    return {"ms": min(times), "steps": min(times) / step_ms}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=SIZES, default="mid", help="shape of the model (default: mid)")
    add("--gpu7b", action="store_true", help="the full shape on a GPU in bf16, random weights")
    add("--dtype", choices=DTYPES, default="fp32")
    add("--batch", type=int, nargs="+", default=[1, 8], help="conversations in a batch (default: 1 8)")
    add("--filled", type=int, default=150, help="frames before the measured ones (default: 150)")
    add("--frames", type=int, default=40, help="steps measured (default: 40)")
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--against", choices=["personaplex", "moshi"], help="public runtime to compare with, at the first batch size")
    add(
        "--checkout",
        type=Path,
        default=Path("personaplex"),
        help="clone of NVIDIA/personaplex (default: ./personaplex)",
    )
    add("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    if args.gpu7b:
        args.size, args.dtype, args.device = "7b", "bf16", "cuda"
    check_device(parser, args.device)
    return args


if __name__ == "__main__":
    main()
