"""Configuration files of an exported folder: config.json for public runtimes, personaplex.json for ours."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipelines.sound.audio import VOICE_LUFS
from model.config import LMConfig
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig
from model.prompt import PAUSE_FRAMES, SYSTEM_TAG
from model.weights.checkpoint import CONFIG_NAME, WEIGHTS_NAME, config_to_dict, write_json
from model.weights.sources import CODEC_FILE, TOKENIZER_FILE
from ppx_train import __version__
from ppx_train.config.run import Run
from ppx_train.export.adapter import Base, adapter_keys
from ppx_train.export.export_settings import LAYOUTS
from ppx_train.export.lineage import Start
from ppx_train.inference.sidecar import (
    FORMAT,
    SIDECAR,
    AdapterBase,
    AdapterShape,
    HubLicence,
    Ingredient,
    Origin,
    PromptFormat,
    Sidecar,
)
from ppx_train.training.origin import project_commit

SAMPLING = {"temp": 0.8, "temp_text": 0.7, "top_k": 250, "top_k_text": 25}
"""How stock Moshi runtimes draw tokens."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The run and step that an exported folder comes from, and what the model was made from.

    config_sha256: of the run's saved configuration. base: of an adapter, in layout lora. engine, commit: version and
    commit of the program that trained, where the checkpoint has them. request: digest of what was asked for. licence:
    what the model card states; None if nothing is known. patch_codec: whether the codec has the patch decoder.
    """

    run: Run
    step: int
    config_sha256: str
    layout: str
    base: Base | None
    engine: str | None
    commit: str | None
    request: str
    licence: HubLicence | None
    start: Start
    ingredients: tuple[Ingredient, ...]
    patch_codec: bool = False

    @property
    def for_stock_moshi(self) -> bool:
        """Whether stock Moshi can load the folder: it must not run 16 depth steps, and knows no patch decoder."""
        if self.patch_codec:
            return False
        return self.layout == "kyutai" or (self.base is not None and self.base.for_stock_moshi)

    def origin(self) -> Origin:
        """Returns what personaplex.json says about the run."""
        return Origin(
            recipe=self.run.recipe,
            step=self.step,
            engine=f"ppx-train {__version__}",
            commit=project_commit() or None,
            request=self.request,
        )


def exported_shape(config: LMConfig, layout: str) -> LMConfig:
    """Returns the shape of the language model with the depth steps of a layout."""
    return replace(config, dep_q=LAYOUTS[layout])


def write_parts(
    folder: Path, provenance: Provenance, config: LMConfig, codec: Mimi, codec_file: Path, tokenizer_file: Path
) -> None:
    """Copies codec and tokenizer, byte for byte, and writes the configuration files that name them."""
    if provenance.layout == "nvidia":
        names = {"mimi_name": CODEC_FILE, "tokenizer_name": TOKENIZER_FILE}  # the public runtime has them built in
    else:
        names = {"mimi_name": "mimi.safetensors", "tokenizer_name": "tokenizer.model"}
    shutil.copyfile(codec_file, folder / names["mimi_name"])
    shutil.copyfile(tokenizer_file, folder / names["tokenizer_name"])
    sidecar = _sidecar(provenance, names, config, codec)
    write_json(folder / SIDECAR, sidecar.to_json())
    if not provenance.for_stock_moshi:
        # Stock Moshi runtimes must not find shapes here: with 16 depth steps they would not hear the user, and with a
        # codec that they do not know they would fail late.
        version = f"{provenance.run.recipe}-{provenance.step}"
        write_json(folder / CONFIG_NAME, {"model_type": "personaplex", "version": version})
        return
    public = config_to_dict(exported_shape(config, provenance.layout)) | {"moshi_name": WEIGHTS_NAME} | names
    if provenance.base is not None:
        public |= adapter_keys(provenance.run, provenance.base)
    if not _is_full_size(codec.config):
        (folder / "mimi_config.json").write_text(codec.config.to_json() + "\n", "utf-8")
        public["mimi_config_name"] = "mimi_config.json"
    public |= {"model_type": "moshi", "lm_gen_config": SAMPLING, "model_id": sidecar.to_json()["origin"]}
    write_json(folder / CONFIG_NAME, public)


def _sidecar(provenance: Provenance, names: dict[str, str], config: LMConfig, codec: Mimi) -> Sidecar:
    silence_codes, sine_codes = codec.constants()
    base, lora = provenance.base, provenance.run.model.lora
    return Sidecar(
        format=FORMAT,
        engine=f"ppx-train {__version__}",
        layout=provenance.layout,
        lm=config_to_dict(exported_shape(config, provenance.layout)),
        **names,
        inference_dep_q=config.num_codebooks,
        generated_audio_codebooks=config.num_codebooks,
        prompt=PromptFormat(
            order=("voice", "pause", "text", "pause"),
            system_tag=SYSTEM_TAG,
            pause_frames=PAUSE_FRAMES,
            voice_lufs=VOICE_LUFS,
            silence_codes=silence_codes,
            sine_codes=sine_codes,
            discarded_frames=1,
        ),
        origin=provenance.origin(),
        base=AdapterBase(name=base.name, commit=base.commit) if base else None,
        adapter=AdapterShape(rank=lora.rank, scaling=lora.scaling) if base else None,
        licence=provenance.licence,
        ingredients=provenance.ingredients,
    )


def _is_full_size(config: MimiConfig) -> bool:
    full = MimiConfig.full()
    return (config.seanet, config.quantizer, config.transformer) == (full.seanet, full.quantizer, full.transformer)
