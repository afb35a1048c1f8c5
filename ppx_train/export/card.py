"""The model card, README.md of an exported model: what the text of model_card.md.j2 is filled in with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from data_pipelines.shards.manifest import masking_sentence, read_manifest
from data_pipelines.shards.storage import is_url
from model.config import FRAME_RATE
from model.prompt import PAUSE_FRAMES
from model.text_safety import code, markdown
from ppx_train import __version__
from ppx_train.export.layouts import Provenance
from ppx_train.export.lineage import SCRATCH, hub_ancestor, sentences, shown_name
from ppx_train.training.origin import project_commit
from ppx_train.voices.voice_file import VoiceFile

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
TAGS = ("moshi", "mimi", "personaplex", "full-duplex", "speech-to-speech", "role-prompt", "voice-prompt")


@dataclass(kw_only=True)
class SourceFacts:
    """What one split of the training data has of one source."""

    split: str
    name: str
    dialogues: int = 0
    hours: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a run was trained on, summed over its shard folders.

    licences: hours by name. missing: names of the folders that are gone, so that the card can say so.
    recorded, masked: how many dialogues are of real people, and in how many personal numbers and names were masked.
    """

    sources: Sequence[SourceFacts]
    licences: Mapping[str, float]
    missing: Sequence[str]
    recorded: int = 0
    masked: int = 0

    @property
    def masking(self) -> str:
        """What the card says about personal data."""
        return masking_sentence(self.recorded, self.masked)

    @property
    def train_hours(self) -> float:
        """Hours of all sources that the model was trained on."""
        return sum(source.hours for source in self.sources if source.split == "train")


def data_facts(shards: Sequence[Path | str]) -> DataFacts:
    """Reads the manifests of shard folders. Raises UserError if one is damaged."""
    sources: dict[tuple[str, str], SourceFacts] = {}
    licences: dict[str, float] = {}
    missing = []
    recorded = masked = 0
    for folder in shards:
        if not is_url(folder) and not Path(folder).is_dir():
            missing.append(Path(folder).name)
            continue
        manifest = read_manifest(folder)
        recorded, masked = recorded + manifest.recorded, masked + manifest.masked
        for split, by_source in manifest.content.items():
            for name, counts in by_source.items():
                facts = sources.setdefault((split, name), SourceFacts(split=split, name=name))
                facts.hours += counts.hours
                facts.dialogues += counts.dialogues
        for licence, of_licence in manifest.licences.items():
            licences[licence] = licences.get(licence, 0.0) + of_licence.hours
    in_order = sorted(sources.values(), key=lambda source: (source.split != "train", source.split, source.name))
    return DataFacts(sources=in_order, licences=licences, missing=missing, recorded=recorded, masked=masked)


def model_card(
    *,
    name: str,
    provenance: Provenance,
    dtype: str,
    parameters: int,
    data: DataFacts,
    figures: Mapping[str, float],
    voices: Sequence[VoiceFile],
) -> str:
    """Returns README.md in full.

    name: OWNER/NAME of the repository. dtype: of the weights. parameters: of the model, or of the adapter in layout
    `lora`. figures: the last value of each held-out figure.
    """
    run = provenance.run
    card = ModelCard.from_template(
        _header(provenance),
        template_path=str(TEMPLATE),
        name=name,
        title=name.rpartition("/")[2],
        weights=f"{parameters:,} parameters in {dtype}",
        adapter_of=shown_name(provenance.start.name) if provenance.base is not None else None,
        recipe=run.recipe,
        step=f"{provenance.step:,}",
        for_stock_moshi=provenance.for_stock_moshi,
        patch_codec=provenance.patch_codec,
        pause_frames=PAUSE_FRAMES,
        voices=voices,
        sources=data.sources,
        licences=sorted(data.licences.items()),
        missing=data.missing,
        facts=_facts(provenance),
        figures=[(figure.removeprefix("heldout/"), value) for figure, value in sorted(figures.items())],
        from_scratch=provenance.start.name == SCRATCH,
        train_hours=data.train_hours,
        window_frames=run.model.lm.context,
        window_seconds=run.model.lm.context / FRAME_RATE,
        ingredients=list(sentences(provenance.ingredients)),
        masking=data.masking,
        md=markdown,
        code=code,
    )
    return f"{card.content.rstrip()}\n"


def _header(provenance: Provenance) -> ModelCardData:
    licence, base = provenance.licence, hub_ancestor(provenance.ingredients)
    is_adapter_of_base = provenance.base is not None and provenance.base.name == base
    facts: dict[str, Any] = {"base_model_relation": "adapter" if is_adapter_of_base else "finetune"} if base else {}
    return ModelCardData(
        license=licence.id if licence else "other",
        license_name=licence.name if licence else "see-training-data",
        license_link=licence.link if licence else None,
        base_model=base,
        language="en",
        pipeline_tag="audio-to-audio",
        library_name="moshi" if provenance.for_stock_moshi else "personaplex",
        tags=list(TAGS),
        **facts,
    )


def _facts(provenance: Provenance) -> dict[str, Any]:
    """The rows of the table of the recipe, as Markdown."""
    run, lora = provenance.run, provenance.run.model.lora
    adapters = f"LoRA rank {lora.rank}, scaling {lora.scaling:g}, on {', '.join(f'`{code(p)}`' for p in lora.patterns)}"
    revision = provenance.start.revision
    return {
        "recipe": markdown(run.recipe),
        "start weights": markdown(shown_name(provenance.start.name) + (f", revision {revision}" if revision else "")),
        "trained": f"{adapters}{'' if provenance.base else ', merged'}" if lora.rank else "all weights",
        "steps": f"{provenance.step:,} of {run.steps:,}, {run.data.batch} sequences each",
        "mixture": markdown(run.data.describe_mix()),
        "learning rates": ", ".join(
            f"{part} {rate:g}" for part, rate in asdict(run.optim.lr).items() if rate is not None
        ),
        "precision": markdown(run.trainer.precision),
        "seed": run.seed,
        "configuration (sha256)": provenance.config_sha256,
        "trained with": _engine(provenance.engine, provenance.commit) if provenance.engine else "not recorded",
        "exported with": _engine(__version__, project_commit()),
    }


def _engine(version: str, commit: str | None) -> str:
    return markdown(f"ppx-train {version}" + (f", commit {commit}" if commit else ""))
