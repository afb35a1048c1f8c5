"""Speech recognisers behind one interface.

Whisper tiny.en, the default, misspells names and is unsure of very short turns. Its word error rate over a whole
channel still shows text that is not what is said, such as swapped channels, shifted times or another dialogue's words.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from data_pipelines.listening.parakeet import Parakeet
from data_pipelines.listening.whisper import Transcriber, Whisper, model_folder
from data_pipelines.sound.audio import Audio


class Hears(Protocol):
    """The part of a speech recogniser that comparing it with a text needs."""

    def transcribe(self, audio: Audio, rate: int) -> str:
        """Returns the text of one utterance; "" where nothing is heard. Shape: audio [samples]."""
        ...


class Recogniser(Hears, Protocol):
    """A speech recogniser: hears utterances of up to 30 s, and says what it is."""

    def transcribe_all(self, pieces: Sequence[Audio], rate: int) -> list[str]:
        """Returns the text of each piece, float32 [samples] in [-1, 1]; "" where nothing is heard."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns the provenance: name, version, model, licence if known, and whether it is deterministic."""
        ...


def open_asr(name: str = "tiny.en", device: str = "cpu") -> Recogniser:
    """Opens the recogniser that `name` means.

    tiny.en            Whisper tiny.en from a package of the `asr` extra
    FOLDER             a faster-whisper (CTranslate2) model on disk
    large-v3, ORG/NAME a faster-whisper model of the hub, through its cache
    parakeet:MODEL     Parakeet with transformers: a folder or ORG/NAME

    Raises: UserError naming the package to install, the file that is missing, or what the hub said.
    """
    if name == "tiny.en":
        return Transcriber(device=device)
    if name.startswith("parakeet:"):
        return Parakeet(name.partition(":")[2], device)
    return Whisper(model_folder(name), name, device)
