"""A voice file: the codes of a clip as safetensors, and as its metadata whose voice it is and what permits its use.

    codes [8, frames] int32
    id, label, licence, consent     texts; licence and consent are left out if nobody stated them
    codec                           fingerprint of the codec that made the codes
    source                          sha256 of the clip or file that the voice was made from
    checksum                        sha256 of all of the above

A file of codes alone is read, too, as earlier exports and other tools leave it: then nothing else is known of it.
"""

# Shapes: P prompt frames, Q codebooks

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from data_pipelines.sound.audio import ACCEPTED_VOICE_SECONDS
from model.config import FRAME_RATE
from model.errors import UserError
from model.text_safety import plain
from model.weights.tensor_files import open_safetensors

VOICE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a whole id looks like: it is safe as a file's name and in a URL."""
SUFFIX = ".safetensors"
TEXTS = ("id", "label", "licence", "consent", "codec", "source")
MOST_CHARACTERS = 500
"""Of each text: servers send them to every client."""
MOST_FRAMES = int(ACCEPTED_VOICE_SECONDS[1] * FRAME_RATE)
INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


class Codebooks(Protocol):
    """What a codec and a language model both say of the codes that they work with."""

    @property
    def num_codebooks(self) -> int:
        """Rows of codes."""
        ...

    @property
    def card(self) -> int:
        """Entries of a codebook."""
        ...


@dataclass(frozen=True, kw_only=True)
class VoiceFile:
    """A voice and its terms; None is what is not stated.

    Shapes: codes_QP [8, P].
    label: the speaker, for people. consent: why the speaker may be imitated. codec: a fingerprint. source: the sha256
    of what it was made from. is_sealed: whether it came with a checksum, which fits.
    """

    id: str
    label: str
    codes_QP: Tensor
    licence: str | None = None
    consent: str | None = None
    codec: str | None = None
    source: str | None = None
    is_sealed: bool = False

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.codes_QP.shape[1] / FRAME_RATE

    def texts(self) -> dict[str, str]:
        """What is stated, by name."""
        stated = {name: getattr(self, name) for name in TEXTS}
        return {name: text for name, text in stated.items() if text is not None}

    def checksum(self) -> str:
        """The sha256, in hex, of what is stated and of the codes."""
        return _checksum(self.texts(), self.codes_QP)

    def to_bytes(self) -> bytes:
        """The file; the same voice gives the same bytes.

        Raises: UserError for an id, or a text, that readers would refuse.
        """
        check_id(self.id)
        _check_texts(self.texts(), f"voice {self.id}")
        metadata = self.texts() | {"checksum": self.checksum()}
        return _sorted_header(save({"codes": self.codes_QP.to("cpu", torch.int32).contiguous()}, metadata=metadata))


def read_voice(path: Path, config: Codebooks) -> VoiceFile:
    """Reads a voice file and checks it against its own checksum, if it has one.

    config: the codec or the language model that it is for.
    Raises: UserError if it is damaged ("unreadable", "checksum"), no voice, or its codes do not fit ("bad-weights").
    """
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        if "codes" not in file.keys():
            raise UserError(
                f"{path}: not a voice file; `ppx-voice add` makes one of a clip, `ppx-voice convert` of a .pt",
                code="bad-weights",
            )
        stored = file.get_slice("codes")
        shape = tuple(stored.get_shape())
        if len(shape) != 2 or shape[0] != config.num_codebooks or not 0 < shape[1] <= MOST_FRAMES:
            raise UserError(
                f"{path}: codes of shape {shape}; give [{config.num_codebooks}, 1 to {MOST_FRAMES} frames]",
                code="bad-weights",
            )
        try:
            codes_QP = file.get_tensor("codes")
        except (SafetensorError, RuntimeError, ValueError, TypeError) as why:
            raise UserError(f"{path}: codes that cannot be read ({plain(str(why))})", code="unreadable") from why
    if codes_QP.dtype not in INTEGERS:
        raise UserError(f"{path}: codes of type {codes_QP.dtype}; give integers", code="bad-weights")
    codes_QP = codes_QP.long()
    low, high = (int(bound) for bound in codes_QP.aminmax())
    if low < 0 or high >= config.card:
        raise UserError(
            f"{path}: codes from {low} to {high}, and the codec's are 0 to {config.card - 1}; it is another codec's "
            "voice, or damaged",
            code="bad-weights",
        )
    texts = {name: metadata[name] for name in TEXTS if name in metadata}
    _check_texts(texts, str(path))
    checksum = metadata.get("checksum")
    if checksum is not None and checksum != _checksum(texts, codes_QP):
        raise UserError(
            f"{path}: does not fit its checksum, since it was damaged or edited; add or convert the voice again",
            code="checksum",
        )
    named = {"id": path.stem, "label": path.stem} | texts
    return VoiceFile(**named, codes_QP=codes_QP, is_sealed=checksum is not None)


def read_texts(path: Path) -> tuple[dict[str, str], float]:
    """What a voice file states of itself, unchecked, and its seconds, for lists.

    Raises: UserError if it is damaged or no voice file.
    """
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        shape = file.get_slice("codes").get_shape() if "codes" in file.keys() else []
    if len(shape) != 2:
        raise UserError(f"{path}: not a voice file; remove it from the folder", code="bad-weights")
    texts = {name: metadata[name] for name in TEXTS if name in metadata}
    _check_texts(texts, str(path))
    return texts, shape[1] / FRAME_RATE


def check_codec(voice: VoiceFile, fingerprint: str, where: object) -> None:
    """Raises UserError if a voice says that another codec made it."""
    if voice.codec is not None and voice.codec != fingerprint:
        raise UserError(
            f"{where}: made with another codec ({voice.codec[:8]}..., this one is {fingerprint[:8]}...); add or "
            "convert the voice again with this model",
            code="bad-combination",
        )


def check_id(id_: str) -> None:
    """Raises UserError if it is no id of a voice."""
    if not VOICE_ID.fullmatch(id_):
        raise UserError(
            f"{id_!r} is no id of a voice: give another name of 1 to 64 letters without accents, digits, '-' and '_'",
            code="bad-value",
        )


def _check_texts(texts: dict[str, str], where: str) -> None:
    for name, text in texts.items():
        if len(text) > MOST_CHARACTERS or text != plain(text) or not text:
            raise UserError(
                f"{where}: {name} is empty, has more than {MOST_CHARACTERS} characters, or some that cannot be shown; "
                "give one short line",
                code="bad-record",
            )


def _checksum(texts: dict[str, str], codes_QP: Tensor) -> str:
    header = json.dumps([sorted(texts.items()), list(codes_QP.shape)], ensure_ascii=True)
    values = codes_QP.to("cpu", torch.int32).contiguous().numpy().astype("<i4")
    return sha256(header.encode() + values.tobytes()).hexdigest()


def _sorted_header(data: bytes) -> bytes:
    """The bytes of a safetensors file with the keys of its header in order, since safetensors shuffles metadata."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]
