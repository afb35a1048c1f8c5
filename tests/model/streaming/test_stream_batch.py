"""A batch of conversations that join, pause and leave on their own: each gets what it would get alone."""

import random
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from model.config import UNGENERATED_ID
from model.duplex import DuplexLM
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream, StreamState
from tests.model.golden import language_model
from tests.refusals import refused

GREEDY = Sampling(greedy=True)
ROWS = 4
TICKS = 150


@pytest.fixture(scope="module")
def model() -> DuplexLM:
    return language_model("lm_window")  # a window of 16 frames


@dataclass
class Conversation:
    """One call: its seed, its prompt [17, P] or None, what the user says, and the agent's tokens in the batch."""

    seed: int
    prompt_KP: Tensor | None
    user: list[Tensor] = field(default_factory=list)
    agent: list[Tensor] = field(default_factory=list)


def random_codes(model: DuplexLM, streams: int, frames: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(model.config.card, model.config.text_card), (streams, frames), generator=generator)


def new_conversation(model: DuplexLM, seed: int, luck: random.Random) -> Conversation:
    prompt_KP = random_codes(model, 17, luck.randrange(1, 30), seed) if luck.random() < 0.7 else None
    return Conversation(seed=seed, prompt_KP=prompt_KP)


def begin(stream: DuplexStream, state: StreamState, row: int, call: Conversation) -> None:
    stream.reset(state, [row], [call.seed])
    if call.prompt_KP is not None:
        stream.prefill(state, call.prompt_KP[None], [row])


def talk(model: DuplexLM, stream: DuplexStream, luck: random.Random) -> list[Conversation]:
    """TICKS steps of a batch in which rows begin, pause and end at random -> all conversations."""
    state = stream.init_state(ROWS)
    calls: list[Conversation] = []
    seated: list[Conversation | None] = [None] * ROWS
    for tick in range(TICKS):
        for row in range(ROWS):
            if seated[row] is None and luck.random() < 0.3:
                seated[row] = call = new_conversation(model, len(calls), luck)
                calls.append(call)
                begin(stream, state, row, call)
            elif luck.random() < 0.02:
                seated[row] = None
        user_BQ = random_codes(model, 8, ROWS, 1000 + tick).T
        active = [call is not None and luck.random() < 0.8 for call in seated]
        user_BQ[~torch.tensor(active)] = -7  # no code at all: nobody may look at it
        agent_BA = stream.step(state, user_BQ, active)
        for row, present in enumerate(seated):
            if present is not None and active[row]:
                present.user.append(user_BQ[row])
                present.agent.append(agent_BA[row])
            else:
                assert (agent_BA[row] == UNGENERATED_ID).all()
    return [call for call in calls if call.user]


def alone(stream: DuplexStream, call: Conversation) -> Tensor:
    state = stream.init_state(1, [call.seed])
    if call.prompt_KP is not None:
        stream.prefill(state, call.prompt_KP[None])
    return torch.stack([stream.step(state, user_Q[None])[0] for user_Q in call.user])


@pytest.mark.parametrize("static", [False, True], ids=["filled slots", "static shapes"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(text_top_k=10, audio_top_k=20)], ids=["greedy", "sampled"])
def test_conversations_that_join_pause_and_leave_get_what_each_gets_alone(
    model: DuplexLM, sampling: Sampling, static: bool
) -> None:
    stream = DuplexStream(model, sampling)
    if static:
        stream.live_slots = (4, 8, 12)  # as under CUDA graphs: a few lengths of the ring, always masked
    calls = talk(model, stream, random.Random(3))
    assert sum(len(call.user) > 2 * model.config.context for call in calls) >= 4
    assert sum(call.prompt_KP is not None for call in calls) >= 4
    reference = DuplexStream(model, sampling)
    for call in calls:
        assert torch.equal(torch.stack(call.agent), alone(reference, call)), call.seed


def test_rows_of_equal_length_may_be_prompted_together(model: DuplexLM) -> None:
    stream = DuplexStream(model, GREEDY)
    prompts_MKP = torch.stack([random_codes(model, 17, 20, seed) for seed in (1, 2)])
    users_TBQ = torch.stack([random_codes(model, 8, 3, seed).T for seed in range(30)])
    state = stream.init_state(3)
    for user_BQ in users_TBQ[:10]:
        stream.step(state, user_BQ, [False, True, False])
    stream.prefill(state, prompts_MKP, [2, 0])
    together = torch.stack([stream.step(state, user_BQ) for user_BQ in users_TBQ[10:]])
    for row, prompt_KP, first in ((2, prompts_MKP[0], 10), (0, prompts_MKP[1], 10), (1, None, 0)):
        call = Conversation(seed=0, prompt_KP=prompt_KP, user=list(users_TBQ[first:, row]))
        assert torch.equal(together[:, row], alone(stream, call)[10 - first :])


def test_steps_do_not_allocate_with_the_length_of_the_conversation(model: DuplexLM) -> None:
    stream = DuplexStream(model, Sampling())
    state = stream.init_state(2)
    buffers = [tensor for tensor in vars(state).values() if isinstance(tensor, Tensor)]
    addresses = [tensor.data_ptr() for tensor in [*buffers, state.cache.kv, state.cache.offset_B]]
    for seed in range(40):
        stream.step(state, random_codes(model, 8, 2, seed).T, [True, seed % 3 > 0])
    after = [tensor for tensor in vars(state).values() if isinstance(tensor, Tensor)]
    assert addresses == [tensor.data_ptr() for tensor in [*after, state.cache.kv, state.cache.offset_B]]
    assert state.cache.kv.shape[4] == model.config.context


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(text_top_k=10, audio_top_k=20)], ids=["greedy", "sampled"])
def test_a_step_to_be_captured_reads_nothing_back(model: DuplexLM, sampling: Sampling) -> None:
    stream = DuplexStream(DuplexLM(model.config, device="meta"), sampling)  # no values: whatever asks for one fails
    state = stream.init_state(3)
    with torch.no_grad():
        assert stream._advance(state, 8, masked=True).shape == (3, 9)
        with pytest.raises((RuntimeError, NotImplementedError)):
            state.active_B.any().item()


def test_bad_rows_and_cuda_graphs_without_a_gpu_are_refused(model: DuplexLM) -> None:
    stream = DuplexStream(model, GREEDY)
    state = stream.init_state(2)
    for rows in ([], [2], [-1], [1, 1]):
        with refused("bad-value", f"rows={rows}", "0..1"):
            stream.reset(state, rows)
    with refused("bad-combination", "1 seeds", "2"):
        stream.reset(state, [0, 1], [5])
    with refused("bad-combination", "3 rows", "2"):
        stream.step(state, torch.zeros(2, 8), [True, False, True])
    with refused("bad-combination", "cuda_graphs=True", "cpu"):
        DuplexStream(model, GREEDY, cuda_graphs=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(text_top_k=10, audio_top_k=20)], ids=["greedy", "sampled"])
def test_cuda_graphs_give_the_tokens_of_single_launches(model: DuplexLM, sampling: Sampling) -> None:
    on_gpu = language_model("lm_window").cuda()
    graphed = DuplexStream(on_gpu, sampling)
    assert graphed.cuda_graphs
    graphed.live_slots = (4, 8, 12)
    calls = talk(model, graphed, random.Random(3))
    plain = DuplexStream(on_gpu, sampling, cuda_graphs=False)
    for call in calls:
        assert torch.equal(torch.stack(call.agent), alone(plain, call)), call.seed


def user_frames(model: DuplexLM, rows: int, count: int) -> list[Tensor]:
    return [random_codes(model, 8, rows, 500 + n).T for n in range(count)]


MOST = Sampling(text_top_k=20, audio_top_k=30)
OWN = [
    Sampling(text_temperature=0.5, text_top_k=5, audio_temperature=1.2, audio_top_k=30),
    Sampling(greedy=True),
    Sampling(text_top_k=20, audio_temperature=0.3, audio_top_k=2),
    MOST,
]


def test_rows_with_settings_of_their_own_give_what_each_gives_alone(model: DuplexLM) -> None:
    stream = DuplexStream(model, MOST, by_row=True)
    user = user_frames(model, 4, 40)
    state = stream.init_state(4)
    stream.reset(state, range(4), [1, 2, 3, 4], OWN)
    together = torch.stack([stream.step(state, frame) for frame in user])
    for row, sampling in enumerate(OWN):
        alone = stream.init_state(1)
        stream.reset(alone, [0], [row + 1], [sampling])
        own = torch.stack([stream.step(alone, frame[row : row + 1]) for frame in user])
        assert torch.equal(together[:, row], own[:, 0])
    greedy = DuplexStream(model, GREEDY)
    state = greedy.init_state(1)
    assert torch.equal(together[:, 1], torch.stack([greedy.step(state, frame[1:2]) for frame in user])[:, 0])
    plain = DuplexStream(model, MOST)
    state = plain.init_state(1, [4])
    assert torch.equal(together[:, 3], torch.stack([plain.step(state, frame[3:4]) for frame in user])[:, 0])


@pytest.mark.parametrize("parts", [[1, 14], [5, 5, 5], [15]])
def test_a_prompt_in_parts_or_from_a_saved_row_changes_nothing(model: DuplexLM, parts: list[int]) -> None:
    stream, user = DuplexStream(model, MOST, by_row=True), user_frames(model, 1, 20)
    prompt = random_codes(model, 17, 15, 1)[None]
    whole = stream.init_state(1)
    stream.reset(whole, [0], [7])
    stream.prefill(whole, prompt)
    expected = torch.stack([stream.step(whole, frame) for frame in user])
    state, pieces = stream.init_state(3), prompt.split(parts, dim=2)
    stream.reset(state, [1], [7])
    for number, piece in enumerate(pieces):
        if number == len(pieces) - 1 and number:
            saved = stream.save(state, 1)
            assert saved.frames == 15 - parts[-1] and saved.num_bytes == saved.kv.nbytes > 0
            stream.reset(state, [2], [7])
            stream.load(state, 2, saved)
            stream.prefill(state, piece, [2])
        stream.prefill(state, piece, [1], ends=number == len(pieces) - 1)
    rows = [1, 2] if len(parts) > 1 else [1]
    goes = [row in rows for row in range(3)]
    made = torch.stack([stream.step(state, frame.expand(3, -1), goes) for frame in user])
    for row in rows:
        assert torch.equal(made[:, row], expected[:, 0])


def test_settings_that_a_row_cannot_have_are_refused(model: DuplexLM) -> None:
    stream = DuplexStream(model, MOST, by_row=True)
    state = stream.init_state(2)
    with refused("bad-value", "text_top_k=21", "20"):
        stream.reset(state, [0], [1], [Sampling(text_top_k=21, audio_top_k=1)])
    with refused("bad-value", "audio_top_k=0", "30"):
        stream.reset(state, [0], [1], [Sampling(text_top_k=1, audio_top_k=0)])
    plain = DuplexStream(model, MOST)
    with refused("bad-combination", "by_row"):
        plain.reset(plain.init_state(1), [0], [1], [MOST])
    with refused("bad-combination", "greedy"):
        DuplexStream(model, GREEDY, by_row=True)
    stream.step(state, user_frames(model, 2, 1)[0])
    with refused("bad-combination", "row 0", "reset"):
        stream.load(state, 0, stream.save(state, 1))
