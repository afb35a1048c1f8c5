"""The voices that callers may choose, read when the server starts: a request names one, and never a file."""

# Shapes: Q codebooks, P prompt frames

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ppx_train.inference.loading import Release
from ppx_train.serve.query import Refusal
from ppx_train.voices.folder import refuse_unready, voice_paths
from ppx_train.voices.voice_file import VOICE_ID, VoiceFile


@dataclass(frozen=True)
class VoiceRegistry:
    """Voices by id, on the CPU. unnamed: names of voices that cannot be asked for, as they are no ids."""

    voices: dict[str, VoiceFile] = field(default_factory=dict)
    unnamed: tuple[str, ...] = ()

    @property
    def default(self) -> str:
        """The id of the voice of callers who name none; "" if there is no voice."""
        return next(iter(self.voices), "")

    def codes_of(self, voice: str | None) -> Tensor | None:
        """Codes [8, P] of an id, of the default for None, and none for "". Raises: Refusal with status 404."""
        voice = self.default if voice is None else voice
        if not voice:
            return None
        if voice not in self.voices:
            raise Refusal(404, "there is no voice of that id", field="voice_prompt", allowed=list(self.voices))
        return self.voices[voice].codes_QP


def read_voices(release: Release, voice_dir: Path | None = None) -> VoiceRegistry:
    """Reads a model's voices, and those of a folder; a folder's voice replaces the model's of the same name.

    Raises: UserError if a file is damaged or another codec's, or if there is no folder, or one with clips or pickles
    that are no voices yet.
    """
    files = dict(release.voices)
    if voice_dir is not None:
        files |= voice_paths(voice_dir)
        refuse_unready(voice_dir)
    voices = {name: release.voice(path) for name, path in files.items() if VOICE_ID.fullmatch(name)}
    return VoiceRegistry(voices, tuple(name for name in files if name not in voices))
