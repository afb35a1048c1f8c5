"""Masks a dialogue folder that exists already, for `ppx-data annotate --dialogues --mask`."""

# Shapes: C channels, S samples

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.recordings.clips import MAX_CLIP_SECONDS, MIN_CLIP_SECONDS, candidate_clips, play_clip
from data_pipelines.recordings.cut import voice_file
from data_pipelines.recordings.fill import Filled, Listener, fill_side
from data_pipelines.recordings.mask import MaskedCall, mask_call, mask_facts, mask_probes, mask_prompt, mask_speaker
from data_pipelines.recordings.utterances import Utterance
from data_pipelines.records.provenance import MASKED, is_masked
from data_pipelines.records.schema import SIDES, Dialogue, Side
from data_pipelines.sound.audio import RATE_HZ, Audio, to_mono_24k
from model.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MaskedDialogue:
    """A record and the sound files beside it, by name, without what was found. Shapes: [2, samples] and [samples]."""

    dialogue: Dialogue
    sounds: dict[str, Audio]


def mask_dialogue(
    dialogue: Dialogue,
    audio_CS: Audio,
    filled: Mapping[str, Filled],
    clips: Mapping[str, tuple[Audio, int]],
    listener: Listener,
) -> MaskedDialogue:
    """Masks words, sound, voice clips, prompts, facts and probes.

    filled: the sides that were heard now, whose speech without words is quiet afterwards. clips: voice clips of the
    agents as (audio, rate), which the listener hears, since no words of them are stored. A clip in which something is
    found becomes the longest one that its other words give.
    Shapes: audio_CS float32 [2, samples] at 24 kHz.
    Raises: UserError if the recogniser cannot be used, or too little is left of a clip (code "bad-audio").
    """
    rate = int(dialogue.provenance.get("source_rate") or RATE_HZ)
    prompts = [dialogue.side(side).role_prompt for side in SIDES]
    spoken = {}
    for side in SIDES:
        words = dialogue.side(side).words
        own = [Utterance(start=words[0].start, end=words[-1].end, words=words)] if words else []
        unheard = [u for u in filled[side].utterances if u.is_wordless] if side in filled else []
        spoken[side] = [*own, *unheard]
    masked = mask_call(audio_CS, RATE_HZ, spoken, source_rate=rate, prompts=prompts)
    names, sounds = set(masked.names), {"audio.flac": masked.audio_CS}
    counts = Counter(dialogue.provenance[MASKED] if is_masked(dialogue.provenance) else {})
    counts.update(masked.counts)
    for side, (clip_CS, clip_rate) in clips.items():
        clip = _mask_clip(to_mono_24k(clip_CS, clip_rate), rate, sorted(names), listener)
        counts.update(clip.counts)
        sounds[voice_file(side)] = _without_masked(clip, side)
    sides: dict[str, Side] = {}
    for side in SIDES:
        found = tuple(word for utterance in masked.spoken[side] for word in utterance.words)
        prompt = mask_prompt(dialogue.side(side).role_prompt, names)
        speaker, prefix = dialogue.side(side).speaker, f"{dialogue.source}/"
        if speaker.startswith(prefix):  # otherwise it is a voice of an engine, or the recording
            speaker = prefix + mask_speaker(speaker.removeprefix(prefix))
        sides[side] = replace(dialogue.side(side), words=found, role_prompt=prompt, speaker=speaker)
    record = replace(
        dialogue,
        left=sides["left"],
        right=sides["right"],
        facts=mask_facts(dialogue.facts, names),
        probes=mask_probes(dialogue.probes, names),
        provenance=dialogue.provenance | {MASKED: dict(sorted(counts.items()))},
    )
    return MaskedDialogue(dialogue=record, sounds=sounds)


def _mask_clip(clip_S: Audio, rate: int, known: list[str], listener: Listener) -> MaskedCall:
    """Hears a voice clip and masks it, as the left side of a call whose other side is silent."""
    heard = fill_side(clip_S, RATE_HZ, None, listener)
    both_CS = np.stack([clip_S, np.zeros_like(clip_S)])
    spoken = {"left": list(heard.utterances), "right": list[Utterance]()}
    return mask_call(both_CS, RATE_HZ, spoken, source_rate=rate, known=known)


def _without_masked(clip: MaskedCall, side: str) -> Audio:
    """The sound of a masked voice clip without the quiet that stands for what was masked; the whole if nothing was.

    Quiet in a clip would be learned as the way this speaker talks.
    Shapes: the result is [samples] at 24 kHz.
    """
    if not clip.counts:
        return clip.audio_CS[0]
    clips = candidate_clips(clip.spoken["left"], MAX_CLIP_SECONDS)
    if not clips:
        raise UserError(
            f"{side} side: its voice clip has less than {MIN_CLIP_SECONDS:g} s beside what is masked: give it another "
            f"{voice_file(side)}",
            code="bad-audio",
        )
    return play_clip(max(clips, key=lambda one: one.seconds), clip.audio_CS[0])
