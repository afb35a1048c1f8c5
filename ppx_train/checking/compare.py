"""Computations that must agree, on a small model of the run's widths: kernels, streaming, one device and another."""

# Shapes: B batch, A agent streams (9: text and 8 codebooks), K streams, T frames, Q codebooks, V vocabulary

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from model.duplex import DuplexLM, Logits
from model.kernels import fast_paths
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from ppx_train.checking.result import CheckResult
from ppx_train.config.run import Run
from ppx_train.training.fast_paths import (
    FACTOR,
    Outcome,
    PathProbe,
    PathVerdict,
    active_paths,
    adamw_verdict,
    unseen_random_numbers,
)

STREAM_FRAMES = 40
"""Frames that are streamed, half a second in all on a CPU."""
DEVICE_FRAMES = 64
"""Frames of the longer sequence that a GPU and a CPU both compute."""


def check_fast_paths(run: Run, device: torch.device) -> CheckResult:
    """Compares each fast path by itself, and all of them, with plain torch."""
    fast_paths.switch_all_on()
    probe, names = PathProbe(run, device), active_paths(run, device)
    verdicts = [probe.verdict([name]) for name in names]
    verdicts += [adamw_verdict(device)] if device.type == "cuda" else []
    verdicts.append(probe.verdict(names))
    figures = {"paths": [_figures(verdict) for verdict in verdicts]}
    wrong = [verdict for verdict in verdicts if not verdict.agrees]
    if wrong:
        first = min(wrong, key=lambda verdict: len(verdict.names))
        line = f"{', '.join(first.names)}: {first}; training goes on without it, please report it"
        return CheckResult(name="fast paths", passed=False, line=line, figures=figures)
    whole = verdicts[-1]
    line = f"{len(verdicts) - 1} agree with plain torch: together {whole}"
    return CheckResult(name="fast paths", passed=True, line=line, figures=figures)


def _figures(verdict: PathVerdict) -> dict[str, Any]:
    """What the report says of fast paths; messages of errors may name paths, and stay out."""
    figures = asdict(verdict) | {"agrees": verdict.agrees, "failure": verdict.failure.partition(":")[0]}
    return {name: value if value == value else None for name, value in figures.items()}


def check_streaming(run: Run, device: torch.device) -> CheckResult:
    """Streams a greedy conversation, and looks whether each token is the likeliest of the teacher-forced pass.

    Where two tokens are nearly as likely, rounding may choose either: the token's logit may lie below the largest by
    what the teacher-forced pass itself rounds off, on both, times FACTOR.
    """
    lm = replace(run.model.lm, num_layers=min(2, run.model.lm.num_layers), depformer_num_layers=1)
    in_bf16 = run.trainer.precision == "bf16-mixed"
    dtype, exact_dtype = (torch.bfloat16, torch.float32) if in_bf16 else (torch.float32, torch.float64)
    with unseen_random_numbers(device), torch.no_grad():
        torch.manual_seed(run.seed)
        model = DuplexLM(lm, device=device, dtype=dtype).eval()
        user_TQ = torch.randint(lm.card, (STREAM_FRAMES, lm.num_codebooks)).to(device)
        stream = DuplexStream(model, Sampling(greedy=True))
        state = stream.init_state(1)
        agent_TA = torch.cat([stream.step(state, user_Q[None]) for user_Q in user_TQ])
        # The frame before the conversation is discarded, and the last one lacks what is delayed.
        codes_BKT = torch.cat([agent_TA, user_TQ], dim=1).T[None, :, 1:].contiguous()
        rounded = model.logits(codes_BKT)
        with fast_paths.only():
            exact = model.to(exact_dtype).logits(codes_BKT)
        allowed, worst = furthest(rounded, exact, codes_BKT, lm.num_codebooks, torch.finfo(dtype).eps)
    passed = worst <= allowed
    line = (
        f"{STREAM_FRAMES - 2} frames of a {'captured' if state.graphs else 'plain'} step are those of the "
        f"teacher-forced pass: no token lies more than {worst:.1e} below the likeliest, {allowed:.1e} is allowed"
    )
    if stream.cuda_graphs and state.graphs is None:
        passed, line = (
            False,
            "steps captured as CUDA graphs differ from plain ones (above), and are not used: please report it",
        )
    elif not passed:
        line = (
            f"a streamed token lies {worst:.1e} below the likeliest of the teacher-forced pass, {allowed:.1e} is "
            "allowed: do not serve from this machine, please report it"
        )
    figures = {"frames": STREAM_FRAMES - 2, "below_likeliest": worst, "allowed": allowed, "graphs": bool(state.graphs)}
    return CheckResult(name="streaming", passed=passed, line=line, figures=figures)


def furthest(rounded: Logits, exact: Logits, codes_BKT: Tensor, num_codebooks: int, eps: float) -> tuple[float, float]:
    """Returns (how far below the likeliest a token may lie, how far one does), in logits of the exact pass."""
    allowed = worst = 0.0
    text, audio = slice(0, 1), slice(1, 1 + num_codebooks)
    for near_BQTV, logits_BQTV, tokens_BQT in (
        (rounded.text_BTV[:, None], exact.text_BTV[:, None], codes_BKT[:, text]),
        (rounded.audio_BQTV[:, :num_codebooks], exact.audio_BQTV[:, :num_codebooks], codes_BKT[:, audio]),
    ):
        near_BQTV, logits_BQTV = near_BQTV[:, :, :-1].to(logits_BQTV.dtype), logits_BQTV[:, :, :-1]
        chosen_BQT = logits_BQTV.gather(-1, tokens_BQT[:, :, :-1, None])[..., 0]
        rounding = max(float((near_BQTV - logits_BQTV).abs().max()), eps * float(logits_BQTV.abs().max()))
        allowed = max(allowed, 2 * FACTOR * rounding)
        worst = max(worst, float((logits_BQTV.amax(-1) - chosen_BQT).max()))
    return allowed, worst


def check_devices(run: Run, device: torch.device) -> CheckResult:
    """Compares loss and gradients of a GPU with those of the CPU, as fast paths are compared with plain ones."""
    if device.type == "cpu":
        return CheckResult(name="GPU and CPU", passed=None, line="no GPU is used")
    short = replace(run, data=replace(run.data, max_frames=min(DEVICE_FRAMES, run.data.max_frames)))
    return compare_devices(PathProbe(short, torch.device("cpu")), short, device)


def compare_devices(on_cpu: PathProbe, run: Run, device: torch.device) -> CheckResult:
    """Compares a device with what the CPU has computed."""
    outcome = PathProbe(run, device).outcome()
    there = Outcome(loss=outcome.loss, gradients={name: value.cpu() for name, value in outcome.gradients.items()})
    verdict = on_cpu.compared(["GPU"], there)
    line = f"they agree: {verdict}" if verdict.agrees else f"they differ: {verdict}; please report it"
    return CheckResult(name="GPU and CPU", passed=verdict.agrees, line=line, figures=_figures(verdict))
