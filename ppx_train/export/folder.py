"""A training checkpoint becomes a folder that can be run, and uploaded as it is.

model.safetensors     language model: 8 depth steps (layout kyutai) or 16 (layout nvidia)
lora.safetensors      instead of it in layout lora: the adapter alone
config.json           as stock Moshi runtimes read it (kyutai, lora); only a name (nvidia)
personaplex.json      ours: prompt format, constant codes, shapes, what the model was made from
mimi.safetensors, tokenizer.model, voices/, README.md, SHA256SUMS
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data_pipelines.files import digest, sha256_file
from model.adapters.lora import adapters, merge
from model.duplex import DuplexLM
from model.errors import UserError
from model.files import whole_folder
from model.mimi.codec import Mimi
from model.mimi.files import load_mimi
from model.text import TextTokenizer
from model.weights.checkpoint import WEIGHTS_NAME, save_native
from model.weights.sources import codec_path, tokenizer_path
from ppx_train.config.load import load_saved
from ppx_train.config.run import Run
from ppx_train.export.adapter import Base, check_adapter, find_base, point_to_base, save_adapter
from ppx_train.export.card import data_facts, model_card
from ppx_train.export.export_settings import DTYPES, HELDOUT, LAYOUTS, NONE, ExportSettings
from ppx_train.export.layouts import Provenance, exported_shape, write_parts
from ppx_train.export.lineage import ingredients_of, start_of, stated_licence
from ppx_train.export.sums import write_sums
from ppx_train.export.voices import voices_of_folder, voices_of_shards, write_voices
from ppx_train.inference.loading import check_parts
from ppx_train.inference.sidecar import HubLicence
from ppx_train.training.build import empty_lm, restore_lm
from ppx_train.training.checkpoint import (
    AVERAGE,
    BASE,
    CONFIG,
    FILE,
    check_sums,
    check_weights,
    checkpoints,
    language_model,
    read_checkpoint,
)
from ppx_train.training.curves import AVERAGED, read_metrics
from ppx_train.training.origin import KEY
from ppx_train.voices.folder import VOICES
from ppx_train.voices.voice_file import VoiceFile


def export_checkpoint(checkpoint: Path, out: Path, settings: ExportSettings | None = None) -> Path:
    """Writes the folder `out` from a run directory or one of its checkpoints, and returns it.

    The folder appears whole or not at all. Layout `lora` has the adapters alone, the others have them merged. Nothing
    is uploaded: `settings.push` is only the name in the model card.
    Raises: UserError if `out` exists, or the checkpoint is damaged or of another architecture than its configuration
    says, or codec, tokenizer, base, shards or voices cannot be used.
    """
    settings = settings or ExportSettings()
    settings.check()
    if out.exists():
        raise UserError(f"--out {out} exists: choose another folder", code="exists")
    folder = find_checkpoint(checkpoint)
    check_sums(folder)
    run = load_saved(folder / CONFIG, Run)
    check_adapter(run, settings.layout, settings.base)
    state = read_checkpoint(folder)
    trained_with: Mapping[str, str] = state.get(KEY, {})
    run = point_to_base(run, settings.base, trained_with.get("start_commit"))
    base = find_start(run, settings)
    start = start_of(run, base, trained_with.get("start_commit"))
    model = load_model(folder, run, state, settings.ema)
    codec_file, tokenizer_file = codec_path(run.model.codec), tokenizer_path(run.model.tokenizer)
    codec = load_mimi(codec_file)
    check_parts(model.config, codec, TextTokenizer(tokenizer_file), str(folder))
    shards: list[Path | str] = [settings.data] if settings.data else list(run.data.paths)
    voices = find_voices(settings, shards, codec)
    facts = data_facts(shards)
    provenance = Provenance(
        run=run,
        step=int(state["global_step"]),
        config_sha256=sha256_file(folder / CONFIG),
        layout=settings.layout,
        base=base,
        engine=trained_with.get("version"),
        commit=trained_with.get("commit"),
        request=request_of(folder, settings),
        licence=HubLicence(id=settings.licence) if settings.licence is not None else stated_licence(start.name),
        start=start,
        ingredients=ingredients_of(run, start, facts.licences, voices),
        patch_codec=codec.config.patch is not None,
    )
    prefix = AVERAGED if settings.ema else "heldout"
    figures = last_figures(folder.parent.parent, provenance.step, prefix)

    with whole_folder(out) as partial:
        parameters = write_model(partial, model, settings)
        write_parts(partial, provenance, model.config, codec, codec_file, tokenizer_file)
        write_voices(partial / VOICES, voices)
        card = model_card(
            name=settings.push or f"OWNER/{out.name}",
            provenance=provenance,
            dtype=DTYPES[settings.dtype],
            parameters=parameters,
            data=facts,
            figures=figures,
            voices=voices,
        )
        (partial / "README.md").write_text(card, "utf-8")
        write_sums(partial)
        for path in [partial, *partial.rglob("*")]:  # safetensors makes files that only their owner can read
            path.chmod(0o755 if path.is_dir() else 0o644)
    return out


def request_of(checkpoint: Path, settings: ExportSettings) -> str:
    """Returns a hex digest of what is asked for: an export with the same one need not be made again."""
    return digest(checkpoint.name, sha256_file(checkpoint / CONFIG), repr(replace(settings, data=None)))


def find_start(run: Run, settings: ExportSettings) -> Base | None:
    """Returns the base that an adapter is exported for; None for the merged layouts.

    Raises: UserError if it is not found, or would be uploaded by the name of a local folder.
    """
    if settings.layout != "lora":
        return None
    base = find_base(run)
    if base.local and settings.push is not None:
        raise UserError(
            f"--push {settings.push}: the adapter's base {base.name} is on this machine only, give --base ORG/NAME, "
            "where others find the same weights, or choose --layout kyutai or nvidia",
            code="bad-combination",
        )
    return base


def find_voices(settings: ExportSettings, shards: Sequence[Path | str], codec: Mimi) -> list[VoiceFile]:
    """Returns the voices that are asked for. Raises UserError if they are not found or cannot be used."""
    if settings.voices == NONE:
        return []
    if settings.voices == HELDOUT:
        return voices_of_shards(shards, settings.max_voices, codec.fingerprint())
    return voices_of_folder(Path(settings.voices), codec)


def write_model(folder: Path, model: DuplexLM, settings: ExportSettings) -> int:
    """Writes the weights or, in layout `lora`, the adapter; returns the number of values.

    Adapters are merged in fp32 and rounded once, to the type that is written.
    Raises: UserError naming the first parameter that is or would become NaN or infinite.
    """
    dtype: torch.dtype = getattr(torch, DTYPES[settings.dtype])
    if settings.layout == "lora":
        check_finite(model, dtype)
        return save_adapter(folder, model, dtype)
    if any(adapters(model)):
        merge(model.to(dtype) if dtype == torch.float32 else model)
    check_finite(model, dtype)
    save_native(folder / WEIGHTS_NAME, model, dtype=dtype, dep_q=LAYOUTS[settings.layout])
    return DuplexLM(exported_shape(model.config, settings.layout), device="meta").num_parameters()


def check_finite(model: DuplexLM, dtype: torch.dtype) -> None:
    """Raises UserError naming the first parameter that holds NaN or infinite values, or would as `dtype`."""
    for name, values in model.named_parameters():
        # NaN among the values makes their bounds NaN; unlike isfinite of all, the bounds allocate nothing.
        if values.numel() and not all(bound.to(dtype).isfinite() for bound in values.detach().aminmax()):
            raise UserError(
                f"{name} of the checkpoint holds NaN or infinite values as {dtype}: export an earlier checkpoint, and "
                "train again from there with a lower optim.lr",
                code="bad-weights",
            )


def find_checkpoint(path: Path) -> Path:
    """Returns the newest checkpoint of a run directory, or the checkpoint itself. Raises UserError without one."""
    if (path / FILE).is_file() and (path / CONFIG).is_file():
        return path
    found = checkpoints(path) if path.is_dir() else []
    if not found:
        raise UserError(
            f"--checkpoint {path}: no checkpoint there, give a run directory or RUN/checkpoints/step-...",
            code="not-found",
        )
    return found[-1]


def load_model(folder: Path, run: Run, state: dict[str, Any], ema: bool = False) -> DuplexLM:
    """Returns the language model of a checkpoint, with its adapters over the full-precision start weights.

    ema: take the moving average of what has trained.
    Raises: UserError if its tensors are not those of its configuration, or the start weights have gone or changed, or
    there is no moving average.
    """
    if ema and AVERAGE not in state:
        raise UserError(
            f"--ema: {folder} has no moving average, its run had no optim.ema_decay: leave it out",
            code="bad-combination",
        )
    tensors = language_model(state, AVERAGE if ema else "state_dict")
    check_weights(folder, tensors, empty_lm(run))
    whole = {name: value.whole() for name, value in tensors.items()}
    return restore_lm(run, whole, state.get(BASE)).requires_grad_(False)


def last_figures(run_dir: Path, step: int, prefix: str) -> dict[str, float]:
    """Returns the newest held-out figures of a run up to `step`, by name, as if `prefix` were `heldout`."""
    figures = {}
    for name, points in read_metrics(run_dir).items():
        values = [value for at, value in points if at <= step]
        if name.startswith(f"{prefix}/") and values:
            figures["heldout" + name.removeprefix(prefix)] = values[-1]
    return figures
