"""Configuration files of an exported folder: config.json for public runtimes, personaplex.json for ours."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipelines.sound.audio import VOICE_LUFS
from model.config import LMConfig
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig
from model.prompt import PAUSE_FRAMES, SYSTEM_TAG
from model.weights.checkpoint import CONFIG_NAME, WEIGHTS_NAME, config_to_dict, write_json
from model.weights.sources import CODEC_FILE, TOKENIZER_FILE
from ppx_train import __version__
from ppx_train.config import Run
from ppx_train.export.adapter import Base, adapter_keys
from ppx_train.inference.loading import FORMAT, SIDECAR
from ppx_train.training.origin import project_commit

LAYOUTS = {"kyutai": 8, "nvidia": 16, "lora": 8}
"""Depth steps of each layout."""
SAMPLING = {"temp": 0.8, "temp_text": 0.7, "top_k": 250, "top_k_text": 25}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an exported folder comes from. base: of an adapter; trained_with: the checkpoint's `origin`."""

    run: Run
    step: int
    config_sha256: str
    layout: str
    base: Base | None
    trained_with: dict[str, str]
    request: str

    @property
    def for_stock_moshi(self) -> bool:
        """Whether the stock moshi package can load the folder; 16 depth steps it must not run."""
        return self.layout == "kyutai" or (self.base is not None and self.base.for_stock_moshi)

    def facts(self) -> dict[str, Any]:
        """For personaplex.json."""
        engine = {"engine": f"ppx-train {__version__}", "commit": project_commit()}
        origin = {"recipe": self.run.recipe, "step": self.step, **engine, "request": self.request}
        return {key: value for key, value in origin.items() if value != ""}


def exported_shape(config: LMConfig, layout: str) -> LMConfig:
    return replace(config, dep_q=LAYOUTS[layout])


def write_parts(
    folder: Path, source: Source, config: LMConfig, codec: Mimi, codec_file: Path, tokenizer_file: Path
) -> None:
    """Codec and tokenizer, byte for byte, and the configuration files that name them."""
    if source.layout == "nvidia":
        names = {"mimi_name": CODEC_FILE, "tokenizer_name": TOKENIZER_FILE}  # the public runtime has them built in
    else:
        names = {"mimi_name": "mimi.safetensors", "tokenizer_name": "tokenizer.model"}
    shutil.copyfile(codec_file, folder / names["mimi_name"])
    shutil.copyfile(tokenizer_file, folder / names["tokenizer_name"])
    write_json(folder / SIDECAR, _sidecar(source, names, config, codec))
    origin = source.facts()
    if not source.for_stock_moshi:
        # stock Moshi runtimes must not find shapes here: with 16 depth steps they would be deaf to the user
        write_json(folder / CONFIG_NAME, {"model_type": "personaplex", "version": f"{origin['recipe']}-{source.step}"})
        return
    public = config_to_dict(exported_shape(config, source.layout)) | {"moshi_name": WEIGHTS_NAME} | names
    if source.base is not None:
        public |= adapter_keys(source.run, source.base)
    if not _is_full_size(codec.config):
        (folder / "mimi_config.json").write_text(codec.config.to_json() + "\n", "utf-8")
        public["mimi_config_name"] = "mimi_config.json"
    public |= {"model_type": "moshi", "lm_gen_config": SAMPLING, "model_id": origin}
    write_json(folder / CONFIG_NAME, public)


def _sidecar(source: Source, names: dict[str, str], config: LMConfig, codec: Mimi) -> dict[str, Any]:
    silence_codes, sine_codes = codec.constants()
    content = {
        "format": FORMAT,
        "engine": f"ppx-train {__version__}",
        "layout": source.layout,
        "lm": config_to_dict(exported_shape(config, source.layout)),
        **names,
        "inference_dep_q": config.num_codebooks,
        "generated_audio_codebooks": config.num_codebooks,
        "prompt": {
            "order": ["voice", "pause", "text", "pause"],
            "system_tag": SYSTEM_TAG,
            "pause_frames": PAUSE_FRAMES,
            "voice_lufs": VOICE_LUFS,
            "silence_codes": list(silence_codes),
            "sine_codes": list(sine_codes),
            "discarded_frames": 1,
        },
        "origin": source.facts(),
    }
    if source.base is not None:
        lora = source.run.model.lora
        content |= {
            "base": {"name": source.base.name, "commit": source.base.commit},
            "adapter": {"rank": lora.rank, "scaling": lora.scaling},
        }
    return content


def _is_full_size(config: MimiConfig) -> bool:
    full = MimiConfig.full()
    return (config.seanet, config.quantizer, config.transformer) == (full.seanet, full.quantizer, full.transformer)
