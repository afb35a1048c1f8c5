"""Reads one call: its transcript, its audio, and the audio at the codec's rate."""

# Shapes: C channels, S samples

from dataclasses import dataclass

import numpy as np

from data_pipelines.recordings.fisher.bandwidth import extend
from data_pipelines.recordings.fisher.job import CallFiles, Filters, FisherSettings
from data_pipelines.recordings.fisher.sphere import decode
from data_pipelines.recordings.fisher.timed_lines import Transcript, read_text, read_transcript
from data_pipelines.recordings.fisher.written import with_original
from data_pipelines.sound.audio import RATE_HZ, Audio, to_rate
from model.errors import UserError

CALL_RATE_HZ = 8000
BAD_AUDIO = frozenset({"00446", "01243", "06716"})
"""Calls that public recipes leave out because of their audio."""


@dataclass(frozen=True, kw_only=True)
class ReadCall:
    """A call as read, before anything is listened to. `cased_share` of its words are written as somebody typed them."""

    transcript: Transcript
    cased_share: float
    audio_CS: Audio
    """float32 [2, samples], left and right."""
    rate: int
    decoder: str
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """The length of the audio."""
        return self.audio_CS.shape[1] / self.rate


def read_call(files: CallFiles, filters: Filters) -> ReadCall:
    """Reads text and audio of one call.

    Raises: UserError if a filter leaves it out (code "no-data"), a file is damaged, or they cannot be a call of two
    people ("bad-audio", "bad-transcript").
    """
    if files.call in BAD_AUDIO:
        raise UserError(f"{files.audio.name}: known for its bad audio", code="bad-audio")
    if why := filters.refuse_call(files.facts):
        raise UserError(f"fe_03_{files.call}: {why}", code="no-data")
    transcript, notes, share = read_transcript(files.transcript, files.call), [], 0.0
    if transcript.num_faulty:
        notes.append(f"{transcript.num_faulty} lines with impossible times were left out")
    if transcript.num_strange:
        notes.append(f"{transcript.num_strange} lines are not of the form `12.34 15.67 A: text` and were ignored")
    if transcript.num_overlapping:
        notes.append(f"{transcript.num_overlapping} lines lost their words: their speaker says two things at once")
    if files.original:
        before = transcript
        transcript, share = with_original(transcript, read_text(files.original))
        if transcript is before:
            notes.append(f"{files.original.name} matches {100 * share:.0f} % of the words: case comes from rules")
            share = 0.0
    samples_SC, rate, decoder = decode(files.audio)
    if samples_SC.shape[1] != 2:
        raise UserError(
            f"{files.audio}: has {samples_SC.shape[1]} channel(s), a call has 2: copy it again from the disc",
            code="bad-audio",
        )
    if rate < CALL_RATE_HZ:
        raise UserError(
            f"{files.audio}: has {rate} Hz, calls have {CALL_RATE_HZ}: copy it again from the disc", code="bad-audio"
        )
    if rate > CALL_RATE_HZ:
        notes.append(f"the audio has {rate} Hz, not {CALL_RATE_HZ}: somebody's conversion")
    return ReadCall(
        transcript=transcript,
        cased_share=share,
        audio_CS=np.ascontiguousarray(samples_SC.T),
        rate=rate,
        decoder=decoder,
        notes=tuple(notes),
    )


def to_24k(audio_CS: Audio, rate: int, settings: FisherSettings) -> Audio:
    """Returns the whole call at the codec's rate. Raises UserError if the bandwidth extension fails."""
    if settings.bandwidth_extension:
        full_CS = extend(audio_CS, rate, settings.bandwidth_extension, settings.bandwidth_timeout)
    else:
        full_CS = to_rate(audio_CS, rate, RATE_HZ, settings.resampler)
    return np.clip(full_CS, -1, 1, out=None if full_CS is audio_CS else full_CS)  # Ten minutes take 115 MB.
