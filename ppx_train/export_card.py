"""The model card: README.md of an exported model, filled in from the run and its data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.shards import read_manifest
from model.prompt import PAUSE_FRAMES
from ppx_train.config import Run
from ppx_train.export_voices import Voice

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


def data_facts(shards: list[Path]) -> DataFacts:
    """Reads the manifests; folders that are gone are named in `missing`, so that the card can say so."""
    facts = DataFacts()
    for folder in shards:
        if not folder.is_dir():
            facts.missing.append(folder.name)
            continue
        manifest = read_manifest(folder)
        for split, sources in manifest["content"].items():
            for source, values in sources.items():
                hours, dialogues = facts.hours.setdefault(split, {}), facts.dialogues.setdefault(split, {})
                hours[source] = hours.get(source, 0.0) + values["hours"]
                dialogues[source] = dialogues.get(source, 0) + int(values["dialogues"])
        for licence, values in manifest["licences"].items():
            facts.licences[licence] = facts.licences.get(licence, 0.0) + values["hours"]
    return facts


def model_card(
    *,
    name: str,
    run: Run,
    step: int,
    layout: str,
    parameters: int,
    data: DataFacts,
    metrics: dict[str, float],
    voices: list[Voice],
    licence: str | None,
    config_sha256: str,
    version: str,
) -> str:
    """README.md in full. metrics: last value of each held-out figure. licence: overrides that of the base model."""
    parts = [
        _header(run, layout, licence),
        f"# {name}\n\nA full-duplex speech-to-speech model: it listens and speaks at once, in frames of 80 ms, in a "
        f"voice and a role given at the start.\n{parameters:,} parameters; trained with ppx-train {version}, recipe "
        f"`{run.recipe}`, step {step:,}.",
        _usage(name, layout, voices),
        _prompt_format(),
        _voices(voices),
        _data(data),
        _recipe(run, step, config_sha256),
        _metrics(metrics, step),
        _limits(run, data),
        "## Misuse\n\nDo not imitate the voice of a person who has not agreed to it, and tell people that they talk to "
        "a machine.",
        _licences(run, data),
    ]
    return "\n\n".join(parts) + "\n"


def _header(run: Run, layout: str, licence: str | None) -> str:
    base = BASES.get(run.model.init)
    lines = ["---"]
    if licence is not None:
        lines.append(f"license: {licence}")
    elif base is None:
        lines += ["license: other", "license_name: see-training-data"]
    else:
        lines.append(f"license: {base[0]}")
        lines += [f"license_name: {base[1]}", f"license_link: {base[2]}"] if base[1] else []
    if base is not None:
        lines += [f"base_model: {run.model.init}", "base_model_relation: finetune"]
    tags = ("moshi", "mimi", "personaplex", "full-duplex", "speech-to-speech", "role-prompt", "voice-prompt")
    lines += [
        "language: en",
        "pipeline_tag: audio-to-audio",
        f"library_name: {'moshi' if layout == 'kyutai' else 'personaplex'}",
    ]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _usage(name: str, layout: str, voices: list[Voice]) -> str:
    voice = f" --voice-prompt {voices[0].name}" if voices else ""
    lines = [
        "## Run it",
        "",
        "```bash",
        "pip install .            # in a checkout of ppx-train",
        f"hf download OWNER/{name} --local-dir {name}",
        f"ppx-chat --model {name} --input-wav question.wav --output-wav answer.wav{voice} \\",
        '    --text-prompt "You work for the Harbour clinic and your name is Jane."',
        "```",
        "",
    ]
    if layout == "kyutai":
        lines.append(
            "`config.json` and `model.safetensors` (8 depth steps) also load in the stock `moshi` package: "
            f"`python -m moshi.server --hf-repo OWNER/{name}` (there without voice and role prompts)."
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


def _recipe(run: Run, step: int, config_sha256: str) -> str:
    adapters = f"LoRA rank {run.model.lora.rank}, merged" if run.model.lora.rank else "all weights"
    facts: dict[str, Any] = {
        "recipe": run.recipe,
        "start weights": Path(run.model.init).name if Path(run.model.init).exists() else run.model.init,
        "trained": adapters,
        "steps": f"{step:,} of {run.steps:,}, {run.data.batch} sequences each",
        "mixture": ", ".join(f"{source} {draws}" for source, draws in run.data.mix.items()),
        "learning rates": f"temporal {run.optim.lr.temporal:g}, depth {run.optim.lr.depth:g}",
        "precision": run.trainer.precision,
        "seed": run.seed,
        "configuration (sha256)": config_sha256,
    }
    return "\n".join(["## Recipe", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())])


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


def _licences(run: Run, data: DataFacts) -> str:
    base = f"start weights `{run.model.init}` under their own licence" if run.model.init in BASES else ""
    named = [base, *(f"training data under {licence}" for licence in sorted(data.licences))]
    chain = "; ".join(part for part in named if part) or "not recorded"
    return f"## Licences\n\nThis model is derived from: {chain}. Check that your use is allowed by each."
