"""Many conversations in one batch: each joins, is prompted, talks and leaves on its own.

There is no clock and no thread here: a live engine calls `step` every 80 ms, an offline tool as fast as it can, and
both get the same tokens for the same settings and frames.
"""

# Shapes: B batch (slots), K streams, P prompt frames, S samples (of a frame), A agent streams, Q codebooks, T frames

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from model.config import FRAME_SAMPLES, UNGENERATED_ID
from model.errors import UserError
from model.streaming.sample import Sampling
from model.streaming.state import SavedRow
from model.streaming.stream import DuplexStream
from model.text import SPECIAL_NAMES
from ppx_train.inference.loading import Release
from ppx_train.inference.model_options import PastWindow
from ppx_train.inference.refresh import History, Refresh, can_refresh, is_time
from ppx_train.inference.session import AgentFrame, Audio, Session, SessionSettings

PART_FRAMES = 64
"""Frames of a prompt in one pass: as many as fit between two frames of the others."""
CACHE_BYTES = 2**30


class PrefixCache:
    """Where the model stood after the beginning of prompts that were seen before: voices, and voices with roles."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.hits = self.misses = 0
        self._kept: OrderedDict[bytes, SavedRow] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> SavedRow | None:
        """What was kept for a key, which becomes the newest."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, saved: SavedRow) -> None:
        """Keeps one more, and drops the oldest beyond `most_bytes`."""
        if saved.num_bytes > self.most_bytes:
            return
        self._kept[key] = saved
        while sum(kept.num_bytes for kept in self._kept.values()) > self.most_bytes:
            self._kept.popitem(last=False)


class Conversations:
    """A fixed number of slots of one model.

    most: the largest top k that a conversation may ask for. past_window: one of PastWindow. With equal settings, frames
    and number of slots, tokens are equal whatever the others do; on a CPU in fp32 also for other numbers of slots.
    """

    def __init__(
        self,
        release: Release,
        slots: int,
        *,
        most: Sampling | None = None,
        cache_bytes: int = CACHE_BYTES,
        past_window: PastWindow = "forget",
    ) -> None:
        """Raises: UserError if there is no slot."""
        if slots < 1:
            raise UserError(f"{slots} slots: give 1 or more", code="bad-value")
        self.release, self.past_window = release, past_window
        self.context = release.lm.config.context
        most_pinned = self.context // 2 if past_window == "pin" else 0
        self.stream = DuplexStream(release.lm, most or Sampling(), by_row=True, most_pinned=most_pinned)
        self.state = self.stream.init_state(slots)
        self.encoder = release.codec.init_encoder_state(slots)
        self.decoder = release.codec.init_decoder_state(slots)
        self.sessions: list[Session | None] = [None] * slots
        self.prefixes = PrefixCache(cache_bytes)
        self._wav_B1S = torch.zeros(slots, 1, FRAME_SAMPLES)

    @property
    def free(self) -> int:
        """Slots that are not taken."""
        return self.sessions.count(None)

    def check(self, settings: SessionSettings) -> None:
        """Raises UserError for sampling beyond the bounds, or a prompt that is too long to be kept in sight."""
        assert self.state.sampling is not None
        self.state.sampling.check(settings.sampling)
        check_in_sight(self.context, settings.prompt_frames, self.past_window)

    @torch.inference_mode()  # What a step has left in the codec's states may only be changed in this mode.
    def join(self, settings: SessionSettings) -> Session:
        """Begins a conversation in a free slot. Raises: UserError if none is free ("in-use"), or as `check`."""
        self.check(settings)
        if None not in self.sessions:
            raise UserError(f"all {len(self.sessions)} slots are taken: try again later", code="in-use")
        slot = self.sessions.index(None)
        seeds = None if settings.seed is None else [settings.seed]
        self.stream.reset(self.state, [slot], seeds, [settings.sampling])
        self.encoder.reset([slot])
        self.decoder.reset([slot])
        session = Session(settings, slot, self.release.tokenizer)
        if self.past_window == "refresh" and settings.prompt_frames:
            session.history = History(self.context)
        self.sessions[slot] = session
        for frames in reversed(self._ends(settings)):
            saved = self.prefixes.get(_key(settings, frames))
            if saved is not None:
                self.stream.load(self.state, slot, saved)
                session.prompted = frames
                self.prefixes.hits += 1
                return session
        self.prefixes.misses += bool(settings.prompt_frames)
        return session

    def leave(self, session: Session) -> None:
        """Ends a conversation; its slot is free for the next one."""
        if self.sessions[session.slot] is session:
            self.sessions[session.slot] = None
        session.ended = True

    def feed_prompts(self, budget: int = PART_FRAMES) -> int:
        """Lets the model see up to `budget` frames of the prompt of whoever waits longest, and returns how many.

        If nobody waits, a refresh is fed, if there is one.
        """
        waiting = [session for session in self.sessions if session is not None and not session.is_ready]
        if not waiting or budget < 1:
            return self._feed_refresh(budget)
        session = max(waiting, key=lambda waits: waits.prompted / waits.settings.prompt_frames)
        settings, start = session.settings, session.prompted
        assert settings.prompt_KP is not None
        ends = [*self._ends(settings), settings.prompt_frames]
        stop = min(start + min(budget, PART_FRAMES), next(end for end in ends if end > start))
        is_last = stop == settings.prompt_frames
        self.stream.prefill(self.state, settings.prompt_KP[None, :, start:stop], [session.slot], ends=is_last)
        session.prompted = stop
        if is_last and self.past_window == "pin":
            self.stream.pin(self.state, session.slot)
        if stop in ends[:-1]:
            self.prefixes.put(_key(settings, stop), self.stream.save(self.state, session.slot))
        return stop - start

    def _feed_refresh(self, budget: int) -> int:
        """Feeds the refresh that has most to do."""
        refreshes = [s.refresh for s in self.sessions if s is not None and s.refresh is not None and s.refresh.waiting]
        return max(refreshes, key=lambda refresh: refresh.waiting).feed(budget) if refreshes and budget > 0 else 0

    @property
    def has_prompts(self) -> bool:
        """Whether `feed_prompts` has something to do."""
        return any(
            not session.is_ready or (session.refresh is not None and session.refresh.waiting > 0)
            for session in self.sessions
            if session is not None
        )

    def prompt(self, session: Session) -> None:
        """Brings one conversation through its prompt at once, if others wait, through theirs too."""
        while not session.is_ready:
            self.feed_prompts()

    def _ends(self, settings: SessionSettings) -> list[int]:
        """Frames of a prompt after which it is kept: the voice, and all but the last frame, which draws at random.

        A caller's own voice is kept nowhere: it would stay for longer than was promised, and drive out what many share.
        """
        if settings.own_voice:
            return []
        ends = {settings.voice_frames, settings.prompt_frames - 1}
        longest = min(settings.prompt_frames - 1, self.release.lm.config.context)  # Beyond it the ring has lost some.
        return sorted(frames for frames in ends if 0 < frames <= longest)

    @torch.inference_mode()
    def step(self, heard: Mapping[Session, Audio]) -> dict[Session, AgentFrame]:
        """One frame of some conversations: what each user says, [1920] at 24 kHz -> what each agent says.

        Raises: UserError for a conversation that has no slot, is not through its prompt, or misshapen audio.
        """
        for session, user_S in heard.items():
            self._check(session, user_S)
        slots = len(self.sessions)
        active = [False] * slots
        for session, user_S in heard.items():
            active[session.slot] = True
            self._wav_B1S[session.slot, 0] = torch.from_numpy(user_S)
        codec = self.release.codec
        codes_BQ = codec.encode_frame(self.encoder, self._wav_B1S.to(codec.device), active)[:, :, 0]
        agent_BA = self.stream.step(self.state, codes_BQ, active)
        speaks = [
            goes and int(tokens[0]) != UNGENERATED_ID for goes, tokens in zip(active, agent_BA.cpu(), strict=True)
        ]
        waves_BS = self._decode(agent_BA, speaks)
        tokens = agent_BA.tolist()
        if self.past_window == "refresh":
            frames_BK = torch.cat([agent_BA, codes_BQ], dim=1).cpu()
            for session in heard:
                self._refresh(session, frames_BK[session.slot])
        return {session: session.heard(tuple(tokens[session.slot]), waves_BS[session.slot]) for session in heard}

    def _refresh(self, session: Session, frame_K: Tensor) -> None:
        """Keeps a frame; begins a refresh in time, and lets one that is due take its place."""
        if session.history is None:
            return
        session.history.add(frame_K, is_text=int(frame_K[0]) >= len(SPECIAL_NAMES))
        if session.refresh is not None:
            session.refresh.add(frame_K)
            if session.refresh.is_due(session.history):
                session.refresh.take_place(self.state, session.slot)
                session.refresh = None
        elif is_time(self.context, self.state.cache.positions[session.slot]):
            assert session.settings.prompt_KP is not None
            session.refresh = Refresh(self.stream, session.settings.prompt_KP, session.history)

    def _decode(self, agent_BA: Tensor, speaks: list[bool]) -> Audio:
        """The sound of a frame, [B, S]; silence where there is no code to decode."""
        waves_BS = np.zeros((len(speaks), FRAME_SAMPLES), np.float32)
        if any(speaks):
            codes_BQT = agent_BA[:, 1:, None].clamp(min=0)
            made_BS = self.release.codec.decode_frame(self.decoder, codes_BQT, speaks)[:, 0].float().cpu().numpy()
            waves_BS[speaks] = made_BS[speaks]
        return waves_BS

    def _check(self, session: Session, user_S: Audio) -> None:
        if self.sessions[session.slot] is not session:
            raise UserError("this conversation has ended: begin another", code="bad-combination")
        if not session.is_ready:
            raise UserError("this conversation is not through its prompt: feed it first", code="bad-combination")
        if user_S.shape != (FRAME_SAMPLES,) or user_S.dtype != np.float32:
            raise UserError(
                f"user audio {user_S.dtype} {user_S.shape}: give float32 [{FRAME_SAMPLES}]", code="bad-audio"
            )


def check_in_sight(context: int, frames: int, past_window: PastWindow) -> None:
    """Raises UserError for a prompt of some frames that is too long for what is to become of it past the window."""
    keeps = {"forget": True, "pin": frames <= context // 2, "refresh": can_refresh(context, frames)}
    if frames and not keeps[past_window]:
        raise UserError(
            f"a prompt of {frames} frames cannot be kept in sight in a window of {context}: shorten voice or role, or "
            "let it be forgotten (--past-window forget)",
            code="bad-combination",
        )


def _key(settings: SessionSettings, frames: int) -> bytes:
    """What tells apart what the model has seen after some frames of a prompt."""
    assert settings.prompt_KP is not None
    seen = settings.prompt_KP[:, :frames].contiguous().cpu().numpy()
    return hashlib.sha256(f"{frames} ".encode() + seen.tobytes()).digest()
