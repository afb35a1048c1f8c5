"""The model card: README.md of an exported model, filled in from the run and its data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.storage import is_url
from model.errors import UserError
from model.prompt import PAUSE_FRAMES
from model.weights.sources import REPOSITORY
from ppx_train import __version__
from ppx_train.config import Run
from ppx_train.export.layouts import Source
from ppx_train.export.voices import Voice
from ppx_train.inference.loading import read_sidecar
from ppx_train.training.origin import project_commit

# hub repository -> (licence for the card's header, its name and link where the hub has no identifier)
BASES = {
    "nvidia/personaplex-7b-v1": (
        "other",
        "nvidia-open-model-license",
        "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
    ),
    "kyutai/moshiko-pytorch-bf16": ("cc-by-4.0", "", ""),
    "kyutai/moshika-pytorch-bf16": ("cc-by-4.0", "", ""),
}


@dataclass(kw_only=True)
class DataFacts:
    """What a run was trained on, summed over its shard folders. hours: by split and source; licences: hours by name."""

    hours: dict[str, dict[str, float]] = field(default_factory=dict)
    dialogues: dict[str, dict[str, int]] = field(default_factory=dict)
    licences: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def data_facts(shards: list[Path | str]) -> DataFacts:
    """Reads the manifests; folders that are gone are named in `missing`, so that the card can say so."""
    facts = DataFacts()
    for folder in shards:
        if not is_url(folder) and not Path(folder).is_dir():
            facts.missing.append(Path(folder).name)
            continue
        manifest = read_manifest(folder)
        for split, sources in manifest.content.items():
            for source, counts in sources.items():
                hours, dialogues = facts.hours.setdefault(split, {}), facts.dialogues.setdefault(split, {})
                hours[source] = hours.get(source, 0.0) + counts.hours
                dialogues[source] = dialogues.get(source, 0) + counts.dialogues
        for name, licence in manifest.licences.items():
            facts.licences[name] = facts.licences.get(name, 0.0) + licence.hours
    return facts


def model_card(
    *,
    name: str,
    source: Source,
    dtype: str,
    parameters: int,
    data: DataFacts,
    metrics: dict[str, float],
    voices: list[Voice],
    licence: str | None,
) -> str:
    """README.md in full. name: OWNER/NAME. metrics: last value of each held-out figure. licence: not that of the base.

    parameters: of the model, or of the adapter in layout `lora`.
    """
    what = f"{parameters:,} parameters in {dtype}"
    if source.base is not None:
        what = f"A LoRA adapter ({what}) for `{_base_name(source)}`, which it needs"
    title = name.rpartition("/")[2]
    parts = [
        _header(source, licence),
        f"# {title}\n\nA full-duplex speech-to-speech model: it listens and speaks at once, in frames of 80 ms, in a "
        f"voice and a role given at the start.\n{what}; trained with recipe `{source.run.recipe}`, step "
        f"{source.step:,}.",
        _usage(name, source, voices),
        _prompt_format(),
        _voices(voices),
        _data(data),
        _recipe(source),
        _metrics(metrics, source.step),
        _limits(source.run, data),
        "## Misuse\n\nDo not imitate the voice of a person who has not agreed to it, and tell people that they talk to "
        "a machine.",
        "## Licences\n\n" + _licences(source, data, voices),
    ]
    return "\n\n".join(parts) + "\n"


def _base_name(source: Source) -> str:
    """Of the start weights: their repository, or the name of the local file or folder without its place."""
    name = source.base.name if source.base is not None else source.run.model.init
    return Path(name).name if Path(name).exists() else name


def _header(source: Source, licence: str | None) -> str:
    name = _base_name(source)
    base = BASES.get(name)
    lines = ["---"]
    if licence is not None:
        lines.append(f"license: {licence}")
    elif base is None:
        lines += ["license: other", "license_name: see-training-data"]
    else:
        lines.append(f"license: {base[0]}")
        lines += [f"license_name: {base[1]}", f"license_link: {base[2]}"] if base[1] else []
    if REPOSITORY.match(name):
        lines += [f"base_model: {name}", f"base_model_relation: {'adapter' if source.base else 'finetune'}"]
    tags = ("moshi", "mimi", "personaplex", "full-duplex", "speech-to-speech", "role-prompt", "voice-prompt")
    lines += [
        "language: en",
        "pipeline_tag: audio-to-audio",
        f"library_name: {'moshi' if source.for_stock_moshi else 'personaplex'}",
    ]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _usage(name: str, source: Source, voices: list[Voice]) -> str:
    voice = f" --voice-prompt {voices[0].name}" if voices else ""
    lines = [
        "## Run it",
        "",
        "```bash",
        "pip install .            # in a checkout of ppx-train",
        f"ppx-chat --model {name} --input-wav question.wav --output-wav answer.wav{voice} \\",
        '    --text-prompt "You work for the Harbour clinic and your name is Jane."',
        "```",
        "",
    ]
    file = "model.safetensors" if source.base is None else "lora.safetensors"
    if source.for_stock_moshi:
        lines.append(
            f"`config.json` and `{file}` (8 depth steps) also load in the stock `moshi` package: "
            f"`python -m moshi.server --hf-repo {name}` (there without voice and role prompts)."
        )
    elif source.base is not None:
        lines.append(
            "The stock `moshi` package cannot load this adapter: it wants the base in one file, with 8 depth steps."
        )
    else:
        lines.append(
            "`model.safetensors` holds 16 depth steps, file names are those of the public PersonaPlex runtime. That "
            "runtime has the shapes of the 7B model built in. The stock `moshi` package must not run 16 depth steps: "
            "it would not hear the user."
        )
    return "\n".join(lines)


def _prompt_format() -> str:
    return (
        "## Prompt format\n\nvoice clip (3 to 10 s of one speaker, mono, 24 kHz, -24 LUFS), pause, "
        "`<system> role text <system>` at one SentencePiece token a frame, pause, then the conversation. "
        f"A pause is {PAUSE_FRAMES} frames. During the prompt the user's stream holds a 440 Hz tone; the codes of both "
        "constants are in `personaplex.json`. A role of 100 tokens takes 8 s of the attention window."
    )


def _voices(voices: list[Voice]) -> str:
    if not voices:
        return "## Voices\n\nNone included: give a wav of the speaker."
    rows = [f"| {v.name} | {v.label} | {v.licence} | {v.consent} |" for v in voices]
    return "\n".join(["## Voices", "", "| name | speaker | licence | consent |", "|---|---|---|---|", *rows])


def _data(data: DataFacts) -> str:
    lines = ["## Training data", ""]
    if data.hours:
        lines += ["| split | source | dialogues | hours |", "|---|---|---|---|"]
        for split, sources in sorted(data.hours.items(), reverse=True):
            for source, hours in sorted(sources.items()):
                lines.append(f"| {split} | {source} | {data.dialogues[split][source]:,} | {hours:.2f} |")
        lines += ["", "Licences: " + "; ".join(f"{n} ({h:.2f} h)" for n, h in sorted(data.licences.items())) + "."]
    if data.missing:
        lines.append(f"Not available at export time, so not described here: {', '.join(data.missing)}.")
    return "\n".join(lines)


def _recipe(source: Source) -> str:
    run, lora = source.run, source.run.model.lora
    adapters = f"LoRA rank {lora.rank}, scaling {lora.scaling:g}, on {', '.join(f'`{p}`' for p in lora.patterns)}"
    start = source.base.commit if source.base is not None else source.trained_with.get("start_commit")
    revision = start or run.model.revision
    trained_with = _engine(source.trained_with.get("version", ""), source.trained_with.get("commit", ""))
    facts: dict[str, Any] = {
        "recipe": run.recipe,
        "start weights": _base_name(source) + (f", revision {revision}" if revision else ""),
        "trained": f"{adapters}{'' if source.base else ', merged'}" if lora.rank else "all weights",
        "steps": f"{source.step:,} of {run.steps:,}, {run.data.batch} sequences each",
        "mixture": ", ".join(f"{name} {draws}" for name, draws in run.data.mix.items()),
        "learning rates": f"temporal {run.optim.lr.temporal:g}, depth {run.optim.lr.depth:g}",
        "precision": run.trainer.precision,
        "seed": run.seed,
        "configuration (sha256)": source.config_sha256,
        "trained with": trained_with if source.trained_with else "not recorded",
        "exported with": _engine(__version__, project_commit()),
    }
    return "\n".join(["## Recipe", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())])


def _engine(version: str, commit: str) -> str:
    return f"ppx-train {version}" + (f", commit {commit}" if commit else "")


def _metrics(metrics: dict[str, float], step: int) -> str:
    if not metrics:
        return "## Figures\n\nNo held-out figures were logged."
    rows = [f"| {name.removeprefix('heldout/')} | {value:.4f} |" for name, value in sorted(metrics.items())]
    return "\n".join(
        [f"## Figures on held-out dialogues, up to step {step:,}", "", "| figure | value |", "|---|---|", *rows]
    )


def _limits(run: Run, data: DataFacts) -> str:
    hours = sum(data.hours.get("train", {}).values())
    lines = [
        "## Limits",
        "",
        "- Trained on English conversations only.",
        "- Echo: on open speakers the model may hear itself; use headphones.",
        f"- The attention window is {run.model.lm.context} frames ({run.model.lm.context * 0.08:.0f} s); in longer "
        "calls the prompt leaves it.",
        "- What it says may be wrong.",
    ]
    if run.model.init == "scratch":
        scratch = (
            f"- Trained from scratch on {hours:.1f} h: it learns how conversation sounds, not what is true or wise."
        )
        lines.insert(2, scratch)
    return "\n".join(lines)


def _licences(source: Source, data: DataFacts, voices: list[Voice]) -> str:
    run = source.run
    chain = [] if run.model.init == "scratch" else [f"start weights {_terms(run.model.init, _base_name(source))}"]
    chain += [f"codec {_terms(run.model.codec)}"] if run.model.codec in BASES else []
    chain += [f"tokenizer {_terms(run.model.tokenizer)}"] if run.model.tokenizer in BASES else []
    chain += [f"training data under {licence} ({hours:.2f} h)" for licence, hours in sorted(data.licences.items())]
    chain += [f"voices under {licence}" for licence in sorted({voice.licence for voice in voices})]
    if not chain:
        return "Not recorded: neither start weights nor training data were known when this was exported."
    return "\n".join(["This model is derived from:", "", *(f"- {part}" for part in chain), "", CHECK])


CHECK = "Check that your use is allowed by each."


def _terms(place: str, name: str | None = None) -> str:
    """A source by name with its licence, and with what it was itself made from if it is one of our exports."""
    known = BASES.get(name or place)
    if known is not None:
        return f"`{name or place}` under {known[1] or known[0]}"
    own = _chain_of(Path(place))
    return f"`{name or Path(place).name}` under its own licence" + (f", itself derived from {own}" if own else "")


def _chain_of(folder: Path) -> str:
    """The licence chain in the model card of one of our exports, in one line; empty for anything else."""
    try:
        if not folder.is_dir() or read_sidecar(folder) is None:
            return ""
        card = (folder / "README.md").read_text("utf-8")
    except (UserError, OSError):
        return ""
    _, found, chain = card.partition("This model is derived from:")
    return "; ".join(line[2:] for line in chain.splitlines() if line.startswith("- ")) if found else ""
