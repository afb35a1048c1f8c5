"""Streaming: one user frame in, the agent's tokens of the same frame out, for a batch of conversations.

Shapes: B batch, R some rows of it, K streams (17), A agent streams (9: text and 8 codebooks), C codebooks (8), P prompt
frames, D width, V vocabulary.

Position p of the model is fed [text_p, agent_p[0], agent_{p-1}[1..7] | user_p[0], user_{p-1}[1..7]] and answers with
[text_{p+1}, agent_{p+1}[0], agent_p[1..7]]. Position 0, and every delayed stream at position 1, get start ids: frame 0
never reaches the model. When user frame p arrives, frame p of the agent lacks only its delayed codebooks, which
position p gives: no frame of waiting (the published PersonaPlex runtime answers one call later).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from model.config import UNGENERATED_ID
from model.duplex import DuplexLM
from model.errors import UserError
from model.streaming.cuda_graphs import StepGraphs
from model.streaming.depth_stream import DepthCache, DepthStream
from model.streaming.kv_cache import KVCache
from model.streaming.sample import Sampling, choose_greedy, choose_top_k, draw_uniform, row_generators
from model.streaming.step_maps import linear_map
from model.streaming.temporal_stream import TemporalStream

LIVE_SLOTS = (256, 512, 1024, 1536, 2048, 2560)
"""Lengths of the ring that a CUDA graph reads: the shortest that holds the longest conversation, or the whole ring."""


@dataclass
class StreamState:
    """All that a batch of conversations needs to go on; made by `DuplexStream.init_state`, changed in place.

    cache: keys and values of the temporal transformer; its offset_B is the position each row is fed next.
    depth_cache: working space of one frame. agent_BA: agent streams of the next position, delays applied.
    user_BC: the user frame before it. generators: one random stream a row.
    new_user_BC, active_B, uniform_BA: what the present step is given. graphs: captured steps, on a GPU.
    """

    cache: KVCache
    depth_cache: DepthCache
    agent_BA: Tensor
    user_BC: Tensor
    generators: list[Generator]
    new_user_BC: Tensor
    active_B: Tensor
    uniform_BA: Tensor
    host_uniform_BA: Tensor
    active_rows: list[int]
    graphs: StepGraphs | None = field(default=None, repr=False)

    @property
    def batch(self) -> int:
        return len(self.generators)


class DuplexStream:
    """Runs a model frame by frame on the 8 depth steps of the agent; it holds no state itself.

    A model with 16 depth steps is served as it is: steps 8..15 predict the user, whose tokens a conversation has.
    The weights are those of the moment: make a new one after loading or moving the model.
    cuda_graphs: replay each step as one captured CUDA graph; None: yes, on a GPU.
    Raises: UserError for delays other than 0 and 1, or CUDA graphs for a model that is not on a GPU.
    """

    def __init__(self, model: DuplexLM, sampling: Sampling, *, cuda_graphs: bool | None = None) -> None:
        config = model.config
        if set(config.delays) - {0, 1}:
            raise UserError(f"delays={config.delays}: streaming knows delays of 0 and 1 frame")
        self.model, self.sampling, self.config = model, sampling, config
        self.device, self.dtype = model.text_emb.weight.device, model.text_emb.weight.dtype
        on_gpu = self.device.type == "cuda"
        if cuda_graphs and not on_gpu:
            raise UserError(f"cuda_graphs=True with the model on {self.device}: move it to a GPU or leave them out")
        self.cuda_graphs = on_gpu if cuda_graphs is None else cuda_graphs
        # A captured step reads a fixed part of the ring; without graphs it reads what is filled.
        self.live_slots: Sequence[int] = LIVE_SLOTS if self.cuda_graphs else ()
        self.temporal = TemporalStream(model.temporal, model.out_norm)
        self.depth = DepthStream(model.depth, config.num_codebooks)
        self.text_head = linear_map(model.text_head)
        self.num_agent = 1 + config.num_codebooks
        self.delays_K = torch.tensor(config.delays, device=self.device)
        self.is_delayed_K = self.delays_K == 1
        self.agent_delayed_A, self.user_delayed_C = self.is_delayed_K.split((self.num_agent, config.num_codebooks))
        start_ids = [config.text_start_id] + [config.audio_start_id] * config.n_q
        self.start_K = torch.tensor(start_ids, device=self.device)
        # Depth steps up to the last codebook without delay; the others of a prompt's last frame are in the prompt.
        self.prefill_steps = max(k for k in range(config.num_codebooks) if config.delays[1 + k] == 0) + 1
        self.text_k = min(sampling.text_top_k or config.text_card, config.text_card)
        self.audio_k = min(sampling.audio_top_k or config.card, config.card)

    def init_state(self, batch: int, seeds: Sequence[int] | None = None) -> StreamState:
        """State before position 0. With seeds, one a row, the same seed gives the same tokens alone and in a batch."""
        host_uniform_BA = torch.zeros(batch, self.num_agent)
        agent_BA, user_BC = self.start_K.repeat(batch, 1).split((self.num_agent, self.config.num_codebooks), 1)
        state = StreamState(
            cache=self.temporal.init_cache(batch, device=self.device, dtype=self.dtype),
            depth_cache=self.depth.init_cache(batch, device=self.device, dtype=self.dtype),
            agent_BA=agent_BA.clone(),
            user_BC=user_BC.clone(),
            generators=row_generators(batch, seeds),
            new_user_BC=user_BC.clone(),
            active_B=torch.ones(batch, device=self.device, dtype=torch.bool),
            uniform_BA=host_uniform_BA.to(self.device),
            host_uniform_BA=host_uniform_BA,
            active_rows=list(range(batch)),
        )
        if self.cuda_graphs:
            state.graphs = StepGraphs(lambda live: self._advance(state, live, masked=True), state.active_B)
        return state

    def reset(self, state: StreamState, rows: Sequence[int], seeds: Sequence[int] | None = None) -> None:
        """Ends the conversations of some rows and begins others there, at position 0, with seeds as in `init_state`.

        Raises: UserError for a row outside the batch, or as many seeds as there are no rows.
        """
        self._check_rows(state, rows)
        for row, generator in zip(rows, row_generators(len(rows), seeds), strict=True):
            state.generators[row] = generator
        state.cache.reset(rows)

    @torch.inference_mode()
    def prefill(self, state: StreamState, prompt_RKP: Tensor, rows: Sequence[int] | None = None) -> None:
        """Feeds prompt frames [R, 17, P], frame 0 included, in one pass; it may be called again with further frames.

        rows: the rows that the prompt is for, the others stay as they are; None: all. The depth transformer runs once,
        at the last position: what the next frame starts with is not in the prompt.
        Raises: UserError if the prompt has no frame or is not [R, 17, P], or for a row outside the batch.
        """
        rows = list(range(state.batch)) if rows is None else list(rows)
        self._check_rows(state, rows)
        self._check_shape("prompt", prompt_RKP, len(rows), self.config.num_streams)
        prompt_RKP = prompt_RKP.to(self.device, torch.int64)
        rows_R = torch.tensor(rows, device=self.device)
        before_RK1 = torch.cat([state.agent_BA[rows_R], state.user_BC[rows_R]], dim=1)[:, :, None]
        line_RKT = torch.cat([before_RK1, prompt_RKP], dim=2)  # one frame longer: index p holds frame p - 1
        inputs_RKP = torch.where(self.is_delayed_K[:, None], line_RKT[:, :, :-1], line_RKT[:, :, 1:])
        positions_RP = state.cache.offset_B[rows_R][:, None] + torch.arange(prompt_RKP.shape[2], device=self.device)
        x_RPD = self.model.embed(self._with_start_ids(inputs_RKP, positions_RP))
        hidden_RD = self.temporal.extend(x_RPD, state.cache, rows)[:, -1].contiguous()
        uniform_RA = self._uniform(state, rows)[rows_R]
        depth_cache = self.depth.init_cache(len(rows), device=self.device, dtype=self.dtype)
        answer = self._generate(hidden_RD, depth_cache, uniform_RA, self.prefill_steps)
        # the codebooks that were not run are delayed ones: they are taken from the prompt
        answer_RA = torch.stack(answer + answer[:1] * (self.num_agent - len(answer)), dim=1)
        agent_RA, user_RC = prompt_RKP[:, :, -1].split((self.num_agent, self.config.num_codebooks), 1)
        state.agent_BA[rows_R] = torch.where(self.agent_delayed_A, agent_RA, answer_RA)
        state.user_BC[rows_R] = user_RC

    @torch.inference_mode()
    def step(self, state: StreamState, user_codes_BC: Tensor, active: Sequence[bool] | Tensor | None = None) -> Tensor:
        """Feeds one user frame [B, 8] and returns the agent's tokens [B, 9] of the same frame, text first.

        active: [B], on the host; rows where it is false stay as they are, whatever their user codes, and answer
        UNGENERATED_ID. None: all rows go on. The first frame of a row without a prompt is discarded and its answer is
        UNGENERATED_ID too.
        Raises: UserError if the codes are not [B, 8] or `active` is not [B].
        """
        self._check_shape("user codes", user_codes_BC[:, :, None], state.batch, self.config.num_codebooks)
        rows = self._active_rows(state, active)
        if rows != state.active_rows:
            state.active_rows = rows
            state.active_B.copy_(torch.tensor([row in rows for row in range(state.batch)]))
        state.new_user_BC.copy_(user_codes_BC)
        self._uniform(state, rows)
        live = state.cache.live(rows)
        if state.graphs is not None:
            frame_BA = state.graphs.replay(self._static_length(live)).clone()
        elif self.live_slots:
            frame_BA = self._advance(state, self._static_length(live), masked=True)
        else:
            frame_BA = self._advance(state, live, masked=not state.cache.all_visible(rows))
        for row in rows:
            state.cache.positions[row] += 1
        return frame_BA

    def _static_length(self, live: int) -> int:
        return min((slots for slots in self.live_slots if slots >= live), default=self.config.context)

    def _advance(self, state: StreamState, live: int, *, masked: bool) -> Tensor:
        """One step on the state's buffers, reading `live` slots: static shapes, nothing read back by the host."""
        cache = state.cache
        fed_user_BC = torch.where(self.user_delayed_C, state.user_BC, state.new_user_BC)
        inputs_BK = torch.cat([state.agent_BA, fed_user_BC], dim=1)
        positions_B = cache.offset_B * state.active_B  # start ids too where a row is not active: its codes mean nothing
        inputs_BK1 = self._with_start_ids(inputs_BK[:, :, None], positions_B[:, None])
        hidden_BD = self.temporal.step(self.model.embed(inputs_BK1)[:, 0], cache, cache.window(live, masked=masked))
        answer = self._generate(hidden_BD, state.depth_cache, state.uniform_BA, self.config.num_codebooks)
        answer_BA = torch.stack(answer, dim=1)
        frame_BA = torch.where(self.agent_delayed_A, answer_BA, state.agent_BA)
        active_B1 = state.active_B[:, None]
        frame_BA.masked_fill_(~active_B1 | (cache.offset_B == 0)[:, None], UNGENERATED_ID)
        state.agent_BA.copy_(torch.where(active_B1, answer_BA, state.agent_BA))
        state.user_BC.copy_(torch.where(active_B1, state.new_user_BC, state.user_BC))
        cache.offset_B += state.active_B
        return frame_BA

    def _with_start_ids(self, inputs_RKT: Tensor, positions_RT: Tensor) -> Tensor:
        """Puts start ids where frame 0 or less would be fed."""
        is_start_RKT = positions_RT[:, None] <= self.delays_K[:, None]
        return torch.where(is_start_RKT, self.start_K[:, None], inputs_RKT)

    def _generate(self, hidden_RD: Tensor, cache: DepthCache, uniform_RA: Tensor, num_steps: int) -> list[Tensor]:
        """Agent tokens of one position, [R] each: the text and the first `num_steps` codebooks."""
        choose = self._chooser(uniform_RA)
        text_R = choose(-1, self.text_head(hidden_RD))
        return [text_R, *self.depth.generate(hidden_RD, text_R, choose, cache, num_steps)]

    def _chooser(self, uniform_RA: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Picks a token from logits of depth step k (text: -1)."""
        sampling, text_k, audio_k = self.sampling, self.text_k, self.audio_k
        if sampling.greedy:
            return lambda k, logits_RV: choose_greedy(logits_RV)

        def choose(k: int, logits_RV: Tensor) -> Tensor:
            uniform_R1 = uniform_RA[:, 1 + k : 2 + k]
            if k < 0:
                return choose_top_k(logits_RV, sampling.text_temperature, text_k, uniform_R1)
            return choose_top_k(logits_RV, sampling.audio_temperature, audio_k, uniform_R1)

        return choose

    def _uniform(self, state: StreamState, rows: Sequence[int]) -> Tensor:
        """[B, 9] random numbers, drawn anew for some rows: once a position, for all its tokens."""
        if not self.sampling.greedy:
            draw_uniform(state.generators, state.host_uniform_BA, rows)
            state.uniform_BA.copy_(state.host_uniform_BA)
        return state.uniform_BA

    def _active_rows(self, state: StreamState, active: Sequence[bool] | Tensor | None) -> list[int]:
        if active is None:
            return list(range(state.batch))
        if len(active) != state.batch:
            raise UserError(f"active for {len(active)} rows: give {state.batch}, one a row")
        return [row for row, is_active in enumerate(active) if is_active]

    def _check_rows(self, state: StreamState, rows: Sequence[int]) -> None:
        if not rows or len(set(rows)) < len(rows) or min(rows) < 0 or max(rows) >= state.batch:
            raise UserError(f"rows={list(rows)}: give different rows in 0..{state.batch - 1}")

    def _check_shape(self, name: str, codes_RKT: Tensor, rows: int, streams: int) -> None:
        if codes_RKT.ndim != 3 or codes_RKT.shape[:2] != (rows, streams) or codes_RKT.shape[2] == 0:
            raise UserError(f"{name} of shape {tuple(codes_RKT.shape)}: give [{rows}, {streams}, frames]")
