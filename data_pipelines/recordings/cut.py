"""Cuts windows out of a recording of any format and writes them as dialogue folders."""

# Shapes: C channels, S samples

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipelines.recordings.clips import VoiceClip, play_clip
from data_pipelines.recordings.utterances import Spoken, Utterance
from data_pipelines.recordings.windows import Window
from data_pipelines.records.schema import SIDES, Dialogue, Event, Side, Word
from data_pipelines.sound.audio import RATE_HZ, Audio, write_flac
from data_pipelines.sound.levels import swap_ratio

MIN_PLACED_SHARE = 0.5
"""Smallest share of the utterances that must fit the audio; with less the transcript is of another recording."""
MIN_SWAP_RATIO = 2.0
"""RMS of a channel inside its own words over outside; less means that the words are the other side's, or much echo."""


@dataclass(frozen=True, kw_only=True)
class HeardRecording:
    """A recording as its windows are cut from it: both channels, all utterances, and what was measured of the whole."""

    audio_CS: Audio
    """float32 [2, samples] at 24 kHz, left and right."""
    spoken: Spoken
    gates: Mapping[str, float]

    def voice(self, side: str, clip: VoiceClip) -> "VoicePrompt":
        """Returns the sound of a voice clip of one side."""
        audio_S = play_clip(clip, self.audio_CS[SIDES.index(side)])
        return VoicePrompt(audio_S=audio_S, origin=[round(time, 3) for time in clip.span])


@dataclass(frozen=True, kw_only=True)
class VoicePrompt:
    """The sound of a voice clip, float32 [samples] at 24 kHz, and what the record says of where it is from."""

    audio_S: Audio
    origin: list[float] | str
    """Start and end in the recording, in seconds, or the name of a file or field."""


def write_window(
    folder: Path, window: Window, heard: HeardRecording, dialogue: Dialogue, voices: Mapping[str, VoicePrompt]
) -> Dialogue:
    """Writes the audio of one window and of its agents' voices; returns its record, which the caller writes last.

    `dialogue` says all that the window does not: who speaks, who is an agent, and where the recording is from.
    Raises: UserError if the words do not fit the audio (code "bad-transcript").
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").unlink(missing_ok=True)
    for part in folder.glob(".*.part"):  # A run that was killed while writing left these.
        part.unlink()
    audio_CS = heard.audio_CS[:, round(window.start * RATE_HZ) : round(window.end * RATE_HZ)]
    write_flac(folder / "audio.flac", audio_CS, RATE_HZ)
    for side, voice in voices.items():
        write_flac(folder / voice_file(side), voice.audio_S, RATE_HZ)
    taken = {
        "window": [round(window.start, 3), round(window.end, 3)],
        "voice_spans": {side: voice.origin for side, voice in voices.items()},
    }
    left, right = (_with_words(dialogue.side(side), heard.spoken[side], window) for side in SIDES)
    cut = replace(
        dialogue,
        seconds=audio_CS.shape[1] / RATE_HZ,
        left=left,
        right=right,
        events=_events(heard.spoken, window),
        provenance=dialogue.provenance | taken,
        gates=dict(heard.gates),
    )
    cut.check(cut.id)
    return cut


def voice_file(side: str) -> str:
    """Returns the name of a side's voice prompt in its dialogue folder."""
    return f"{side}.voice.flac"


def has_audio(folder: Path, agents: Sequence[str]) -> bool:
    """True if a dialogue folder holds the call and the voice prompts of these sides."""
    return all((folder / name).is_file() for name in ("audio.flac", *map(voice_file, agents)))


def channel_ratio(utterances: Sequence[Utterance], audio_S: Audio, rate: int) -> float:
    """Returns the RMS of a channel inside its own utterances over outside; 0 if it has none.

    Shapes: audio_S [samples]. Utterances without words sound too, so all of their time counts as inside.
    """
    spans = [word for utterance in utterances for word in utterance.words]
    spans += [Word(text="", start=u.start, end=u.end) for u in utterances if u.is_wordless or u.events]
    return swap_ratio(audio_S, rate, spans) if spans else 0.0


def _with_words(side: Side, utterances: Sequence[Utterance], window: Window) -> Side:
    """Adds the words that lie in the window, timed from its start."""
    words = sorted((word for u in utterances for word in u.words), key=lambda word: (word.start, word.end))
    # The tolerance is that of times, which are rounded to a millisecond.
    inside = [w for w in words if w.start >= window.start - 1e-3 and w.end <= window.end + 1e-3]
    return replace(
        side,
        words=tuple(
            Word(
                text=word.text,
                start=round(max(word.start - window.start, 0.0), 3),
                end=round(min(word.end, window.end) - window.start, 3),
            )
            for word in inside
        ),
    )


def _events(spoken: Spoken, window: Window) -> tuple[Event, ...]:
    """Returns the events that lie in the window, timed from its start."""
    events = [
        Event(
            kind=event.kind,
            side=side,
            start=round(event.start - window.start, 3),
            end=round(event.end - window.start, 3),
        )
        for side in SIDES
        for utterance in spoken[side]
        for event in utterance.events
        if event.start >= window.start and event.end <= window.end
    ]
    return tuple(sorted(events, key=lambda event: (event.start, event.side)))
