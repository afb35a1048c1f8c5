"""Loading a model to talk to: an exported folder, or a public repository in the Moshi or PersonaPlex layout."""

# Shapes: P prompt frames, Q codebooks

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from data_pipelines.sound.audio import CLIP_SUFFIXES, VOICE_LUFS
from model.config import LMConfig
from model.devices import check_device, free_bytes
from model.duplex import DuplexLM
from model.errors import UserError
from model.mimi.codec import Mimi
from model.mimi.files import CODEC_NAME, load_mimi
from model.prompt import PAUSE_FRAMES, hybrid_prompt, role_ids
from model.streaming.int8 import hold_in_int8
from model.streaming.kv_cache import slot_bytes
from model.streaming.offload import offload
from model.text import TextTokenizer
from model.weights.checkpoint import CONFIG_NAME, from_pretrained, read_config
from model.weights.native import depth_steps
from model.weights.sources import CODEC_FILE, REPOSITORY, codec_path, hub_model, tokenizer_path
from model.weights.tensor_files import (
    INDEX_NAME,
    WEIGHTS_NAME,
    StoredTensor,
    read_header,
    weights_path,
)
from ppx_train.inference.checksum import checksum
from ppx_train.inference.lora_folder import ADAPTER_NAME, load_adapted
from ppx_train.inference.model_options import Precision
from ppx_train.inference.sidecar import SIDECAR, Sidecar, read_sidecar
from ppx_train.voices.clip import encode_voice
from ppx_train.voices.folder import PICKLE, VOICES, find_voice_file, not_ready, voice_paths
from ppx_train.voices.voice_file import SUFFIX, VoiceFile, check_codec, read_voice

HUB_FILES = ("*.json", "*.model", "*.safetensors")
"""What is fetched of a repository, in its subfolders too."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS_SHARE = 0.85
"""Of a GPU's free memory, that weights and one conversation may take if others stay in the host's memory."""


@dataclass(kw_only=True)
class Release:
    """All that a conversation needs.

    silence_codes, sine_codes: codes [8] of one frame of silence and of the tone in the user's stream during the prompt.
    voice_lufs: the loudness to which voice clips are levelled. voices: files by name, each read when it is chosen.
    """

    name: str
    lm: DuplexLM
    codec: Mimi
    tokenizer: TextTokenizer
    silence_codes: tuple[int, ...]
    sine_codes: tuple[int, ...]
    pause_frames: int = PAUSE_FRAMES
    voice_lufs: float = VOICE_LUFS
    voices: dict[str, Path] = field(default_factory=dict)
    host_layers: int = 0
    """Temporal layers whose weights stay in the host's memory."""
    precision: Precision = "fp32"
    checksum: str = ""
    """Tells apart two models, in whatever precision they are loaded; see checksum.py."""

    @property
    def device(self) -> torch.device:
        """Where the language model computes."""
        return self.lm.text_emb.weight.device

    @cached_property
    def codec_fingerprint(self) -> str:
        """Names the codec in voices; the first call reads all its weights."""
        return self.codec.fingerprint()

    def voice(self, path: Path) -> VoiceFile:
        """Reads a voice file. Raises UserError as `read_voice`, or if another codec made it."""
        voice = read_voice(path, self.lm.config)
        if voice.codec is not None:
            check_codec(voice, self.codec_fingerprint, path)
        return voice

    def prompt(self, voice_codes_QP: Tensor | None, role: str) -> Tensor | None:
        """Returns the prompt frames [17, P] of a voice and a role text; None if there is neither.

        Shapes: voice_codes_QP [8, frames of the clip].

        Raises: UserError if the role text cannot be spelled or the voice is another codec's.
        """
        text_ids = role_ids(role, self.tokenizer)
        if voice_codes_QP is None and not text_ids:
            return None
        return hybrid_prompt(
            self.lm.config, voice_codes_QP, text_ids, self.silence_codes, self.sine_codes, self.pause_frames
        )


def load_release(
    model: str | Path,
    *,
    device: str | None = "cpu",
    precision: Precision | None = None,
    revision: str | None = None,
    cpu_offload: bool = False,
) -> Release:
    """Loads language model, codec, tokenizer and voices of a folder or a hub repository.

    device: None is cuda if there is one. precision: of the language model; None is bf16 on a GPU, fp32 on a CPU. The
    codec computes in fp32. cpu_offload: whether weights that do not fit on the GPU stay in the host's memory.
    Raises: UserError if a file is missing or broken, the parts do not fit each other, or the device is not usable.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    plain: Precision = "fp32" if device == "cpu" else "bf16"
    precision = precision or plain
    dtype, int8 = DTYPES.get(precision, DTYPES[plain]), precision == "int8"
    if cpu_offload and int8:
        raise UserError("--cpu-offload with --precision int8: choose one of them", code="bad-combination")
    if cpu_offload and not device.startswith("cuda"):
        raise UserError(f"--cpu-offload with device {device}: it is for GPUs, leave it out", code="bad-combination")
    folder = _folder(str(model), revision)
    sidecar = read_sidecar(folder)
    first = "cpu" if cpu_offload or int8 else device  # Where the full weights go; a small GPU may not hold them.
    names = _file_names(folder, sidecar)
    codec = _codec(folder, names)
    tokenizer = TextTokenizer(
        folder / names["tokenizer_name"] if "tokenizer_name" in names else tokenizer_path(str(folder))
    )
    if sidecar is not None and sidecar.base is not None and sidecar.adapter is not None:
        config = sidecar.lm_config(str(folder / SIDECAR))
        lm = load_adapted(folder, config, sidecar.base, sidecar.adapter, dtype, first)
        weights = read_header(folder / ADAPTER_NAME)
    else:
        weights, config = _header(folder, sidecar)
        lm = from_pretrained(folder, config=config, dtype=dtype, device=first)
    check_parts(lm.config, codec, tokenizer, str(folder))
    prompt = sidecar.prompt if sidecar else None
    silence_codes, sine_codes = (prompt.silence_codes, prompt.sine_codes) if prompt else codec.constants()
    if (largest := max(silence_codes + sine_codes)) >= lm.config.card:
        raise UserError(
            f"{folder / SIDECAR}: code {largest} of the prompt, a codebook has {lm.config.card}, export it again",
            code="bad-record",
        )
    lm, codec = lm.eval().requires_grad_(False), codec.to(device).eval()
    host_layers = offload(lm, device, room_for_weights(lm, torch.device(device))) if cpu_offload else 0
    if int8:
        hold_in_int8(lm, device)
    return Release(
        name=folder.name,
        lm=lm,
        codec=codec,
        tokenizer=tokenizer,
        silence_codes=silence_codes,
        sine_codes=sine_codes,
        pause_frames=prompt.pause_frames if prompt else PAUSE_FRAMES,
        voice_lufs=prompt.voice_lufs if prompt else VOICE_LUFS,
        voices=voice_paths(folder / VOICES) if (folder / VOICES).is_dir() else {},
        host_layers=host_layers,
        precision=precision,
        checksum=checksum(weights, codec.fingerprint().encode(), tokenizer.path.read_bytes()),
    )


def room_for_weights(lm: DuplexLM, device: torch.device) -> int:
    """Bytes that weights may take on a device, beside one conversation and what a step needs."""
    return int(WEIGHTS_SHARE * free_bytes(device)) - slot_bytes(lm.config, lm.text_emb.weight.dtype)


def load_codec(model: str, revision: str | None = None) -> tuple[Mimi, float]:
    """The codec of a folder or a hub repository, on the CPU, and the LUFS of its voices, without a language model.

    Raises: UserError if there is no codec, or it is damaged.
    """
    folder = Path(model)
    if not folder.is_dir():
        names = (CODEC_NAME, CODEC_FILE)
        folder = hub_model(model, ("*.json", *names), revision, one_of=names)
    sidecar = read_sidecar(folder)
    return _codec(folder, _file_names(folder, sidecar)), sidecar.prompt.voice_lufs if sidecar else VOICE_LUFS


def _codec(folder: Path, names: Mapping[str, str]) -> Mimi:
    return load_mimi(folder / names["mimi_name"] if "mimi_name" in names else codec_path(str(folder)))


def model_header(model: str, revision: str | None = None) -> tuple[dict[str, StoredTensor], LMConfig]:
    """Returns names and shapes of a model's weights, and its configuration, without reading any values.

    Raises: UserError if it is no model, cannot be downloaded, or is damaged.
    """
    folder = _folder(model, revision)
    return _header(folder, read_sidecar(folder))


def _header(folder: Path, sidecar: Sidecar | None) -> tuple[dict[str, StoredTensor], LMConfig]:
    weights = read_header(weights_path(folder))
    found = depth_steps(weights)
    config = sidecar.lm_config(str(folder / SIDECAR)) if sidecar else read_config(folder / CONFIG_NAME)
    if config is not None and config.dep_q != found:
        raise UserError(
            f"{folder}: weights of {found} depth steps, but dep_q={config.dep_q} beside them; they belong to different "
            "models",
            code="bad-weights",
        )
    return weights, config or LMConfig(dep_q=found)


def check_parts(config: LMConfig, codec: Mimi, tokenizer: TextTokenizer, where: str) -> None:
    """Raises UserError if codec or tokenizer do not have the vocabulary that the language model was made for."""
    if codec.card != config.card or codec.num_codebooks != config.num_codebooks:
        raise UserError(
            f"{where}: the codec has {codec.num_codebooks} codebooks of {codec.card} entries, the language model "
            f"{config.num_codebooks} of {config.card}; they belong to different models",
            code="bad-weights",
        )
    if tokenizer.card > config.text_card:
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.card} pieces, the language model {config.text_card}; "
            "they belong to different models",
            code="bad-weights",
        )


def find_voice(release: Release, name: str, voice_dir: Path | None = None) -> Tensor:
    """Returns the codes [8, P] of a voice: a file, or a name in `voice_dir` or else among the model's own voices.

    A file is audio, or a voice file (.safetensors).

    Raises: UserError listing the names there are.
    """
    path = Path(name)
    if path.suffix.lower() == PICKLE:
        raise not_ready(path if voice_dir is None else voice_dir / path)
    if path.suffix.lower() in CLIP_SUFFIXES and path.is_file():
        return encode_voice(path, release.codec, release.voice_lufs)
    if path.suffix == SUFFIX and path.is_file():
        return release.voice(path).codes_QP
    stem = path.name.removesuffix(SUFFIX)
    if voice_dir is not None:
        return release.voice(find_voice_file(voice_dir, stem)).codes_QP
    if stem in release.voices:
        return release.voice(release.voices[stem]).codes_QP
    choices = ", ".join(release.voices) or "none"
    raise UserError(
        f"voice {name}: no such audio file and no such voice in {release.name}, which has {choices}",
        code="unknown-name",
    )


def _folder(model: str, revision: str | None) -> Path:
    """Returns the local folder of a model, which is downloaded if it is a hub repository."""
    path = Path(model)
    if path.is_dir():
        if revision is not None:
            raise UserError(
                f"revision {revision} has no effect on the folder {model}: leave it out", code="bad-combination"
            )
        if not (path / ADAPTER_NAME).is_file():
            weights_path(path)
        return path
    if path.exists() or not REPOSITORY.match(model):
        raise UserError(f"{model}: no such folder; give one made by ppx-export, or a hub repository", code="not-found")
    return hub_model(model, HUB_FILES, revision, one_of=(WEIGHTS_NAME, INDEX_NAME, ADAPTER_NAME))


def _file_names(folder: Path, sidecar: Sidecar | None) -> dict[str, str]:
    """The names of codec and tokenizer in the folder: those of personaplex.json, else of config.json, if it has any."""
    if sidecar is not None:
        return {"mimi_name": Path(sidecar.mimi_name).name, "tokenizer_name": Path(sidecar.tokenizer_name).name}
    path = folder / CONFIG_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
        return {key: Path(content[key]).name for key in ("mimi_name", "tokenizer_name") if key in content}
    except (ValueError, TypeError) as why:
        raise UserError(f"{path}: not a configuration ({why}), fetch the model again", code="bad-record") from why
