"""`ppx-chat --out`: every role with every voice as one batch of conversations, with a page that shows them all.

The folder holds the WAV and the JSON of each chat, chats.json (what was asked for) and index.html. A run that was
stopped goes on with the chats that are not finished, in batches of the same size, and so with the same tokens.
"""

# Shapes: K streams, P prompt frames, Q codebooks, S samples (at 24 kHz)

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from data_pipelines.files import refuse_other_settings, write_json
from model.errors import UserError
from model.files import LOCK, lock, write_bytes
from model.streaming.sample import Sampling
from ppx_train.inference.chat_files import check_prompts, load_model, sampling_of, voice_codes, voice_name
from ppx_train.inference.chat_page import render
from ppx_train.inference.chat_record import ChatRecord, read_chat, write_chat
from ppx_train.inference.chat_settings import BATCH, ROLE, ChatSettings
from ppx_train.inference.chat_user import ChatUser, read_user
from ppx_train.inference.loading import Release
from ppx_train.inference.model_options import DEFAULT_PAST_WINDOW
from ppx_train.inference.offline import AgentSide, PlannedChat, chats
from ppx_train.inference.session import SessionSettings
from ppx_train.inference.user_side import UserSide
from ppx_train.inference.verdicts import judge

RECORD, PAGE = "chats.json", "index.html"
MOST_CHATS = 999


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A folder of conversations. cells: role and voice of each chat, in the order of their numbers, from 1 on."""

    out: Path
    release: Release
    sampling: Sampling
    user: ChatUser
    cells: Sequence[tuple[str, str]]
    prompts: Sequence[SessionSettings]
    seed: int
    slots: int
    facts: Mapping[str, str]
    """For the page: what all conversations have in common."""


def run_grid(settings: ChatSettings, *, show_progress: bool = False) -> list[ChatRecord]:
    """Holds the conversations that are not finished, writes them and the page, and returns all.

    Raises: UserError for what cannot be used, before any conversation begins, and for a folder of other settings.
    """
    assert settings.out is not None
    if settings.out.exists() and not settings.out.is_dir():
        raise UserError(f"{settings.out}: not a folder; give another --out", code="exists")
    sampling, roles, user = sampling_of(settings), roles_of(settings), read_user(settings)
    with lock(settings.out):
        grid = _claim(settings, sampling, roles, user)
        finished = {number: read_chat(grid.out, number) for number in range(1, len(grid.cells) + 1)}
        todo = [number for number, chat in finished.items() if chat is None]
        sides = [user.side() for _ in todo]
        planned = [PlannedChat(settings=grid.prompts[n - 1], user=side) for n, side in zip(todo, sides, strict=True)]
        made = chats(
            grid.release, planned, slots=grid.slots, sampling=sampling, show_progress=show_progress,
            past_window=settings.past_window or DEFAULT_PAST_WINDOW,
        )  # fmt: skip
        for index, agent in made:
            finished[todo[index]] = _write(grid, todo[index], agent, sides[index])
        found = [chat for chat in finished.values() if chat is not None]
        write_bytes(grid.out / PAGE, render(grid.out, found, grid.release.name, grid.facts).encode())
    return found


def roles_of(settings: ChatSettings) -> tuple[str, ...]:
    """The roles of the grid. Raises: UserError for a file that cannot be read, or without a role."""
    if settings.roles is None:
        return settings.text_prompts or (ROLE,)
    if not settings.roles.is_file():
        raise UserError(f"{settings.roles}: no such file of roles", code="not-found")
    try:
        lines = [line.strip() for line in settings.roles.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as why:
        raise UserError(f"{settings.roles}: is not UTF-8 ({why}): save it as UTF-8", code="unreadable") from why
    roles = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not roles:
        raise UserError(f"{settings.roles}: holds no role: write one on each line", code="no-data")
    return roles


def _claim(settings: ChatSettings, sampling: Sampling, roles: Sequence[str], user: ChatUser) -> Grid:
    """Loads the model and makes the folder ours."""
    out = settings.out
    assert out is not None
    before = _settings_before(out)  # This comes before the model is loaded, so that no time is lost.
    release = load_model(settings)
    voices = settings.voices or (voice_name(release, settings.voice_prompt, settings.voice_prompt_dir),)
    cells = list(product(roles, voices))
    if len(cells) > MOST_CHATS:
        raise UserError(f"{len(cells)} chats: give roles and voices for {MOST_CHATS} at most", code="too-long")
    drawn = secrets.randbelow(2**31) if before is None else before.get("drawn_seed")
    codes = {voice: voice_codes(release, voice, settings.voice_prompt_dir) for voice in voices}
    seed = settings.seed if drawn is None or settings.seed != -1 else int(drawn)
    prompts = [
        SessionSettings(
            prompt_KP=release.prompt(codes[voice], role),
            voice_frames=0 if (codes_QP := codes[voice]) is None else codes_QP.shape[1],
            sampling=sampling,
            seed=seed,
        )
        for role, voice in cells
    ]
    check_prompts(settings, release, [each.prompt_KP for each in prompts])
    slots = min(len(cells), settings.batch or BATCH)
    asked: dict[str, Any] = {
        "model": release.checksum,
        "precision": release.precision,
        "past_window": settings.past_window or DEFAULT_PAST_WINDOW,
        "user": user.digest,
        "roles": list(roles),
        "voices": {voice: _digest(codes_QP) for voice, codes_QP in codes.items()},
        "batch": slots,
        "seed": settings.seed,
        "drawn_seed": drawn if settings.seed == -1 else None,
        "device": release.device.type,
        "sampling": {key: getattr(settings, key) for key in _SAMPLING},
    }
    if before is None:
        write_json(out / RECORD, asked)
    else:
        refuse_other_settings(out, before, asked)
    how = "greedy" if sampling.greedy else f"text {sampling.text_temperature:g} / {sampling.text_top_k}, "
    how += "" if sampling.greedy else f"audio {sampling.audio_temperature:g} / {sampling.audio_top_k}"
    return Grid(
        out=out,
        release=release,
        sampling=sampling,
        user=user,
        cells=cells,
        prompts=prompts,
        seed=seed,
        slots=slots,
        facts={
            "user": settings.user_name,
            "seed": str(seed),
            "temperature / top k": how,
            "precision": release.precision,
        },
    )


_SAMPLING = ("greedy", "temp_text", "topk_text", "temp_audio", "topk_audio")


def _settings_before(out: Path) -> dict[str, Any] | None:
    """What an earlier run in this folder was asked for; None in an empty one. Raises: UserError for another folder."""
    path = out / RECORD
    if not path.is_file():
        if any(found.name != LOCK for found in out.iterdir()):
            raise UserError(f"{out} exists and was not made by `ppx-chat --out`: give another --out", code="exists")
        return None
    try:
        before = json.loads(path.read_text("utf-8"))
    except ValueError as why:
        raise UserError(f"{path} is damaged ({why}): give another --out", code="unreadable") from why
    if not isinstance(before, dict) or not isinstance(before.get("drawn_seed"), (int, type(None))):
        raise UserError(f"{path} does not hold the settings of a run: give another --out", code="bad-record")
    return before


def _write(grid: Grid, number: int, agent: AgentSide, user: UserSide) -> ChatRecord:
    role, voice = grid.cells[number - 1]
    tokenizer = grid.release.tokenizer
    words = agent.words(tokenizer)
    chat = ChatRecord(
        number=number,
        role=role,
        voice=Path(voice).name,
        seed=grid.seed,
        seconds=round(len(agent.agent_S) / grid.release.codec.config.sample_rate, 3),
        user=tuple(user.said),
        words=tuple(words),
        pieces=tuple(agent.pieces(tokenizer)),
        judgement=judge(agent, words),
    )
    write_chat(grid.out, chat, agent.agent_S, agent.user_S)
    return chat


def _digest(codes_QP: Tensor | None) -> str:
    return "" if codes_QP is None else hashlib.sha256(codes_QP.cpu().numpy().tobytes()).hexdigest()
