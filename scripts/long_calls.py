"""Does a role outlast the window? Facts of a prompt are asked for long after it, under each way to treat the prompt.

    python scripts/long_calls.py --out runs/long_calls

Small models learn on text alone to look facts up in a prompt: a window of 200 frames, values that are drawn anew for
every sequence, one more fact whenever the present number is mastered. Then a question comes some frames after the
prompt, and the true value competes with three other values of the same prompt (forced choice, chance 0.25), on held-out
values, in a call that is streamed with its prompt forgotten, fed anew or pinned. Training ends in two ways that take
equally long: as it began, or with a share of lines that last beyond the window, the prompt pinned as it is when served.

Each model is kept in the folder, so that the same command goes on where it stopped.
"""

# Shapes: B batch, K streams, T frames, D width, H heads, E head width, V vocabulary

import argparse
import copy
import itertools
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ZERO_ID, LMConfig
from model.duplex import DuplexLM
from model.files import write_bytes
from model.kernels.pointwise import rotary_angles, rotate
from model.streaming.kv_cache import KVCache
from model.streaming.temporal_stream import TemporalStream
from model.weights.tensor_files import open_safetensors, write_safetensors

WINDOW, FACTS, VALUE = 200, 6, 3
"""Frames of the window, facts of a prompt, frames of a value."""
PAD, END, KEYS, QUESTIONS, WORDS, CHATTER, SYLLABLES, VOCABULARY = 0, 1, 2, 14, 26, 50, 70, 370
PROMPT = FACTS * (VALUE + 2)
CONFIG = LMConfig(
    dim=128, num_heads=4, num_layers=4, text_card=VOCABULARY, card=16, context=WINDOW, depformer_dim=16,
    depformer_num_heads=2, depformer_num_layers=1, depformer_dim_feedforward=48,
)  # fmt: skip
BATCH, LR, EASY_SHARE = 32, 2e-3, 0.3
MASTERY, STEPS_A_LEVEL = 0.8, 100
SHORTEST = 30
"""Frames of a line of one fact; each fact more lengthens it, up to the window: short lines are where copying begins."""
LONG = 3 * WINDOW
"""Frames of a training sequence beyond the window."""
DISTANCES = (20, 60, 100, 150, 230, 300, 400, 600, 1000)
"""Frames between prompt and question."""
ARMS = ("forget", "refresh", "pin")


@dataclass
class TextLine:
    """A text line with the weight of each of its ids, and where values that answer begin."""

    ids: list[int]
    weights: list[float]
    answers: list[int]


def value(draw: random.Random) -> list[int]:
    return [draw.randrange(SYLLABLES, VOCABULARY) for _ in range(VALUE)]


def facts(draw: random.Random, count: int) -> dict[int, list[int]]:
    """Values by their keys, in random order."""
    return {key: value(draw) for key in draw.sample(range(12), count)}


def prompt_of(values: dict[int, list[int]]) -> list[int]:
    return [token for key, syllables in values.items() for token in (KEYS + key, *syllables, END)]


def filler(draw: random.Random, count: int) -> list[int]:
    """What is said between questions: mostly silence, and talk about nothing."""
    return [draw.randrange(CHATTER, SYLLABLES) if draw.random() < 0.2 else PAD for _ in range(count)]


def question(draw: random.Random, key: int) -> list[int]:
    """A question and the words that begin its answer, with PADs between."""
    ids = [QUESTIONS + key, *([PAD] * draw.randint(2, 5))]
    for word in (WORDS + key, WORDS + 12 + key % 5, WORDS + 20):
        ids += [word, *([PAD] * draw.randint(0, 2))]
    return ids


def line(draw: random.Random, count: int, length: int) -> TextLine:
    """A prompt of `count` facts and questions all over the line, each fact asked for once at most."""
    values = facts(draw, count)
    ids = prompt_of(values)
    weights, answers = [0.0] * len(ids), []
    keys = draw.sample(list(values), count)
    # As many questions as there are facts, at random places of the whole line.
    room = length - len(ids) - count * (VALUE + 18)
    gaps = sorted(draw.randint(0, max(0, room)) for _ in keys)
    for key, gap in zip(keys, [gaps[0], *(b - a for a, b in itertools.pairwise(gaps))], strict=True):
        said = filler(draw, gap)
        ids += said
        weights += [0.1 if token == PAD else 0.0 for token in said]
        asked = question(draw, key)
        ids += asked
        weights += [0.0, *[0.3 if token == PAD else 1.0 for token in asked[1:]]]
        answers.append(len(ids))
        ids += values[key]
        weights += [1.0] * VALUE
    rest = filler(draw, max(0, length - len(ids)))
    return TextLine(
        (ids + rest)[:length], (weights + [0.0] * len(rest))[:length], [a for a in answers if a + VALUE <= length]
    )


def line_length(level: int) -> int:
    """Frames of the lines of a level."""
    return SHORTEST + (WINDOW - SHORTEST) * (level - 1) // (FACTS - 1)


def attention(query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, pinned: Sequence[int]) -> Tensor:
    """Attention as a pinned call is served: beyond the window the prompt is seen where it was when that was full."""
    frames = query_BHTE.shape[2]
    width = query_BHTE.shape[-1]
    places = torch.arange(frames)
    angles = rotary_angles(places, width, CONFIG.max_period)
    if frames <= WINDOW:
        query, key = rotate(query_BHTE, *angles), rotate(key_BHTE, *angles)
        return F.scaled_dot_product_attention(query, key, value_BHTE, is_causal=True)
    kept = rotary_angles(places.clamp(max=WINDOW - 1), width, CONFIG.max_period)
    keys = rotate(key_BHTE, *angles)
    scores = rotate(query_BHTE, *angles) @ keys.transpose(2, 3)
    of_pinned = rotate(query_BHTE, *kept) @ keys.transpose(2, 3)
    pins = torch.tensor(list(pinned))[:, None, None, None]
    age = places[:, None] - places
    is_pinned = (places < pins) & (places[:, None] >= WINDOW)
    newest = torch.where(places[:, None] >= WINDOW, WINDOW - pins, WINDOW)
    visible = (age >= 0) & (is_pinned | (age < newest))
    scores = torch.where(is_pinned, of_pinned, scores).masked_fill(~visible, -torch.inf) / math.sqrt(width)
    return scores.softmax(-1) @ value_BHTE


def forward(model: DuplexLM, ids_BT: Tensor, pinned: Sequence[int]) -> Tensor:
    """Logits [B, T, V] of the next text id; no audio stream adds anything."""
    x_BTD = embed(model, ids_BT)
    for block in model.temporal.layers:
        qkv = block.attention.in_proj(block.norm1(x_BTD)).unflatten(-1, (3, CONFIG.num_heads, -1))
        query, key, values = qkv.permute(2, 0, 3, 1, 4)
        y_BHTE = attention(query, key, values, pinned)
        x_BTD = x_BTD + block.attention.out_proj(y_BHTE.transpose(1, 2).flatten(2))
        x_BTD = x_BTD + block.gating(block.norm2(x_BTD))
    return model.text_head(model.out_norm(x_BTD))


def embed(model: DuplexLM, ids_BT: Tensor) -> Tensor:
    # Audio that adds nothing: sixteen embeddings of silence would be a constant louder than the text.
    streams_BKT = torch.full((ids_BT.shape[0], CONFIG.num_streams, ids_BT.shape[1]), ZERO_ID)
    streams_BKT[:, 0] = ids_BT
    return model.embed(streams_BKT)


def train(
    folder: Path, name: str, seconds: float, seed: int, *, start: DuplexLM | None = None, long_share: float = 0.0
) -> DuplexLM:
    """Trains a model, or reads the one that is there.

    start: a model that has learnt all facts, with which training ends; None begins. long_share: of steps with lines
    beyond the window.
    """
    torch.manual_seed(seed)
    model = DuplexLM(CONFIG) if start is None else copy.deepcopy(start).requires_grad_(True)
    file = folder / f"{name}.safetensors"
    if file.is_file():
        with open_safetensors(file) as kept:
            model.load_state_dict({key: kept.get_tensor(key) for key in kept.keys()})
        return model.requires_grad_(False)
    draw = random.Random(seed)
    trained = [*model.temporal.parameters(), *model.out_norm.parameters(), *model.text_head.parameters()]
    trained += [*model.text_emb.parameters()]
    if start is None:
        nn.init.normal_(model.text_emb.weight, std=0.5)
        nn.init.normal_(model.text_head.weight, std=0.01)
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    level, is_mastered, mastery, since, step = 1 if start is None else FACTS, False, 0.0, 0, 0
    began = time.process_time()
    while (spent := time.process_time() - began) < seconds:
        is_long = level == FACTS and draw.random() < long_share
        count = BATCH // 4 if is_long else BATCH
        levels = [level if draw.random() > EASY_SHARE else draw.randint(1, level) for _ in range(count)]
        rows = [line(draw, facts_in, LONG if is_long else line_length(level)) for facts_in in levels]
        ids, weights = torch.tensor([row.ids for row in rows]), torch.tensor([row.weights for row in rows])
        logits = forward(model, ids[:, :-1], [facts_in * (VALUE + 2) for facts_in in levels])
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(ids[:, 1:])
        loss = (losses * weights[:, 1:]).sum() / weights.sum()
        is_value = (weights[:, 1:] == 1) & (ids[:, 1:] >= SYLLABLES)
        if not is_long:
            mastery = 0.97 * mastery + 0.03 * float((logits.argmax(-1) == ids[:, 1:])[is_value].float().mean())
        for group in optimizer.param_groups:
            fall = 1.0 if start is None else max(0.02, 1 - spent / seconds)
            group["lr"] = LR * min(1, (step + 1) / 100) * fall
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        if mastery > MASTERY and step - since > STEPS_A_LEVEL and start is None:
            is_mastered = level == FACTS
            if is_mastered:
                break
            level, since, mastery = level + 1, step, 0.5
        if step % 50 == 0:
            print(
                f"{name}: {spent:5.0f} of {seconds:.0f} s, step {step}, {level} facts, loss {loss:.2f}, "
                f"values right {mastery:.2f}", flush=True,
            )  # fmt: skip
    if start is None and not is_mastered:
        raise SystemExit(
            f"{name}: {level} of {FACTS} facts after {seconds:.0f} s, not all mastered: give more --seconds"
        )
    write_safetensors(file, dict(model.state_dict()), {"level": str(level), "steps": str(step)})
    return model.requires_grad_(False)


@torch.no_grad()
def recall(model: DuplexLM, arm: str, calls: int, seed: int) -> list[tuple[float, float]]:
    """For each of DISTANCES the share of held-out calls in which the true value is the likeliest of four.

    Beside it stands the mean probability of that value among all that could be said.
    """
    draw = random.Random(f"held out {seed}")
    values = [facts(draw, FACTS) for _ in range(calls)]
    prompts = torch.tensor([prompt_of(each) for each in values])
    said = torch.tensor([filler(draw, DISTANCES[-1]) for _ in range(calls)])
    stream = TemporalStream(model.temporal, model.out_norm)
    rows = list(range(calls))

    def begin(ids_BT: Tensor) -> KVCache:
        pinned = PROMPT if arm == "pin" else 0
        cache = stream.init_cache(calls, device="cpu", dtype=torch.float32, most_pinned=pinned)
        stream.extend(embed(model, ids_BT), cache, rows)
        return cache

    cache = begin(prompts)
    if arm == "pin":
        for row in rows:
            cache.pin(row)
    shares, at = [], 0
    for distance in DISTANCES:
        while at < distance:
            if arm == "refresh" and cache.positions[0] == WINDOW - 1:
                kept = (WINDOW - PROMPT) // 2
                cache = begin(torch.cat([prompts, said[:, max(0, at - kept) : at]], 1))
            step(model, stream, cache, said[:, at])
            at += 1
        shares.append(choose(model, stream, cache, values, draw))
    return shares


def step(model: DuplexLM, stream: TemporalStream, cache: KVCache, ids_B: Tensor) -> Tensor:
    """Feeds one frame to all rows and returns the logits [B, V] of the next."""
    rows = list(range(len(ids_B)))
    window = cache.window(cache.live(rows), masked=not cache.all_visible(rows))
    hidden_BD = stream.step(embed(model, ids_B[:, None])[:, 0], cache, window)
    cache.offset_B += 1
    cache.positions = [position + 1 for position in cache.positions]
    return model.text_head(hidden_BD)


def choose(
    model: DuplexLM, stream: TemporalStream, cache: KVCache, values: list[dict[int, list[int]]], draw: random.Random
) -> tuple[float, float]:
    """Asks each row for one of its facts, on copies of the cache, and scores four values, see `recall`."""
    keys = [draw.choice(list(each)) for each in values]
    asked = [question(random.Random(0), key) for key in keys]  # One length for all rows.
    options = [
        [each[key], *draw.sample([each[k] for k in each if k != key], 3)]
        for each, key in zip(values, keys, strict=True)
    ]
    scores = []
    for number in range(4):
        fork = copy_of(cache, stream)
        for ids_B in torch.tensor(asked).T:
            logits_BV = step(model, stream, fork, ids_B)
        total = torch.zeros(len(values))
        for ids_B in torch.tensor([row[number] for row in options]).T:
            total += logits_BV.log_softmax(-1).gather(1, ids_B[:, None])[:, 0]
            logits_BV = step(model, stream, fork, ids_B)
        scores.append(total)
    chosen = torch.stack(scores).argmax(0) == 0
    return float(chosen.float().mean()), float(scores[0].exp().mean())


def copy_of(cache: KVCache, stream: TemporalStream) -> KVCache:
    """A cache that goes on from the same place."""
    copied = stream.init_cache(len(cache.positions), device="cpu", dtype=torch.float32, most_pinned=cache.most_pinned)
    copied.kv.copy_(cache.kv)
    copied.offset_B.copy_(cache.offset_B)
    copied.positions = list(cache.positions)
    copied.take_pins(cache)
    return copied


def table(title: str, rows: dict[str, list[float]]) -> None:
    """Prints figures of each arm at each of DISTANCES, in Markdown."""
    print(f"\n| {title} | {' | '.join(str(d) for d in DISTANCES)} |\n|---|{'---|' * len(DISTANCES)}")
    for name, figures in rows.items():
        print(f"| {name} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")


def picture(rows: dict[str, list[float]], calls: int, path: Path) -> None:
    """Recall over the distance, with the window and chance marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    for name, shares in rows.items():
        errors = [1.96 * math.sqrt(max(p * (1 - p), 1e-9) / calls) for p in shares]
        axes.errorbar(DISTANCES, shares, yerr=errors, marker="o", capsize=3, label=name)
    axes.axvline(WINDOW - PROMPT, color="grey", linestyle=":", label="the prompt leaves the window")
    axes.axhline(0.25, color="grey", linestyle="--", label="chance")
    axes.set(
        xscale="log", xlabel="frames between prompt and question", ylabel="true value chosen of four", ylim=(0, 1.02)
    )
    axes.set_xticks(DISTANCES, [str(d) for d in DISTANCES])
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of models and figures")
    parser.add_argument("--seconds", type=float, default=1500, help="most processor time until all facts are mastered")
    parser.add_argument("--end-seconds", type=float, default=400, help="processor time of each end")
    parser.add_argument("--long-share", type=float, default=0.05, help="of the steps of one end, beyond the window")
    parser.add_argument("--calls", type=int, default=300, help="held-out calls")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    base = train(args.out, "base", args.seconds, args.seed)
    inside = train(args.out, "inside", args.end_seconds, args.seed, start=base)
    beyond = train(args.out, "beyond", args.end_seconds, args.seed, start=base, long_share=args.long_share)
    found = {arm: recall(inside, arm, args.calls, args.seed) for arm in ARMS}
    found["pin, trained for it"] = recall(beyond, "pin", args.calls, args.seed)
    rows = {name: [share for share, _ in pairs] for name, pairs in found.items()}
    likely = {name: [probability for _, probability in pairs] for name, pairs in found.items()}
    table("frames after the prompt: true value chosen of four", rows)
    table("its probability among all that could be said", likely)
    settings = {key: str(item) if isinstance(item, Path) else item for key, item in vars(args).items()}
    write_bytes(
        args.out / "figures.json",
        json.dumps({"settings": settings, "distances": DISTANCES, "chosen": rows, "probability": likely}).encode(),
    )
    picture(rows, args.calls, args.out / "long_calls.png")
    print(f"picture: {args.out / 'long_calls.png'}")


if __name__ == "__main__":
    main()
