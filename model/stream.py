"""Streaming: one user frame in, the agent's tokens of the same frame out.

Shapes: B batch, K streams (17), A agent streams (9: text and 8 codebooks), C codebooks (8), P prompt frames, D width.

Position p of the model is fed [text_p, agent_p[0], agent_{p-1}[1..7] | user_p[0], user_{p-1}[1..7]] and answers with
[text_{p+1}, agent_{p+1}[0], agent_p[1..7]]. Position 0, and every delayed stream at position 1, get start ids: frame 0
never reaches the model. When user frame p arrives, frame p of the agent lacks only its delayed codebooks, which
position p gives: no frame of waiting (the published PersonaPlex runtime answers one call later).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from model.config import UNGENERATED_ID
from model.depth import DepthCache
from model.duplex import DuplexLM
from model.errors import UserError
from model.kv_cache import KVCache
from model.sample import Sampling, choose_greedy, choose_top_k, draw_noise, row_generators


@dataclass
class StreamState:
    """All that a conversation needs to go on; made by `DuplexStream.init_state`, changed in place.

    cache: keys and values of the temporal transformer; its offset_B is the position each row is fed next.
    depth_cache: working space of one frame. agent_BA: agent streams of the next position, delays applied.
    user_BC: the user frame before it. generators: one random stream a row.
    """

    cache: KVCache
    depth_cache: DepthCache
    agent_BA: Tensor
    user_BC: Tensor
    generators: list[Generator]


class DuplexStream:
    """Runs a model frame by frame on the 8 depth steps of the agent; it holds no state itself.

    A model with 16 depth steps is served as it is: steps 8..15 predict the user, whose tokens a conversation has.
    Raises: UserError for delays other than 0 and 1.
    """

    def __init__(self, model: DuplexLM, sampling: Sampling) -> None:
        config = model.config
        if set(config.delays) - {0, 1}:
            raise UserError(f"delays={config.delays}: streaming knows delays of 0 and 1 frame")
        self.model, self.sampling, self.config = model, sampling, config
        self.device = model.text_emb.weight.device
        self.delays_K = torch.tensor(config.delays, device=self.device)
        start_ids = [config.text_start_id] + [config.audio_start_id] * config.n_q
        self.start_K = torch.tensor(start_ids, device=self.device)
        self.num_agent = 1 + config.num_codebooks
        # Depth steps up to the last codebook without delay; the others of a prompt's last frame are in the prompt.
        self.prefill_steps = max(k for k in range(config.num_codebooks) if config.delays[1 + k] == 0) + 1
        self.text_k = min(sampling.text_top_k or config.text_card, config.text_card)
        self.audio_k = min(sampling.audio_top_k or config.card, config.card)

    def init_state(self, batch: int, seeds: Sequence[int] | None = None) -> StreamState:
        """State before position 0. With seeds, one a row, the same seed gives the same tokens alone and in a batch."""
        model, dtype = self.model, self.model.text_emb.weight.dtype
        return StreamState(
            cache=model.temporal.init_cache(batch, device=self.device, dtype=dtype),
            depth_cache=model.depth.init_cache(batch, device=self.device, dtype=dtype),
            agent_BA=self.start_K[: self.num_agent].repeat(batch, 1),
            user_BC=self.start_K[self.num_agent :].repeat(batch, 1),
            generators=row_generators(batch, seeds),
        )

    @torch.no_grad()
    def prefill(self, state: StreamState, prompt_BKP: Tensor) -> None:
        """Feeds prompt frames [B, 17, P], frame 0 included, in one pass; it may be called again with further frames.

        The depth transformer runs once, at the last position: what the next frame starts with is not in the prompt.
        Raises: UserError if the prompt has no frame or is not [B, 17, P].
        """
        self._check_shape("prompt", prompt_BKP, state, self.config.num_streams)
        prompt_BKP = prompt_BKP.to(self.device, torch.int64)
        before_BK1 = torch.cat([state.agent_BA, state.user_BC], dim=1)[:, :, None]
        line_BKT = torch.cat([before_BK1, prompt_BKP], dim=2)  # one frame longer: index p holds frame p - 1
        is_delayed_K1 = (self.delays_K == 1)[:, None]
        inputs_BKP = torch.where(is_delayed_K1, line_BKT[:, :, :-1], line_BKT[:, :, 1:])
        hidden_BD = self._hidden(state, inputs_BKP)
        answer_BA = self._generate(state, hidden_BD, self.prefill_steps)
        last_BA = prompt_BKP[:, : self.num_agent, -1]
        state.agent_BA = torch.where(self.delays_K[: self.num_agent] == 1, last_BA, answer_BA)
        state.user_BC = prompt_BKP[:, self.num_agent :, -1]

    @torch.no_grad()
    def step(self, state: StreamState, user_codes_BC: Tensor) -> Tensor:
        """Feeds one user frame [B, 8] and returns the agent's tokens [B, 9] of the same frame, text first.

        Without a prompt the first frame is discarded and its answer is UNGENERATED_ID.
        Raises: UserError if the codes are not [B, 8].
        """
        self._check_shape("user codes", user_codes_BC[:, :, None], state, self.config.num_codebooks)
        user_BC = user_codes_BC.to(self.device, torch.int64)
        fed_user_BC = torch.where(self.delays_K[self.num_agent :] == 1, state.user_BC, user_BC)
        is_first_B1 = (state.cache.offset_B == 0)[:, None]
        hidden_BD = self._hidden(state, torch.cat([state.agent_BA, fed_user_BC], dim=1)[:, :, None])
        answer_BA = self._generate(state, hidden_BD, self.config.num_codebooks)
        frame_BA = torch.where(self.delays_K[: self.num_agent] == 1, answer_BA, state.agent_BA)
        state.agent_BA, state.user_BC = answer_BA, user_BC
        return torch.where(is_first_B1, UNGENERATED_ID, frame_BA)

    def _hidden(self, state: StreamState, inputs_BKT: Tensor) -> Tensor:
        """Temporal output [B, D] of the last of T positions; puts start ids where frame 0 or less would be fed."""
        steps = torch.arange(inputs_BKT.shape[2], device=self.device)
        positions_B1T = (state.cache.offset_B[:, None] + steps)[:, None]
        is_start_BKT = positions_B1T <= self.delays_K[:, None]
        inputs_BKT = torch.where(is_start_BKT, self.start_K[:, None], inputs_BKT)
        return self.model.hidden(inputs_BKT, state.cache)[:, -1]

    def _generate(self, state: StreamState, hidden_BD: Tensor, num_steps: int) -> Tensor:
        """Agent tokens [B, 9] of one position; codebooks from num_steps on are not run and come back as 0."""
        choose = self._chooser(state)
        text_B = choose(-1, self.model.text_head(hidden_BD))
        tokens_BC = self.model.depth.generate(hidden_BD, text_B, choose, num_steps, state.depth_cache)
        missing_BC = tokens_BC.new_zeros(tokens_BC.shape[0], self.config.num_codebooks - num_steps)
        return torch.cat([text_B[:, None], tokens_BC, missing_BC], dim=1)

    def _chooser(self, state: StreamState) -> Callable[[int, Tensor], Tensor]:
        """Picks a token from logits of depth step k (text: -1), with noise drawn once a position for all its tokens."""
        sampling, text_k, audio_k = self.sampling, self.text_k, self.audio_k
        if sampling.greedy:
            return lambda k, logits_BV: choose_greedy(logits_BV)
        noise_BN = draw_noise(state.generators, text_k + self.config.num_codebooks * audio_k, self.device)

        def choose(k: int, logits_BV: Tensor) -> Tensor:
            if k < 0:
                return choose_top_k(logits_BV, sampling.text_temperature, noise_BN[:, :text_k])
            first = text_k + k * audio_k
            return choose_top_k(logits_BV, sampling.audio_temperature, noise_BN[:, first : first + audio_k])

        return choose

    def _check_shape(self, name: str, codes_BKT: Tensor, state: StreamState, streams: int) -> None:
        batch = state.agent_BA.shape[0]
        if codes_BKT.ndim != 3 or codes_BKT.shape[:2] != (batch, streams) or codes_BKT.shape[2] == 0:
            raise UserError(f"{name} of shape {tuple(codes_BKT.shape)}: give [{batch}, {streams}, frames]")
