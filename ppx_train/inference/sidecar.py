"""personaplex.json of an exported folder: what a runtime must know beside the weights, and what they were made from."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from data_pipelines.records.typed import record
from model.config import LMConfig
from model.errors import UserError

SIDECAR = "personaplex.json"
"""The file of an exported folder."""
FORMAT: Literal[2] = 2
"""Of the files that are written. Format 1, which has neither licence nor ingredients, is read as well."""


FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""A file in the folder itself."""
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A repository, path or revision, in one line."""
FrameCodes = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**16)], ...], Field(min_length=8, max_length=8)]
"""The codes of one frame."""


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How a conversation is prompted: `order` of the parts, and what they consist of.

    silence_codes, sine_codes: the codes [8] of a frame of silence and of the tone in the user's stream.
    discarded_frames: how many frames of a voice clip the model never reads, from the first on.
    What the runtime does in one way alone has one value.
    """

    order: tuple[Literal["voice"], Literal["pause"], Literal["text"], Literal["pause"]]
    system_tag: Annotated[str, Field(pattern=r"^<system>$")]
    pause_frames: Annotated[int, Field(ge=0, le=1000)]
    voice_lufs: Annotated[float, Field(ge=-70, le=0)]
    silence_codes: FrameCodes
    sine_codes: FrameCodes
    discarded_frames: Literal[1]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The training run that was exported, and the engine that did it. request: digest of what was asked for."""

    recipe: str
    step: Annotated[int, Field(ge=0)]
    engine: str
    commit: str | None = None
    request: str


@dataclass(frozen=True, kw_only=True)
class AdapterBase:
    """The model that an adapter is added to. commit: of a hub repository; None for a local path."""

    name: Name
    commit: Name | None


@dataclass(frozen=True, kw_only=True)
class AdapterShape:
    """Rank of an adapter, and the factor on what it adds."""

    rank: Annotated[int, Field(ge=1, le=2**16)]
    scaling: Annotated[float, Field(ge=-1e6, le=1e6)]


@dataclass(frozen=True, kw_only=True)
class HubLicence:
    """A licence as the header of a model card has it. name, link: of one that the hub calls "other"."""

    id: str
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        """The name if there is one, else the identifier."""
        return self.name or self.id


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """Something that a model was made from.

    name: hub repository, or name of a local file or folder without its place; None for data and voices.
    licence: None if it is not known. hours: of training data. ingredients: what it was itself made from, if recorded.
    """

    part: Literal["start weights", "codec", "tokenizer", "training data", "voices"]
    name: str | None = None
    revision: str | None = None
    licence: str | None = None
    hours: Annotated[float, Field(ge=0, le=1e9)] | None = None
    ingredients: "tuple[Ingredient, ...]" = ()


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """The content of personaplex.json.

    layout: kyutai, nvidia or lora. lm: shape of the language model as in a public config.json, see `lm_config`.
    mimi_name, tokenizer_name: files in the folder. base, adapter: of layout lora.
    licence: what the model card states; None if it states none.
    ingredients: what the model was made from; None in format 1.
    """

    format: Literal[1, 2]
    engine: str
    layout: Annotated[str, Field(pattern=r"^(kyutai|nvidia|lora)$")]
    lm: dict[str, Any]
    mimi_name: FileName
    tokenizer_name: FileName
    inference_dep_q: Annotated[int, Field(ge=8, le=8)]
    generated_audio_codebooks: Annotated[int, Field(ge=8, le=8)]
    prompt: PromptFormat
    origin: Origin
    base: AdapterBase | None = None
    adapter: AdapterShape | None = None
    licence: HubLicence | None = None
    ingredients: tuple[Ingredient, ...] | None = None

    def lm_config(self, where: str) -> LMConfig:
        """Returns the shape of the language model. Raises UserError naming `where` if it is not one."""
        from model.weights.checkpoint import config_from_dict

        return config_from_dict(self.lm, where)

    def to_json(self) -> dict[str, Any]:
        """Returns the content as JSON has it. What is not known is left out, but not inside `lm` and `base`."""
        content = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: value if key in ("lm", "base") else _known(value) for key, value in content.items()}


def read_sidecar(folder: Path) -> Sidecar | None:
    """Reads personaplex.json; returns None if the folder has none, as those of public models.

    Raises: UserError with code "bad-record" naming the first field that is missing, unknown or of a wrong value.
    """
    path = folder / SIDECAR
    if not path.is_file():
        return None
    try:
        sidecar = record(Sidecar, path.read_bytes())
    except ValueError as why:
        raise UserError(f"{path}: {why}, export the model again", code="bad-record") from why
    if sidecar.format == FORMAT and sidecar.ingredients is None:
        raise UserError(f"{path}: ingredients is missing, export the model again", code="bad-record")
    if sidecar.layout == "lora" and (sidecar.base is None or sidecar.adapter is None):
        raise UserError(f"{path}: names no base and adapter, export the adapter again", code="bad-record")
    return sidecar


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items() if item is not None and item != ()}
    return [_known(item) for item in value] if isinstance(value, (list, tuple)) else value
