"""The HTML page of a folder of conversations: one file that fetches nothing and whose policy allows nothing else."""

# Shapes: C channels, S samples (at 24 kHz), T frames

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data_pipelines.quality.report.player import mp3
from model.config import SAMPLE_RATE
from model.text_safety import plain
from ppx_train.inference.chat_record import ChatRecord, read_sound
from ppx_train.inference.session import Audio
from ppx_train.inference.speaking import Frames, frames_of, seconds, speaking, stretches
from ppx_train.inference.verdicts import NAMES, TURN_SECONDS, Fault

TEMPLATES = Path(__file__).parent / "templates"
WIDTH, LANE = 1120, 52
"""Width of a timeline and height of one side's waveform, in the units of its picture."""
BAR = 3
"""Width of one bar of a waveform."""
LINE_SECONDS = 1.0
"""A pause of the agent's words of this length begins another line of the transcript."""
TICKS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


@dataclass(frozen=True)
class TranscriptLine:
    """What one side says in one go."""

    side: str
    start: float
    clock: str
    text: str
    is_words: bool
    """False for speech whose words are not known."""


@dataclass(frozen=True)
class ChatView:
    """One conversation as the page shows it. Units: pictures in WIDTH and LANE."""

    chat: ChatRecord
    id: str
    audio: Markup
    waves: tuple[str, str]
    """The SVG paths of user and agent."""
    overlaps: tuple[tuple[float, float], ...]
    """Left edge and width of where both speak."""
    ticks: tuple[tuple[float, str], ...]
    figures: tuple[tuple[str, str], ...]
    lines: tuple[TranscriptLine, ...]


def render(out: Path, chats: Sequence[ChatRecord], model: str, facts: Mapping[str, str]) -> str:
    """Returns the page of the chats in `out`. facts: what they have in common. Raises: UserError for damaged sound."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("chats.css.j2", "chats.js.j2"))
    roles, voices = (list(dict.fromkeys(getattr(chat, name) for chat in chats)) for name in ("role", "voice"))
    return environment.get_template("chats.html.j2").render(
        model=plain(model),
        facts=[(name, plain(value)) for name, value in facts.items()],
        policy=f"default-src 'none'; media-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        style=Markup(style),
        script=Markup(script),
        views=[_view(out, chat) for chat in chats],
        fine=sum(not chat.judgement.failed for chat in chats),
        counts=[(name, sum(name in _names(chat.judgement.failed) for chat in chats)) for name in NAMES],
        roles=roles,
        voices=voices,
        cells={(chat.role, chat.voice): chat for chat in chats},
        width=WIDTH,
        lane=LANE,
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _names(faults: Sequence[Fault]) -> list[str]:
    return [fault.name for fault in faults]


def _view(out: Path, chat: ChatRecord) -> ChatView:
    both_CS = read_sound(out, chat.number)
    length = both_CS.shape[1] / SAMPLE_RATE
    loudest = max(float(np.abs(both_CS).max()), 0.05)
    agent_T, user_T = speaking(both_CS[0]), speaking(both_CS[1])
    step = next((tick for tick in TICKS if length / tick <= 14), TICKS[-1])
    scale = WIDTH / length
    return ChatView(
        chat=chat,
        id=f"chat-{chat.number:03d}",
        audio=Markup(base64.b64encode(mp3(both_CS)).decode()),
        waves=(_wave(both_CS[1] / loudest), _wave(both_CS[0] / loudest)),
        overlaps=tuple(
            (round(seconds(a) * scale, 1), round(seconds(b - a) * scale, 1)) for a, b in stretches(agent_T & user_T)
        ),
        ticks=tuple((round(t * scale, 1), _clock(t)) for t in range(0, math.ceil(length), step)),
        figures=_figures(chat),
        lines=_lines(chat, user_T),
    )


def _wave(audio_S: Audio) -> str:
    """The SVG path of vertical bars, as high as the loudest sample under them."""
    count = min(WIDTH // BAR, len(audio_S))
    edges = np.linspace(0, len(audio_S), count + 1).astype(int)[:-1]
    heights = [max(1.0, round(float(peak) * (LANE - 4), 1)) for peak in np.maximum.reduceat(np.abs(audio_S), edges)]
    return "".join(f"M{BAR * n + 1} {(LANE - h) / 2:.4g}v{h:g}" for n, h in enumerate(heights))


def _figures(chat: ChatRecord) -> tuple[tuple[str, str], ...]:
    found = chat.judgement
    return (
        ("length", f"{chat.seconds:.1f} s"),
        ("agent speaks", f"{found.agent_seconds:.1f} s"),
        ("turns answered", f"{found.turns - found.unanswered} of {found.turns}"),
        ("reply after", "-" if found.reply_seconds is None else f"{found.reply_seconds:.2f} s"),
        ("overlap", f"{found.overlap_share:.0%}"),
        ("longest stretch", f"{found.longest_stretch_seconds:.1f} s"),
        ("clipped", f"{found.clipped_share:.2%}"),
        ("repetition", f"{found.phrase_count} x" if found.phrase_count > 1 else "none"),
    )


def _lines(chat: ChatRecord, user_T: Frames) -> tuple[TranscriptLine, ...]:
    """What both sides say, in the order in which they begin."""
    known = [(said.start, said.text) for said in chat.user]
    spans = stretches(user_T) if not known else ()
    turns: list[list[int]] = []
    for start, stop in spans:
        if turns and start - turns[-1][1] < frames_of(TURN_SECONDS):
            turns[-1][1] = stop
        else:
            turns.append([start, stop])
    user = [_line("user", start, text or "(a recording)", bool(text)) for start, text in known]
    user += [_line("user", seconds(a), f"(speaks for {seconds(b - a):.1f} s)", False) for a, b in turns]
    agent: list[list[tuple[float, str]]] = []
    starts = sorted(line.start for line in user)
    for word in chat.words:
        last = agent[-1][-1][0] if agent else -math.inf
        if word.seconds - last > LINE_SECONDS or any(last < start <= word.seconds for start in starts):
            agent.append([])
        agent[-1].append((word.seconds, word.text))
    said = [_line("agent", group[0][0], " ".join(text for _, text in group), True) for group in agent]
    return tuple(sorted([*user, *said], key=lambda line: (line.start, line.side)))


def _line(side: str, start: float, text: str, is_words: bool) -> TranscriptLine:
    return TranscriptLine(side, round(start, 2), _clock(start), plain(text), is_words)


def _clock(at: float) -> str:
    return f"{int(at) // 60}:{int(at) % 60:02d}"
