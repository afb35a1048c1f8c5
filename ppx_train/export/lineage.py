"""What an exported model was made from, with the licence of each part, for personaplex.json and the model card."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.text_safety import code, markdown
from model.weights.sources import REPOSITORY
from ppx_train.config.run import Run
from ppx_train.export.adapter import Base
from ppx_train.inference.sidecar import HubLicence, Ingredient, Sidecar, read_sidecar
from ppx_train.voices.voice_file import VoiceFile

SCRATCH = "scratch"
"""The name of start weights that are random."""
_KYUTAI = HubLicence(id="cc-by-4.0")
PUBLIC_MODELS = {
    "nvidia/personaplex-7b-v1": HubLicence(
        id="other",
        name="nvidia-open-model-license",
        link="https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
    ),
    "kyutai/moshiko-pytorch-bf16": _KYUTAI,
    "kyutai/moshika-pytorch-bf16": _KYUTAI,
}
"""Licences of the public models that a run may start from, by hub repository."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start weights of a model. name: hub repository, path, or "scratch". revision: of a repository, if known."""

    name: str
    revision: str | None


def start_of(run: Run, base: Base | None, start_commit: str | None) -> Start:
    """Returns the start weights of a run. base: of an adapter that is exported alone. start_commit: on the hub."""
    if base is not None:
        return Start(name=base.name, revision=base.commit or run.model.revision)
    return Start(name=run.model.init, revision=start_commit or run.model.revision)


def shown_name(place: str) -> str:
    """Returns a hub repository as it is, and a local path without its folders, which say something about a machine."""
    return Path(place).name if Path(place).exists() else place


def stated_licence(start: str) -> HubLicence | None:
    """Returns the licence of start weights: that of a public model, or the one that our export of them states.

    start: hub repository or path. None is returned if neither is known.
    Raises: UserError if the export's personaplex.json is damaged.
    """
    if start in PUBLIC_MODELS:
        return PUBLIC_MODELS[start]
    sidecar = _own_export(start)
    return sidecar.licence if sidecar else None


def ingredients_of(
    run: Run, start: Start, licences: Mapping[str, float], voices: Sequence[VoiceFile]
) -> tuple[Ingredient, ...]:
    """Returns what a model was made from: start weights, codec and tokenizer, training data, voices.

    licences: hours of training data by licence. A codec or tokenizer is listed if it is a public model's or one of our
    exports; a model that was exported here brings its own ingredients along.
    Raises: UserError if the personaplex.json of such an export is damaged.
    """
    found = [] if start.name == SCRATCH else [_model("start weights", start.name, start.revision)]
    found += [_model("codec", run.model.codec)] if _is_known(run.model.codec) else []
    found += [_model("tokenizer", run.model.tokenizer)] if _is_known(run.model.tokenizer) else []
    found += [Ingredient(part="training data", licence=name, hours=hours) for name, hours in sorted(licences.items())]
    terms = {voice.licence for voice in voices if voice.licence is not None}
    found += [Ingredient(part="voices", licence=licence) for licence in sorted(terms)]
    return tuple(found)


def hub_ancestor(ingredients: Sequence[Ingredient]) -> str | None:
    """Returns the nearest start weights that are a hub repository; None if there are none."""
    for ingredient in ingredients:
        if ingredient.part == "start weights":
            own = ingredient.name is not None and REPOSITORY.match(ingredient.name)
            return ingredient.name if own else hub_ancestor(ingredient.ingredients)
    return None


def sentences(ingredients: Sequence[Ingredient]) -> Iterator[str]:
    """Yields a phrase of Markdown for each ingredient, with all that it was itself made from."""
    for one in ingredients:
        what = f"{one.part} `{code(one.name)}`" if one.name else one.part
        phrase = f"{what} under {markdown(one.licence) if one.licence else 'its own licence'}"
        phrase += "" if one.hours is None else f" ({one.hours:.2f} h)"
        yield phrase + (f", itself derived from {'; '.join(sentences(one.ingredients))}" if one.ingredients else "")


def _model(part: str, place: str, revision: str | None = None) -> Ingredient:
    licence, sidecar = stated_licence(place), _own_export(place)
    return Ingredient(
        part=part,  # type: ignore[arg-type]
        name=shown_name(place),
        revision=revision,
        licence=str(licence) if licence else None,
        ingredients=sidecar.ingredients or () if sidecar else (),
    )


def _is_known(place: str) -> bool:
    return place in PUBLIC_MODELS or _own_export(place) is not None


def _own_export(place: str) -> Sidecar | None:
    """What the export says that a local folder is, or that a file lies in; None for anything else."""
    path = Path(place)
    if place == SCRATCH or not path.exists():
        return None
    return read_sidecar(path if path.is_dir() else path.parent)
