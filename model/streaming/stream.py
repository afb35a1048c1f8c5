"""Streaming: one user frame in, the agent's tokens of the same frame out, for a batch of conversations.

Position p of the model is fed [text_p, agent_p[0], agent_{p-1}[1..7] | user_p[0], user_{p-1}[1..7]] and predicts
[text_{p+1}, agent_{p+1}[0], agent_p[1..7]]. Position 0, and every delayed stream at position 1, get start ids, so that
frame 0 never reaches the model. When user frame p arrives, frame p of the agent lacks only its delayed codebooks, which
position p predicts: there is no frame of waiting, where the published PersonaPlex runtime returns it one call later.
"""

# Shapes: B batch, M some rows (of the batch), K streams (17), A agent streams (9: text and 8 codebooks)
# Shapes: Q codebooks (8), P prompt frames, T frames, D width, V vocabulary

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.config import UNGENERATED_ID
from model.duplex import DuplexLM
from model.errors import UserError
from model.streaming.cuda_graphs import StepGraphs
from model.streaming.depth_stream import DepthCache, DepthStream
from model.streaming.graph_check import graph_fault
from model.streaming.offload import is_offloaded
from model.streaming.sample import (
    RowSampling,
    Sampling,
    choose_by_row,
    choose_greedy,
    choose_top_k,
    draw_uniform,
    row_generators,
)
from model.streaming.state import SavedRow, StreamState
from model.streaming.step_maps import linear_map
from model.streaming.temporal_stream import TemporalStream

log = logging.getLogger(__name__)

LIVE_SLOTS = (256, 512, 1024, 1536, 2048, 2560)
"""Lengths of the ring that CUDA graphs read: a step takes the shortest that holds all conversations, or the whole."""


class DuplexStream:
    """Runs a model frame by frame on the 8 depth steps of the agent; it holds no state itself.

    A model with 16 depth steps is served as it is: steps 8..15 predict the user, whose tokens a conversation has.
    The weights are those of the moment: make a new stream after loading or moving the model.
    most_pinned: how many prompt frames a row may keep in sight for ever, see `pin`.
    by_row: whether rows may differ in temperatures and top k, of which `sampling` then gives the largest.
    cuda_graphs: whether to replay each step as one captured CUDA graph; None does so on a GPU.
    Raises: UserError for delays other than 0 and 1, or for CUDA graphs of a model that is not on a GPU.
    """

    def __init__(
        self,
        model: DuplexLM,
        sampling: Sampling,
        *,
        by_row: bool = False,
        most_pinned: int = 0,
        cuda_graphs: bool | None = None,
    ) -> None:
        config = model.config
        if set(config.delays) - {0, 1}:
            raise UserError(f"delays={config.delays}: streaming knows delays of 0 and 1 frame", code="bad-value")
        if by_row and sampling.greedy:
            raise UserError("a stream that is greedy for all rows has no sampling by row", code="bad-combination")
        self.model, self.sampling, self.config, self.by_row = model, sampling, config, by_row
        self.most_pinned = min(most_pinned, config.context - 1)
        self.device, self.dtype = model.text_emb.weight.device, model.text_emb.weight.dtype
        on_gpu = self.device.type == "cuda"
        if cuda_graphs and not on_gpu:
            raise UserError(
                f"cuda_graphs=True with the model on {self.device}: move it to a GPU or leave them out",
                code="bad-combination",
            )
        # What is copied from the host in a step would have to lie still for a graph.
        self.cuda_graphs = on_gpu and not is_offloaded(model) if cuda_graphs is None else cuda_graphs
        # A captured step reads a fixed part of the ring; without graphs it reads what is filled.
        self.live_slots: Sequence[int] = LIVE_SLOTS if self.cuda_graphs else ()
        self.temporal = TemporalStream(model.temporal, model.out_norm)
        self.depth = DepthStream(model.depth, config.num_codebooks)
        self.text_head = linear_map(model.text_head)
        self.num_agent = 1 + config.num_codebooks
        self.delays_K = torch.tensor(config.delays, device=self.device)
        self.is_delayed_K = self.delays_K == 1
        self.agent_delayed_A, self.user_delayed_Q = self.is_delayed_K.split((self.num_agent, config.num_codebooks))
        start_ids = [config.text_start_id] + [config.audio_start_id] * config.n_q
        self.start_K = torch.tensor(start_ids, device=self.device)
        # A prompt's last frame needs the depth steps up to the last codebook without delay: the rest is in the prompt.
        undelayed = [k for k in range(config.num_codebooks) if config.delays[1 + k] == 0]
        self.prefill_steps = max(undelayed, default=-1) + 1
        self.text_k = min(sampling.text_top_k or config.text_card, config.text_card)
        self.audio_k = min(sampling.audio_top_k or config.card, config.card)

    def init_state(self, batch: int, seeds: Sequence[int] | None = None, *, for_steps: bool = True) -> StreamState:
        """State before position 0 of `batch` conversations; on a GPU it captures the steps of all lengths.

        seeds: one a row; the same seed gives the same tokens alone and in a batch. None: random ones. for_steps: False
        is for prompts alone, and captures nothing.
        Raises: UserError if there is not one seed a row.
        """
        host_uniform_BA = torch.zeros(batch, self.num_agent)
        agent_BA, user_BQ = self.start_K.repeat(batch, 1).split((self.num_agent, self.config.num_codebooks), 1)
        state = StreamState(
            cache=self.temporal.init_cache(batch, device=self.device, dtype=self.dtype, most_pinned=self.most_pinned),
            depth_cache=self.depth.init_cache(batch, device=self.device, dtype=self.dtype),
            agent_BA=agent_BA.clone(),
            user_BQ=user_BQ.clone(),
            generators=row_generators(batch, seeds),
            new_user_BQ=user_BQ.clone(),
            active_B=torch.ones(batch, device=self.device, dtype=torch.bool),
            uniform_BA=host_uniform_BA.to(self.device),
            host_uniform_BA=host_uniform_BA,
            active_rows=list(range(batch)),
        )
        if self.by_row:
            cards = (self.config.text_card, self.config.card)
            state.sampling = RowSampling(batch, self.sampling, cards, self.device)
        if self.cuda_graphs and for_steps:
            # All lengths at once: a capture in mid-conversation would make everybody wait. The graphs hold the state's
            # buffers and not the state, since a circle would keep the ring alive until the next collection.
            lengths = [slots for slots in self.live_slots if slots < self.config.context] + [self.config.context]
            state.graphs = self._captured(state, lengths)
        return state

    def _captured(self, state: StreamState, lengths: Sequence[int]) -> StepGraphs | None:
        """The steps of these lengths as graphs; None, after a line, if they cannot be captured or differ."""

        def advance(live: int) -> Tensor:
            return self._advance(state, live, masked=True)

        try:
            state.graphs = StepGraphs(advance, state.active_B, lengths)
            fault = graph_fault(state, advance, lengths)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as why:
            fault = str(why).partition("\n")[0]
        if fault:
            log.warning("steps are not replayed as CUDA graphs from now on: %s", fault)
        return None if fault else state.graphs

    def reset(
        self,
        state: StreamState,
        rows: Sequence[int],
        seeds: Sequence[int] | None = None,
        samplings: Sequence[Sampling] | None = None,
    ) -> None:
        """Ends the conversations of some rows and begins others there, at position 0, with seeds as in `init_state`.

        samplings: of a stream whose rows may differ, one a row; None: that of the stream.
        Raises: UserError for a row outside the batch, if there is not one seed or sampling for each of `rows`, or for
        samplings of a stream whose rows may not differ, or above its bounds.
        """
        self._check_rows(state, rows)
        if samplings is not None and (state.sampling is None or len(samplings) != len(rows)):
            raise UserError(
                f"{len(samplings)} samplings for {len(rows)} rows: give one a row, of a stream made with by_row",
                code="bad-combination",
            )
        if state.sampling is not None:
            state.sampling.set(rows, samplings or [self.sampling] * len(rows))
        for row, generator in zip(rows, row_generators(len(rows), seeds), strict=True):
            state.generators[row] = generator
        state.cache.reset(rows)

    def pin(self, state: StreamState, row: int) -> None:
        """Keeps all that a row has seen so far, its prompt, in sight for ever; calls outlast the window then.

        Raises: UserError for a row outside the batch, or for more frames than may be pinned.
        """
        self._check_rows(state, [row])
        state.cache.pin(row)

    def save(self, state: StreamState, row: int) -> SavedRow:
        """A copy of where a row stands after prompt frames that are not the last ones, for `load`.

        Raises: UserError for a row outside the batch, or one that has outrun its window.
        """
        self._check_rows(state, [row])
        frames = state.cache.positions[row]
        if frames > self.config.context:
            raise UserError(
                f"row {row} stands at frame {frames}, beyond the window of {self.config.context}", code="bad-value"
            )
        kv = state.cache.kv[:, :, row, :, :frames].clone()
        return SavedRow(kv, state.agent_BA[row].clone(), state.user_BQ[row].clone(), frames)

    def load(self, state: StreamState, row: int, saved: SavedRow) -> None:
        """Lets a row that was just reset go on from where another one stood. Raises: UserError for other rows."""
        self._check_rows(state, [row])
        if state.cache.positions[row]:
            raise UserError(f"row {row} is in a conversation: reset it first", code="bad-combination")
        state.cache.kv[:, :, row, :, : saved.frames] = saved.kv
        state.agent_BA[row], state.user_BQ[row] = saved.agent_A, saved.user_Q
        state.cache.positions[row] = saved.frames
        state.cache.offset_B[row] = saved.frames

    def replace(self, state: StreamState, row: int, saved: SavedRow) -> None:
        """Lets a row go on with other keys and values behind it, in the midst of a conversation.

        They are those of a row that was fed what this one was, but for a part that is left out: what follows is as if
        that part had never been. Its random numbers and the frame that it has begun stay as they are.
        Raises: UserError for a row outside the batch.
        """
        self._check_rows(state, [row])
        state.cache.reset([row])
        state.cache.kv[:, :, row, :, : saved.frames] = saved.kv
        state.cache.positions[row] = saved.frames
        state.cache.offset_B[row] = saved.frames

    @torch.inference_mode()
    def prefill(
        self, state: StreamState, prompt_MKP: Tensor, rows: Sequence[int] | None = None, *, ends: bool = True
    ) -> None:
        """Feeds prompt frames, frame 0 included, in one pass; it may be called again with further frames.

        The depth transformer runs once, at the last position, because the prompt does not hold what the next frame
        starts with. ends: whether the prompt ends here; in parts that are followed by others it need not run, and no
        random number is drawn, so that the parts do not matter.
        Shapes: prompt_MKP: one prompt for each of `rows` (None: all rows); the other rows stay as they are.
        Raises: UserError if the prompt has no frame or is not [M, 17, P], or for a row outside the batch.
        """
        rows = list(range(state.batch)) if rows is None else list(rows)
        self._check_rows(state, rows)
        if any(state.cache.pinned[row] for row in rows):
            raise UserError("a row with a pinned prompt cannot be fed another: reset it first", code="bad-combination")
        self._check_shape("prompt", prompt_MKP, len(rows), self.config.num_streams)
        prompt_MKP = prompt_MKP.to(self.device, torch.int64)
        rows_M = torch.tensor(rows, device=self.device)
        before_MK1 = torch.cat([state.agent_BA[rows_M], state.user_BQ[rows_M]], dim=1)[:, :, None]
        line_MKT = torch.cat([before_MK1, prompt_MKP], dim=2)  # It is one frame longer: index p holds frame p - 1.
        inputs_MKP = torch.where(self.is_delayed_K[:, None], line_MKT[:, :, :-1], line_MKT[:, :, 1:])
        positions_MP = state.cache.offset_B[rows_M][:, None] + torch.arange(prompt_MKP.shape[2], device=self.device)
        x_MPD = self.model.embed(self._with_start_ids(inputs_MKP, positions_MP))
        hidden_MD = self.temporal.extend(x_MPD, state.cache, rows)[:, -1].contiguous()
        agent_MA, user_MQ = prompt_MKP[:, :, -1].split((self.num_agent, self.config.num_codebooks), 1)
        state.user_BQ[rows_M] = user_MQ
        if not ends:
            state.agent_BA[rows_M] = agent_MA
            return
        uniform_MA = self._uniform(state, rows)[rows_M]
        depth_cache = self.depth.init_cache(len(rows), device=self.device, dtype=self.dtype)
        choose = self._chooser(uniform_MA, state.sampling, rows_M)
        tokens = self._generate(hidden_MD, depth_cache, choose, self.prefill_steps)
        # The codebooks that did not run are delayed ones, which the prompt holds: the text fills their places.
        tokens_MA = torch.stack(tokens + tokens[:1] * (self.num_agent - len(tokens)), dim=1)
        state.agent_BA[rows_M] = torch.where(self.agent_delayed_A, agent_MA, tokens_MA)

    @torch.inference_mode()
    def step(self, state: StreamState, user_codes_BQ: Tensor, active: Sequence[bool] | Tensor | None = None) -> Tensor:
        """Feeds one user frame [B, 8] and returns the agent's tokens [B, 9] of the same frame, text first.

        A row that is not active stays as it is, whatever its user codes, and gets UNGENERATED_ID for tokens. So does
        the first frame of a row without a prompt, which is discarded.
        active: which rows go on, [B], on the host; None: all.
        Raises: UserError if the codes are not [B, 8] or `active` is not [B].
        """
        self._check_shape("user codes", user_codes_BQ[:, :, None], state.batch, self.config.num_codebooks)
        rows = self._active_rows(state, active)
        if rows != state.active_rows:
            state.active_rows = rows
            state.active_B.copy_(torch.tensor([row in rows for row in range(state.batch)]))
        state.new_user_BQ.copy_(user_codes_BQ)
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
        """One step on the state's buffers, which reads `live` slots; all shapes are static, the host reads nothing."""
        cache = state.cache
        fed_user_BQ = torch.where(self.user_delayed_Q, state.user_BQ, state.new_user_BQ)
        inputs_BK = torch.cat([state.agent_BA, fed_user_BQ], dim=1)
        # The codes of a row that is not active mean nothing, so that it gets start ids too.
        positions_B = cache.offset_B * state.active_B
        inputs_BK1 = self._with_start_ids(inputs_BK[:, :, None], positions_B[:, None])
        hidden_BD = self.temporal.step(self.model.embed(inputs_BK1)[:, 0], cache, cache.window(live, masked=masked))
        choose = self._chooser(state.uniform_BA, state.sampling)
        tokens = self._generate(hidden_BD, state.depth_cache, choose, self.config.num_codebooks)
        tokens_BA = torch.stack(tokens, dim=1)
        frame_BA = torch.where(self.agent_delayed_A, tokens_BA, state.agent_BA)
        active_B1 = state.active_B[:, None]
        frame_BA.masked_fill_(~active_B1 | (cache.offset_B == 0)[:, None], UNGENERATED_ID)
        state.agent_BA.copy_(torch.where(active_B1, tokens_BA, state.agent_BA))
        state.user_BQ.copy_(torch.where(active_B1, state.new_user_BQ, state.user_BQ))
        cache.offset_B += state.active_B
        return frame_BA

    def _with_start_ids(self, inputs_MKT: Tensor, positions_MT: Tensor) -> Tensor:
        """Puts start ids in the place of frame 0 and of what would lie before it."""
        is_start_MKT = positions_MT[:, None] <= self.delays_K[:, None]
        return torch.where(is_start_MKT, self.start_K[:, None], inputs_MKT)

    def _generate(
        self, hidden_MD: Tensor, cache: DepthCache, choose: Callable[[int, Tensor], Tensor], num_steps: int
    ) -> list[Tensor]:
        """Agent tokens of one position, [M] each: the text and the first `num_steps` codebooks."""
        text_M = choose(-1, self.text_head(hidden_MD))
        return [text_M, *self.depth.generate(hidden_MD, text_M, choose, cache, num_steps)]

    def _chooser(
        self, uniform_MA: Tensor, by_row: RowSampling | None, rows_M: Tensor | None = None
    ) -> Callable[[int, Tensor], Tensor]:
        """Returns the function that picks tokens from the logits of depth step k (text: -1).

        by_row: the sampling of all rows, of which rows_M are meant (None: all of them).
        """
        sampling, text_k, audio_k = self.sampling, self.text_k, self.audio_k
        if sampling.greedy:
            return lambda k, logits_MV: choose_greedy(logits_MV)
        if by_row is not None:
            own = (by_row.text_temperature_B1, by_row.text_k_B1, by_row.audio_temperature_B1, by_row.audio_k_B1)
            text_heat_M1, text_k_M1, audio_heat_M1, audio_k_M1 = (
                values_B1 if rows_M is None else values_B1[rows_M] for values_B1 in own
            )

            def choose_own(k: int, logits_MV: Tensor) -> Tensor:
                uniform_M1 = uniform_MA[:, 1 + k : 2 + k]
                if k < 0:
                    return choose_by_row(logits_MV, text_heat_M1, text_k_M1, text_k, uniform_M1)
                return choose_by_row(logits_MV, audio_heat_M1, audio_k_M1, audio_k, uniform_M1)

            return choose_own

        def choose(k: int, logits_MV: Tensor) -> Tensor:
            uniform_M1 = uniform_MA[:, 1 + k : 2 + k]
            if k < 0:
                return choose_top_k(logits_MV, sampling.text_temperature, text_k, uniform_M1)
            return choose_top_k(logits_MV, sampling.audio_temperature, audio_k, uniform_M1)

        return choose

    def _uniform(self, state: StreamState, rows: Sequence[int]) -> Tensor:
        """Random numbers [B, 9], drawn anew for some rows, once a position for all its tokens."""
        if not self.sampling.greedy:
            draw_uniform(state.generators, state.host_uniform_BA, rows)
            state.uniform_BA.copy_(state.host_uniform_BA)
        return state.uniform_BA

    def _active_rows(self, state: StreamState, active: Sequence[bool] | Tensor | None) -> list[int]:
        if active is None:
            return list(range(state.batch))
        if len(active) != state.batch:
            raise UserError(f"active for {len(active)} rows: give {state.batch}, one a row", code="bad-combination")
        return [row for row, is_active in enumerate(active) if is_active]

    def _check_rows(self, state: StreamState, rows: Sequence[int]) -> None:
        if not rows or len(set(rows)) < len(rows) or min(rows) < 0 or max(rows) >= state.batch:
            raise UserError(f"rows={list(rows)}: give different rows in 0..{state.batch - 1}", code="bad-value")

    def _check_shape(self, name: str, codes: Tensor, rows: int, streams: int) -> None:
        if codes.ndim != 3 or codes.shape[:2] != (rows, streams) or codes.shape[2] == 0:
            raise UserError(f"{name} of shape {tuple(codes.shape)}: give [{rows}, {streams}, frames]", code="bad-value")
