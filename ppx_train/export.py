"""`ppx-export`: a training checkpoint -> a folder that can be run, and uploaded as it is.

model.safetensors     language model: 8 depth steps (layout kyutai) or 16 (layout nvidia)
config.json           as stock Moshi runtimes read it (kyutai); only a name (nvidia)
personaplex.json      ours: prompt format, constant codes, shapes, where the model comes from
mimi.safetensors, tokenizer.model, voices/, README.md, SHA256SUMS
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data_pipelines.audio import VOICE_LUFS
from data_pipelines.shards import sha256_file
from model.checkpoint import CONFIG_NAME, WEIGHTS_NAME, config_to_dict, save_native, write_json
from model.config import LMConfig
from model.duplex import DuplexLM
from model.errors import UserError
from model.lora import merge
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig
from model.prompt import PAUSE_FRAMES, SYSTEM_TAG
from model.sources import CODEC_FILE, TOKENIZER_FILE, codec_path, tokenizer_path
from model.text import TextTokenizer
from ppx_train import __version__
from ppx_train.build import empty_lm, restore_lm
from ppx_train.checkpoint import BASE, CONFIG, FILE, check_weights, checkpoints, language_model, read_checkpoint
from ppx_train.config import Run, load_saved
from ppx_train.curves import read_metrics
from ppx_train.export_card import data_facts, model_card
from ppx_train.export_voices import voices_of_folder, voices_of_shards, write_voices
from ppx_train.inference.loading import FORMAT, SIDECAR, VOICES, check_parts

LAYOUTS = {"kyutai": 8, "nvidia": 16}
"""Depth steps of each layout."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
HELDOUT, NONE = "heldout", "none"
SAMPLING = {"temp": 0.8, "temp_text": 0.7, "top_k": 250, "top_k_text": 25}

HELP = """\
ppx-export checkpoint=RUN out=DIR [key=value ...]

  checkpoint=RUN       run directory (its newest checkpoint) or one RUN/checkpoints/step-... folder
  out=DIR              folder to make; must not exist
  layout=kyutai        8 depth steps, loads in the stock moshi package; nvidia: 16 depth steps, public file names
  dtype=bfloat16       or float32
  voices=heldout       synthetic voices of the held-out dialogues; or a folder of clips (NAME.wav with NAME.json
                       that gives licence and consent); or none
  max_voices=8         at most so many held-out voices
  data=DIR             the run's shards, if they are no longer where the run found them
  licence=ID           licence in the header of the model card (default: that of the start weights)

ppx-export voice ...   converts a pickled voice of PersonaPlex; see ppx-export voice --help
"""


def main(arguments: Sequence[str]) -> int:
    """The command. Raises UserError for unknown keys and everything that `export` refuses."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print(HELP, end="")
        return 0 if arguments else 2
    keys = ("checkpoint", "out", "layout", "dtype", "voices", "max_voices", "data", "licence")
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in keys:
            raise UserError(f"{argument!r}: write key=value with a key of {', '.join(keys)}")
        given[key] = value
    for key in ("checkpoint", "out"):
        if key not in given:
            raise UserError(f"{key} is not given: ppx-export checkpoint=RUN out=DIR")
    options: dict[str, Any] = {key: value for key, value in given.items() if key not in ("checkpoint", "out")}
    if "max_voices" in options:
        if not options["max_voices"].isdigit():
            raise UserError(f"max_voices={options['max_voices']}: give a whole number")
        options["max_voices"] = int(options["max_voices"])
    if "data" in options:
        options["data"] = [Path(options["data"])]
    out = export(Path(given["checkpoint"]), Path(given["out"]), **options)
    print(f"{out}: talk to it with ppx-chat --model {out} --input-wav question.wav --output-wav answer.wav")
    return 0


def export(
    checkpoint: Path,
    out: Path,
    *,
    layout: str = "kyutai",
    dtype: str = "bfloat16",
    voices: str | Path = HELDOUT,
    max_voices: int = 8,
    data: Sequence[Path] | None = None,
    licence: str | None = None,
) -> Path:
    """Writes the folder `out` from a run directory or one of its checkpoints, and returns it.

    The folder appears whole or not at all. LoRA adapters are merged.
    Raises: UserError if `out` exists, or the checkpoint is damaged or of another architecture than its configuration
    says, or codec, tokenizer, shards or voices cannot be used.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout={layout}: choose one of {', '.join(LAYOUTS)}")
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: choose one of {', '.join(DTYPES)}")
    if out.exists():
        raise UserError(f"out={out} exists: choose another folder")
    folder = find_checkpoint(checkpoint)
    run, model, step = load_checkpoint(folder)
    codec_file, tokenizer_file = codec_path(run.model.codec), tokenizer_path(run.model.tokenizer)
    codec = Mimi.load(codec_file)
    check_parts(model.config, codec, TextTokenizer(tokenizer_file), str(folder))
    shards = list(data) if data is not None else [Path(path) for path in run.data.paths]
    if voices == NONE:
        chosen = []
    else:
        chosen = voices_of_shards(shards, max_voices) if voices == HELDOUT else voices_of_folder(Path(voices), codec)

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        save_native(partial / WEIGHTS_NAME, model, dtype=DTYPES[dtype], dep_q=LAYOUTS[layout])
        names = _copy_parts(partial, layout, codec_file, tokenizer_file)
        write_voices(partial / VOICES, chosen)
        _write_configs(partial, layout, names, model.config, codec, run, step)
        config_sha256 = sha256_file(folder / CONFIG)
        card = model_card(
            name=out.name,
            run=run,
            step=step,
            layout=layout,
            parameters=DuplexLM(_shape(model.config, layout), device="meta").num_parameters(),
            data=data_facts(shards),
            metrics=_last_figures(folder.parent.parent, step),
            voices=chosen,
            licence=licence,
            config_sha256=config_sha256,
            version=__version__,
        )
        (partial / "README.md").write_text(card, "utf-8")
        _write_sums(partial)
        for path in [partial, *partial.rglob("*")]:  # mkdtemp and safetensors make things only their owner can read
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.rename(partial, out)  # fails if `out` has appeared meanwhile and is not empty
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by a run directory (its newest) or by itself. Raises UserError if there is none."""
    if (path / FILE).is_file() and (path / CONFIG).is_file():
        return path
    found = checkpoints(path) if path.is_dir() else []
    if not found:
        raise UserError(f"checkpoint={path}: no checkpoint there: give a run directory or RUN/checkpoints/step-...")
    return found[-1]


def load_checkpoint(folder: Path) -> tuple[Run, DuplexLM, int]:
    """The run, its language model with adapters merged, and the step, from a checkpoint folder.

    Adapters go into the full-precision start weights, also if they were trained on quantized ones.
    Raises: UserError if the checkpoint is damaged, its tensors are not those of its configuration, or the start weights
    of its adapters have gone or changed.
    """
    run = load_saved(folder / CONFIG)
    state = read_checkpoint(folder)
    tensors = language_model(state)
    check_weights(folder, tensors, empty_lm(run))
    model = restore_lm(run, tensors, state.get(BASE))
    if run.model.lora.rank:
        merge(model)
    return run, model.requires_grad_(False), int(state["global_step"])


def _copy_parts(folder: Path, layout: str, codec_file: Path, tokenizer_file: Path) -> dict[str, str]:
    """Copies codec and tokenizer byte for byte; returns their names under the keys of config.json."""
    if layout == "nvidia":
        names = {"mimi_name": CODEC_FILE, "tokenizer_name": TOKENIZER_FILE}  # the public runtime has them built in
    else:
        names = {"mimi_name": "mimi.safetensors", "tokenizer_name": "tokenizer.model"}
    shutil.copyfile(codec_file, folder / names["mimi_name"])
    shutil.copyfile(tokenizer_file, folder / names["tokenizer_name"])
    return names


def _write_configs(
    folder: Path, layout: str, names: dict[str, str], config: LMConfig, codec: Mimi, run: Run, step: int
) -> None:
    """config.json and personaplex.json."""
    silence_codes, sine_codes = codec.constants()
    shape = _shape(config, layout)
    origin = {"recipe": run.recipe, "step": step, "engine": f"ppx-train {__version__}"}
    sidecar = {
        "format": FORMAT,
        "engine": f"ppx-train {__version__}",
        "layout": layout,
        "lm": config_to_dict(shape),
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
        "origin": origin,
    }
    write_json(folder / SIDECAR, sidecar)
    if layout == "nvidia":
        # stock Moshi runtimes must not find shapes here: with 16 depth steps they would be deaf to the user
        write_json(folder / CONFIG_NAME, {"model_type": "personaplex", "version": f"{run.recipe}-{step}"})
        return
    public = config_to_dict(shape) | {"moshi_name": WEIGHTS_NAME} | names
    if not _is_full_size(codec.config):
        (folder / "mimi_config.json").write_text(codec.config.to_json() + "\n", "utf-8")
        public["mimi_config_name"] = "mimi_config.json"
    public |= {"model_type": "moshi", "lm_gen_config": SAMPLING, "model_id": origin}
    write_json(folder / CONFIG_NAME, public)


def _shape(config: LMConfig, layout: str) -> LMConfig:
    return replace(config, dep_q=LAYOUTS[layout])


def _is_full_size(config: MimiConfig) -> bool:
    full = MimiConfig.full()
    return (config.seanet, config.quantizer, config.transformer) == (full.seanet, full.quantizer, full.transformer)


def _last_figures(run_dir: Path, step: int) -> dict[str, float]:
    """Newest held-out figures of a run up to `step`."""
    figures = {}
    for name, points in read_metrics(run_dir).items():
        values = [value for at, value in points if at <= step]
        if name.startswith("heldout/") and values:
            figures[name] = values[-1]
    return figures


def _write_sums(folder: Path) -> None:
    """SHA256SUMS of all files, in the format of sha256sum."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in files]
    (folder / "SHA256SUMS").write_text("".join(lines), "utf-8")
