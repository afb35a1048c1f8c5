"""`ppx-export`: a training checkpoint -> a folder that can be run, and uploaded as it is.

model.safetensors     language model: 8 depth steps (layout kyutai) or 16 (layout nvidia)
lora.safetensors      instead of it in layout lora: the adapter alone
config.json           as stock Moshi runtimes read it (kyutai, lora); only a name (nvidia)
personaplex.json      ours: prompt format, constant codes, shapes, where the model comes from
mimi.safetensors, tokenizer.model, voices/, README.md, SHA256SUMS
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from data_pipelines.files import digest, sha256_file
from model.adapters.lora import adapters, merge
from model.duplex import DuplexLM
from model.errors import UserError
from model.mimi.codec import Mimi
from model.mimi.files import load_mimi
from model.text import TextTokenizer
from model.weights.checkpoint import WEIGHTS_NAME, save_native
from model.weights.sources import codec_path, tokenizer_path
from ppx_train.config import Run, load_saved
from ppx_train.export.adapter import Base, check_adapter, find_base, point_to_base, save_adapter
from ppx_train.export.card import data_facts, model_card
from ppx_train.export.hub import check_push, push
from ppx_train.export.layouts import LAYOUTS, Source, exported_shape, write_parts
from ppx_train.export.sums import check_sums, write_sums
from ppx_train.export.voices import Voice, voices_of_folder, voices_of_shards, write_voices
from ppx_train.inference.loading import VOICES, check_parts, read_sidecar
from ppx_train.training.build import empty_lm, restore_lm
from ppx_train.training.checkpoint import (
    BASE,
    CONFIG,
    FILE,
    check_weights,
    checkpoints,
    language_model,
    read_checkpoint,
)
from ppx_train.training.curves import read_metrics
from ppx_train.training.origin import KEY

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
HELDOUT, NONE = "heldout", "none"

HELP = """\
ppx-export checkpoint=RUN out=DIR [key=value ...]

  checkpoint=RUN       run directory (its newest checkpoint) or one RUN/checkpoints/step-... folder
  out=DIR              folder to make; must not exist, unless an upload of it goes on
  layout=kyutai        8 depth steps, loads in the stock moshi package; nvidia: 16 depth steps, public file names;
                       lora: the adapter alone, in Kyutai's LoRA format. Adapters are merged in the other two
  dtype=bfloat16       or float32
  voices=heldout       synthetic voices of the held-out dialogues; or a folder of clips (NAME.wav with NAME.json
                       that gives licence and consent); or none
  max_voices=8         at most so many held-out voices
  data=DIR             the run's shards, if they are no longer where the run found them
  licence=ID           licence in the header of the model card (default: that of the start weights)
  base=ORG/NAME        for a run of adapters: its start weights (or a path), if they are no longer where the run found
                       them; layout=lora tells others to take them from there
  push_to_hub=ORG/NAME upload the folder to this model repository of the hub, which must be new or hold the same files
  public=true          with push_to_hub: everybody may see the repository (default: it is private)

ppx-export voice ...   converts a pickled voice of PersonaPlex; see ppx-export voice --help
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of the command but checkpoint, out and public; their meaning is in HELP. data: None is as in the run."""

    layout: str = "kyutai"
    dtype: str = "bfloat16"
    voices: str | Path = HELDOUT
    max_voices: int = 8
    data: tuple[Path, ...] | None = None
    licence: str | None = None
    base: str | None = None
    push_to_hub: str | None = None

    def check(self) -> None:
        """Raises UserError for a layout or type that does not exist."""
        if self.layout not in LAYOUTS:
            raise UserError(f"layout={self.layout}: choose one of {', '.join(LAYOUTS)}")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype}: choose one of {', '.join(DTYPES)}")

    def request(self, checkpoint: Path) -> str:
        """Hex digest of what is asked for: an export with the same one need not be made again."""
        return digest(checkpoint.name, sha256_file(checkpoint / CONFIG), repr(replace(self, data=None)))


def main(arguments: Sequence[str]) -> int:
    """The command. Raises UserError for unknown keys and everything that `export` and `push` refuse."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print(HELP, end="")
        return 0 if arguments else 2
    given = parse(arguments)
    checkpoint, out, public = Path(given.pop("checkpoint")), Path(given.pop("out")), given.pop("public", False)
    options = Options(**given)
    options.check()
    repository = options.push_to_hub
    if public and repository is None:
        raise UserError("public=true has no effect without push_to_hub=ORG/NAME: leave it out")
    finished = repository is not None and out.exists()
    if finished:
        check_finished(out, options.request(find_checkpoint(checkpoint)))
    if repository is not None:
        check_push(repository, public=public, folder=out if finished else None)
    if not finished:
        export(checkpoint, out, **given)
    print(f"{out}: talk to it with ppx-chat --model {out} --input-wav question.wav --output-wav answer.wav")
    if repository is not None:
        print(push(out, repository, public=public))
    return 0


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Values of key=value words. Raises UserError for a key or value that cannot be."""
    given: dict[str, Any] = {}
    keys = ("checkpoint", "out", *(field.name for field in fields(Options)), "public")
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in keys:
            raise UserError(f"{argument!r}: write key=value with a key of {', '.join(keys)}")
        given[key] = value
    for key in ("checkpoint", "out"):
        if key not in given:
            raise UserError(f"{key} is not given: ppx-export checkpoint=RUN out=DIR")
    if "max_voices" in given:
        if not given["max_voices"].isdigit():
            raise UserError(f"max_voices={given['max_voices']}: give a whole number")
        given["max_voices"] = int(given["max_voices"])
    if "data" in given:
        given["data"] = (Path(given["data"]),)
    if "public" in given:
        if given["public"] not in ("true", "false"):
            raise UserError(f"public={given['public']}: give true or false")
        given["public"] = given["public"] == "true"
    return given


def check_finished(out: Path, request: str) -> None:
    """Raises UserError unless `out` is, unchanged, the export that is asked for."""
    sidecar = read_sidecar(out) if out.is_dir() else None
    if sidecar is None or sidecar.get("origin", {}).get("request") != request:
        raise UserError(
            f"out={out} exists, and is not the export asked for: choose another folder, or export with the same options"
        )
    check_sums(out)


def export(checkpoint: Path, out: Path, **given: Any) -> Path:
    """Writes the folder `out` from a run directory or one of its checkpoints, and returns it.

    given: fields of Options. push_to_hub is only the name in the model card here; `export_hub.push` uploads.
    The folder appears whole or not at all. Adapters are merged, but for layout `lora`.
    Raises: UserError if `out` exists, or the checkpoint is damaged or of another architecture than its configuration
    says, or codec, tokenizer, base, shards or voices cannot be used.
    """
    options = Options(**given)
    options.check()
    if out.exists():
        raise UserError(f"out={out} exists: choose another folder")
    folder = find_checkpoint(checkpoint)
    run = load_saved(folder / CONFIG)
    check_adapter(run, options.layout, options.base)
    state = read_checkpoint(folder)
    run = point_to_base(run, options.base, state.get(KEY, {}).get("start_commit"))
    start = find_start(run, options)
    model = load_model(folder, run, state)
    codec_file, tokenizer_file = codec_path(run.model.codec), tokenizer_path(run.model.tokenizer)
    codec = load_mimi(codec_file)
    check_parts(model.config, codec, TextTokenizer(tokenizer_file), str(folder))
    shards: list[Path | str] = list(options.data or run.data.paths)
    source = Source(
        run=run,
        step=int(state["global_step"]),
        config_sha256=sha256_file(folder / CONFIG),
        layout=options.layout,
        base=start,
        trained_with=state.get(KEY, {}),
        request=options.request(folder),
    )
    voices = find_voices(options, shards, codec)
    facts = data_facts(shards)
    figures = last_figures(folder.parent.parent, source.step)

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        parameters = write_model(partial, model, options)
        write_parts(partial, source, model.config, codec, codec_file, tokenizer_file)
        write_voices(partial / VOICES, voices)
        card = model_card(
            name=options.push_to_hub or f"OWNER/{out.name}",
            source=source,
            dtype=options.dtype,
            parameters=parameters,
            data=facts,
            metrics=figures,
            voices=voices,
            licence=options.licence,
        )
        (partial / "README.md").write_text(card, "utf-8")
        write_sums(partial)
        for path in [partial, *partial.rglob("*")]:  # mkdtemp and safetensors make things only their owner can read
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.rename(partial, out)  # fails if `out` has appeared meanwhile and is not empty
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def find_start(run: Run, options: Options) -> Base | None:
    """The base that an adapter is exported for; None for the merged layouts.

    Raises: UserError if it cannot be had, or would be uploaded by the name of a local folder.
    """
    if options.layout != "lora":
        return None
    base = find_base(run)
    if base.local and options.push_to_hub is not None:
        raise UserError(
            f"push_to_hub={options.push_to_hub}: the adapter's base {base.name} is on this machine only: give "
            "base=ORG/NAME, where others find the same weights, or choose layout=kyutai or nvidia"
        )
    return base


def find_voices(options: Options, shards: Sequence[Path | str], codec: Mimi) -> list[Voice]:
    """The voices that are asked for. Raises UserError if they cannot be had."""
    if options.voices == NONE:
        return []
    if options.voices == HELDOUT:
        return voices_of_shards(shards, options.max_voices)
    return voices_of_folder(Path(options.voices), codec)


def write_model(folder: Path, model: DuplexLM, options: Options) -> int:
    """Writes the weights or, in layout `lora`, the adapter; returns the number of values.

    Adapters are merged in fp32 and rounded once, to the type that is written.
    """
    dtype = DTYPES[options.dtype]
    if options.layout == "lora":
        return save_adapter(folder, model, dtype)
    if any(adapters(model)):
        merge(model.to(dtype) if dtype == torch.float32 else model)
    save_native(folder / WEIGHTS_NAME, model, dtype=dtype, dep_q=LAYOUTS[options.layout])
    return DuplexLM(exported_shape(model.config, options.layout), device="meta").num_parameters()


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by a run directory (its newest) or by itself. Raises UserError if there is none."""
    if (path / FILE).is_file() and (path / CONFIG).is_file():
        return path
    found = checkpoints(path) if path.is_dir() else []
    if not found:
        raise UserError(f"checkpoint={path}: no checkpoint there: give a run directory or RUN/checkpoints/step-...")
    return found[-1]


def load_model(folder: Path, run: Run, state: dict[str, Any]) -> DuplexLM:
    """The language model of a checkpoint, with its adapters over the full-precision start weights.

    Raises: UserError if its tensors are not those of its configuration, or the start weights have gone or changed.
    """
    tensors = language_model(state)
    check_weights(folder, tensors, empty_lm(run))
    return restore_lm(run, tensors, state.get(BASE)).requires_grad_(False)


def last_figures(run_dir: Path, step: int) -> dict[str, float]:
    """Newest held-out figures of a run up to `step`."""
    figures = {}
    for name, points in read_metrics(run_dir).items():
        values = [value for at, value in points if at <= step]
        if name.startswith("heldout/") and values:
            figures[name] = values[-1]
    return figures
