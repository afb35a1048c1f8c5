"""The hybrid prompt against tables written by hand."""

import pytest
import torch

from model.errors import Code
from model.prompt import hybrid_prompt, role_ids, training_sequence, wrap_role
from tests.model.tiny import TINY
from tests.refusals import refused

SILENCE = [1, 2, 3, 4, 5, 6, 7, 8]
SINE = [11, 12, 13, 14, 15, 16, 17, 18]
VOICE = torch.arange(24).reshape(8, 3)  # three frames: codebook k holds 3k, 3k+1, 3k+2


def test_voice_pause_text_pause_follow_each_other_frame_by_frame() -> None:
    prompt = hybrid_prompt(TINY, VOICE, [21, 22], SILENCE, SINE)
    assert prompt.shape == (17, 3 + 6 + 2 + 6) and prompt.dtype == torch.int64
    assert prompt[0].tolist() == [3, 3, 3] + [3] * 6 + [21, 22] + [3] * 6
    assert prompt[1].tolist() == [0, 1, 2] + [1] * 14
    assert prompt[8].tolist() == [21, 22, 23] + [8] * 14
    assert [row.tolist() for row in prompt[9:]] == [[code] * 17 for code in SINE]


def test_a_missing_text_skips_its_segment_and_its_pause() -> None:
    prompt = hybrid_prompt(TINY, VOICE, [], SILENCE, SINE)
    assert prompt.shape == (17, 3 + 6)
    assert prompt[0].tolist() == [3] * 9


def test_without_a_voice_the_discarded_frame_is_a_pause_and_no_text_id_is_lost() -> None:
    prompt = hybrid_prompt(TINY, None, [21, 22], SILENCE, SINE, pause_frames=2)
    assert prompt[0].tolist() == [3, 3, 21, 22, 3, 3]
    assert prompt[1].tolist() == [1] * 6


def test_the_training_sequence_starts_at_prompt_frame_1_and_has_no_loss_on_the_prompt() -> None:
    prompt = hybrid_prompt(TINY, VOICE, [21], SILENCE, SINE, pause_frames=1)  # 3 + 1 + 1 + 1 frames
    dialogue = torch.full((17, 4), 9, dtype=torch.int16)
    codes, has_loss = training_sequence(TINY, prompt, dialogue)
    assert codes[0].tolist() == [3, 3, 3, 21, 3] + [9] * 4
    assert codes[1].tolist() == [1, 2, 1, 1, 1] + [9] * 4
    assert has_loss.tolist() == [False] * 5 + [True] * 4


def test_without_a_prompt_the_first_frame_of_the_dialogue_is_discarded() -> None:
    dialogue = torch.arange(4).expand(17, 4)
    codes, has_loss = training_sequence(TINY, torch.zeros(17, 0, dtype=torch.int64), dialogue)
    assert codes.tolist() == [[1, 2, 3]] * 17
    assert has_loss.tolist() == [True] * 3


def test_a_role_is_wrapped_once() -> None:
    assert wrap_role(" You are Jane. ") == "<system> You are Jane. <system>"
    assert wrap_role("<system> You are Jane. <system>") == "<system> You are Jane. <system>"
    assert wrap_role("<system> open") == "<system> <system> open <system>"


def test_no_role_text_gives_no_ids() -> None:
    class Spell:
        def encode(self, text: str) -> list[int]:
            return [ord(c) for c in text]

    assert role_ids("  ", Spell()) == []
    assert role_ids("a", Spell()) == [ord(c) for c in "<system> a <system>"]


@pytest.mark.parametrize(
    ("voice", "ids", "silence", "code", "named"),
    [
        (None, [], SILENCE, "missing-option", "voice clip"),
        (VOICE + 30, [5], SILENCE, "bad-combination", "0..31"),
        (VOICE[:7], [5], SILENCE, "bad-value", "(7, 3)"),
        (VOICE[:, :0], [5], SILENCE, "bad-value", "(8, 0)"),
        (VOICE, [40], SILENCE, "bad-combination", "0..39"),
        (VOICE, [5], SILENCE[:7], "bad-value", f"silence_codes={SILENCE[:7]}"),
        (VOICE, [5], [*SILENCE[:7], 32], "bad-value", "0..31"),
    ],
)
def test_a_wrong_prompt_is_refused(
    voice: torch.Tensor | None, ids: list[int], silence: list[int], code: Code, named: str
) -> None:
    with refused(code, named):
        hybrid_prompt(TINY, voice, ids, silence, SINE)


def test_a_part_without_17_streams_is_refused() -> None:
    with refused("bad-value", "dialogue", "(16, 3)"):
        training_sequence(TINY, torch.zeros(17, 3), torch.zeros(16, 3))
    with refused("bad-value", "prompt", "(3,)"):
        training_sequence(TINY, torch.zeros(3), torch.zeros(17, 3))
