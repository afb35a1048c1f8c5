"""The hybrid system prompt: voice clip -> pause -> role text -> pause, and its place before a training dialogue.

The same functions build the prompt for training and for a live call, so that the two cannot differ. A frame is 80 ms.
Source: the published PersonaPlex runtime, whose pause is int(0.5 s * 12.5 Hz) = 6 frames.
"""

# Shapes: K streams (17), Q codebooks (8), P prompt frames, T frames

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from model.config import LMConfig
from model.errors import UserError

PAUSE_FRAMES = 6
"""Length of each of the two pauses of a prompt."""
SYSTEM_TAG = "<system>"
"""The tag on both sides of a role text: the released model was trained with a closing tag that repeats the opening."""


class Encoder(Protocol):
    """Anything that turns text into ids."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""


def wrap_role(text: str) -> str:
    """Puts the role text between two `<system>` tags; a text that carries both already is only stripped."""
    stripped = text.strip()
    has_both = stripped.startswith(SYSTEM_TAG) and stripped.endswith(SYSTEM_TAG) and len(stripped) > len(SYSTEM_TAG)
    return stripped if has_both else f"{SYSTEM_TAG} {stripped} {SYSTEM_TAG}"


def role_ids(text: str, tokenizer: Encoder) -> list[int]:
    """Ids of the wrapped role text, one a frame; an empty list if there is no role text."""
    return tokenizer.encode(wrap_role(text)) if text.strip() else []


def hybrid_prompt(
    config: LMConfig,
    voice_codes_QP: Tensor | None,
    text_ids: Sequence[int],
    silence_codes: Sequence[int],
    sine_codes: Sequence[int],
    pause_frames: int = PAUSE_FRAMES,
) -> Tensor:
    """Builds the frames the model is prompted with, frame 0 included.

    Without text, the text segment and the pause after it are left out. Without a voice clip, the pause before the text
    stays, because streaming and training both discard frame 0 and would lose the first text id.
    Shapes: voice_codes_QP [8, frames of the clip], or None; text_ids as `role_ids` returns them, one a frame;
    silence_codes and sine_codes [8], one constant frame each. The result is [17, P], int64, on the device of the voice.
    Raises: UserError if there is no voice and no text, or an id is outside its vocabulary.
    """
    if voice_codes_QP is None and not text_ids:
        raise UserError("the prompt is empty: give a voice clip, a role text or both", code="missing-option")
    device = voice_codes_QP.device if voice_codes_QP is not None else torch.device("cpu")
    silence_Q1 = _constant_frame(config, "silence_codes", silence_codes, device)
    sine_Q1 = _constant_frame(config, "sine_codes", sine_codes, device)
    pad, pause = [config.text_padding_id], pause_frames

    segments = []
    if voice_codes_QP is not None:
        _check_voice(config, voice_codes_QP)
        segments.append((pad * voice_codes_QP.shape[1], voice_codes_QP.long()))
    segments.append((pad * pause, silence_Q1.expand(-1, pause)))
    if text_ids:
        if min(text_ids) < 0 or max(text_ids) >= config.text_card:
            raise UserError(
                f"role text has ids outside 0..{config.text_card - 1}: the tokenizer is another model's",
                code="bad-combination",
            )
        segments.append((list(text_ids), silence_Q1.expand(-1, len(text_ids))))
        segments.append((pad * pause, silence_Q1.expand(-1, pause)))

    text_P = torch.tensor([i for ids, _ in segments for i in ids], dtype=torch.int64, device=device)
    agent_QP = torch.cat([codes for _, codes in segments], dim=1)
    return torch.cat([text_P[None], agent_QP, sine_Q1.expand(-1, len(text_P))])


def training_sequence(config: LMConfig, prompt_KP: Tensor, dialogue_KT: Tensor) -> tuple[Tensor, Tensor]:
    """Joins prompt and dialogue as the model is trained on them: (codes [17, P - 1 + T], has_loss [P - 1 + T] bool).

    The sequence starts at frame 1, because the streaming runtime discards frame 0: a model that trained on it would be
    one frame off. Frame 0 is the prompt's, or the dialogue's if there is no prompt (P = 0), as in a call without one.
    The prompt carries no loss. The codes stay undelayed, since the model applies the delays.
    Raises: UserError if a part has not 17 streams.
    """
    for name, codes in (("prompt", prompt_KP), ("dialogue", dialogue_KT)):
        if codes.ndim != 2 or codes.shape[0] != config.num_streams:
            raise UserError(
                f"{name} codes have shape {tuple(codes.shape)}: give [{config.num_streams}, frames]", code="bad-value"
            )
    codes_KT = torch.cat([prompt_KP.to(dialogue_KT), dialogue_KT], dim=1)[:, 1:]
    has_loss_T = torch.ones(codes_KT.shape[1], dtype=torch.bool, device=dialogue_KT.device)
    has_loss_T[: max(0, prompt_KP.shape[1] - 1)] = False
    return codes_KT, has_loss_T


def _constant_frame(config: LMConfig, name: str, codes: Sequence[int], device: torch.device) -> Tensor:
    """One frame of eight codes as [Q, 1]."""
    if len(codes) != config.num_codebooks or min(codes) < 0 or max(codes) >= config.card:
        raise UserError(
            f"{name}={list(codes)}: give {config.num_codebooks} codes in 0..{config.card - 1}", code="bad-value"
        )
    return torch.tensor([int(c) for c in codes], dtype=torch.int64, device=device)[:, None]


def _check_voice(config: LMConfig, codes_QP: Tensor) -> None:
    if codes_QP.ndim != 2 or codes_QP.shape[0] != config.num_codebooks or codes_QP.shape[1] == 0:
        raise UserError(
            f"voice codes have shape {tuple(codes_QP.shape)}: give [{config.num_codebooks}, frames]", code="bad-value"
        )
    if int(codes_QP.min()) < 0 or int(codes_QP.max()) >= config.card:
        raise UserError(
            f"voice codes lie outside 0..{config.card - 1}: the clip was encoded with another codec",
            code="bad-combination",
        )
