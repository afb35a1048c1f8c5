"""The voices that callers may choose, read when the server starts: a request names one, and never a file."""

# Shapes: Q codebooks, P prompt frames

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from model.errors import UserError
from ppx_train.inference.loading import AUDIO_SUFFIXES, Release, encode_voice, read_voice
from ppx_train.serve.query import VOICE_ID, Refusal


@dataclass(frozen=True)
class VoiceRegistry:
    """Voice codes [8, P] by id, on the CPU. unnamed: names of voices that cannot be asked for, as they are no ids."""

    codes: dict[str, Tensor] = field(default_factory=dict)
    unnamed: tuple[str, ...] = ()

    @property
    def default(self) -> str:
        """The id of the voice of callers who name none; "" if there is no voice."""
        return next(iter(self.codes), "")

    def codes_of(self, voice: str | None) -> Tensor | None:
        """Codes [8, P] of an id, of the default for None, and none for "". Raises: Refusal with status 404."""
        voice = self.default if voice is None else voice
        if not voice:
            return None
        if voice not in self.codes:
            raise Refusal(404, "there is no voice of that id", field="voice_prompt", allowed=list(self.codes))
        return self.codes[voice]


def read_voices(release: Release, voice_dir: Path | None = None) -> VoiceRegistry:
    """Reads a model's voices, and those of a folder: voice files and clips; a folder's voice replaces the model's.

    Raises: UserError if a file is damaged, another codec's, or no clip of 1 to 30 s, or if there is no folder.
    """
    files = dict(release.voices)
    if voice_dir is not None:
        if not voice_dir.is_dir():
            raise UserError(f"voice folder {voice_dir}: no such folder", code="not-found")
        suffixes = (".safetensors", *AUDIO_SUFFIXES)
        files |= {path.stem: path for path in sorted(voice_dir.iterdir()) if path.suffix.lower() in suffixes}
    codes = {
        name: (
            read_voice(path, release.lm.config)
            if path.suffix == ".safetensors"
            else encode_voice(path, release.codec, release.voice_lufs)
        ).cpu()
        for name, path in files.items()
        if VOICE_ID.match(name)
    }
    return VoiceRegistry(codes, tuple(name for name in files if name not in codes))
