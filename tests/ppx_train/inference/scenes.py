"""Conversations made by hand, whose faults are known: sound like syllables, noise or a tone, with codes and words."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ppx_train.inference.offline import AgentSide
from ppx_train.inference.timeline import AgentWord

RATE, FRAME = 24000, 1920
Audio = npt.NDArray[np.float32]
Spans = Sequence[tuple[float, float]]


def syllables(seconds: float, seed: int = 0) -> Audio:
    """Voiced sound whose pitch glides and whose level falls by 20 dB between syllables, four a second."""
    rng, times = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    pitch = np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * times + rng.uniform(0, 6))) / RATE
    voice = sum(np.sin(2 * np.pi * n * pitch) / n for n in range(1, 20))
    envelope = 0.1 + 0.9 * np.sin(np.pi * 4 * times) ** 2
    return (0.12 * voice * envelope).astype(np.float32)


def placed(total: float, spans: Spans, made: Audio | None = None) -> Audio:
    """Syllables, or what was made, in the given seconds of silence."""
    audio = np.zeros(round(total * RATE), np.float32)
    for number, (start, end) in enumerate(spans):
        first, last = round(start * RATE), round(end * RATE)
        audio[first:last] = syllables(end - start, number)[: last - first] if made is None else made[: last - first]
    return audio


def scene(
    total: float,
    *,
    user: Spans = ((1.0, 3.0),),
    agent: Spans = ((3.4, 6.0),),
    sound: Audio | None = None,
    words: Sequence[str] | None = None,
    codes: npt.NDArray[np.int64] | None = None,
) -> tuple[AgentSide, list[AgentWord]]:
    """A conversation: who speaks when, in seconds. words: spread over the agent's speech, by default all different."""
    frames = -(-round(total * RATE) // FRAME)
    codes_AT = torch.randint(2048, (9, frames), generator=torch.Generator().manual_seed(0))
    codes_AT[0] = 3
    speech = [at for start, end in agent for at in np.arange(start, end, 0.4)]
    said = [f"word{n}" for n in range(len(speech))] if words is None else list(words)
    times = [speech[n * len(speech) // max(1, len(said))] for n in range(len(said))]
    for at in times:
        codes_AT[0, min(frames - 1, int(at * 12.5))] = 100
    if codes is not None:
        codes_AT[1] = torch.from_numpy(codes)[:frames]
    side = AgentSide(
        agent_S=placed(total, agent, sound), user_S=placed(total, user), codes_AT=codes_AT, prompt_seconds=0.0,
        step_seconds=1.0,
    )  # fmt: skip
    return side, [AgentWord(text=text, seconds=float(at)) for text, at in zip(said, times, strict=True)]
