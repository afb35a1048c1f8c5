"""Language-model weights in the public native layout: read, check, load, write. native.py holds the names."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.config import LMConfig
from model.duplex import DuplexLM
from model.errors import UserError
from model.files import write_bytes
from model.weights.native import Weight, depth_steps, fit_depth, fuse_split, native_path, split_fused
from model.weights.sources import hub_model
from model.weights.tensor_files import (
    INDEX_NAME,
    WEIGHTS_NAME,
    StoredTensor,
    dtype_of,
    name_problems,
    pieces,
    read_header,
    weights_path,
    write_safetensors,
)

log = logging.getLogger(__name__)
CONFIG_NAME = "config.json"
HUB_FILES = (CONFIG_NAME, WEIGHTS_NAME, INDEX_NAME, "model-*.safetensors")
"""Files that are fetched of a repository: the configuration, and the weights whole or in parts."""

FILE_KEYS = {"moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "lora_name", "model_type", "model_id"}
FILE_KEYS |= {"version", "lm_gen_config", "tts_config", "stt_config", "lora", "lora_rank", "lora_scaling"}
"""Keys of a config.json that do not describe the sizes of the language model."""
FIXED_FACTS: dict[str, Any] = {
    "causal": True,
    "layer_scale": None,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
}
"""Values of the one architecture that is supported."""
UNUSED_FACTS = {"depformer_context": 8, "depformer_max_period": 10000}
"""Keys that Kyutai's constructor takes and never uses: the depth stack sees all steps and has no positions."""


def split_layout(model: nn.Module) -> dict[str, tuple[str, int | None]]:
    """For the split native name of every base parameter: our parameter's name, and its index in a stack or None.

    Raises: UserError if the model is quantized.
    """
    layout: dict[str, tuple[str, int | None]] = {}
    for name, parameter in model.named_parameters():
        path, _, leaf = name.replace(".base.", ".").rpartition(".")  # `base` is the frozen weight inside an adapter.
        if leaf == "codes":
            raise UserError(
                f"{path} is quantized: only full weights have native names, start from those", code="bad-combination"
            )
        if leaf not in ("weight", "alpha"):
            continue  # It is the A or B of an adapter.
        template = f"{native_path(path)}.{leaf}"
        if "{k}" in template:
            layout |= {template.format(k=k): (name, k) for k in range(parameter.shape[0])}
        else:
            layout[template] = (name, None)
    return layout


def split_state_dict(model: DuplexLM) -> dict[str, Tensor]:
    """The base weights under their split native names, as detached views; adapters are left out."""
    own = dict(model.named_parameters())
    return {
        native: (own[name] if k is None else own[name][k]).detach() for native, (name, k) in split_layout(model).items()
    }


def native_state_dict(model: DuplexLM) -> dict[str, Tensor]:
    """The base weights under their native (fused) names, detached; adapters are left out."""
    return fuse_split(split_state_dict(model))


def load_native(model: DuplexLM, tensors: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Copies native weights into the model; parameters on the meta device are created in the tensors' type.

    strict=False leaves parameters alone that the weights do not hold; a model on the meta device needs all of them.
    Raises: UserError ("bad-weights") that lists missing, extra and misshapen names.
    """
    strict = strict or any(parameter.is_meta for parameter in model.parameters())
    copy_values(_targets(model, split_fused(tensors, model.config.dep_q), strict=strict))


def _targets(
    model: DuplexLM,
    split: Mapping[str, Tensor | StoredTensor],
    *,
    strict: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> list[tuple[Tensor | StoredTensor, Tensor]]:
    """Pairs each of the split weights with the place of its values in the model, after checking names and shapes.

    dtype, device: type and device of parameters that are created. None: the type of the weights (in a stack, of the
    widest), and the CPU.
    """
    layout = split_layout(model)
    own = dict(model.named_parameters())
    expected = {native: own[name].shape if k is None else own[name].shape[1:] for native, (name, k) in layout.items()}
    check_names(split, expected, strict=strict)
    types: dict[str, torch.dtype] = {}
    for native, part in split.items():
        name = layout[native][0]
        types[name] = torch.promote_types(types.get(name, dtype_of(part)), dtype_of(part))
    for name, found in types.items():
        if own[name].is_meta:
            own[name] = _create(model, name, dtype or found, device)
    places = ((part, layout[native]) for native, part in split.items())
    return [(part, own[name].detach() if k is None else own[name].detach()[k]) for part, (name, k) in places]


def copy_values(targets: Iterable[tuple[Tensor | StoredTensor, Tensor]]) -> None:
    """Copies weights to their places, those of a file piece by piece."""
    for part, target in targets:
        for rows, piece in pieces(part):
            target[rows].copy_(piece)
            del piece  # otherwise it lives on while the next one is read


def _create(model: nn.Module, name: str, dtype: torch.dtype, device: torch.device | str | None) -> nn.Parameter:
    """Replaces a parameter on the meta device by one without values yet."""
    path, _, leaf = name.rpartition(".")
    old = model.get_parameter(name)
    values = torch.empty(old.shape, dtype=dtype, device=device or "cpu")
    new = nn.Parameter(values, requires_grad=old.requires_grad)
    model.get_submodule(path).register_parameter(leaf, new)
    return new


def check_names(found: Mapping[str, Weight], expected: Mapping[str, torch.Size], *, strict: bool = True) -> None:
    """Checks names and shapes of weights.

    Raises: UserError ("bad-weights") that lists missing (if strict), extra and misshapen tensors.
    """
    if problems := name_problems(found, expected, strict=strict):
        raise UserError(
            f"the weights do not fit this model ({'; '.join(problems)}); check dep_q and the other sizes",
            code="bad-weights",
        )


def config_from_dict(raw: Mapping[str, Any], where: str) -> LMConfig:
    """An LMConfig from the keys of a public config.json. A key that is null or absent has the architecture's default.

    Raises: UserError that names `where` and the keys that are unknown, or describe another architecture.
    Source: Kyutai's constructor, by which a depth feed-forward without a width is as wide as the temporal one for its
    `hidden_scale`.
    """
    raw = {key: value for key, value in raw.items() if value is not None}
    own = {field.name for field in fields(LMConfig)}
    unknown = sorted(raw.keys() - own - FILE_KEYS - FIXED_FACTS.keys() - UNUSED_FACTS.keys())
    if unknown:
        raise UserError(
            f"{where}: not the configuration of a Moshi language model (unknown {', '.join(unknown)})",
            code="bad-record",
        )
    for key, value in FIXED_FACTS.items():
        if key in raw and raw[key] != value:
            raise UserError(f"{where}: {key}={raw[key]!r}, but only {value!r} is supported", code="bad-weights")
    for key, example in LMConfig().to_dict().items():
        kinds = (int, float) if isinstance(example, float) else type(example)
        is_good = isinstance(raw.get(key, example), kinds) and not isinstance(raw.get(key), bool)
        if isinstance(example, list) and is_good:
            is_good = all(type(item) is int for item in raw.get(key, example))
        if not is_good:
            raise UserError(f"{where}: {key}={raw[key]!r} must be of the kind of {example!r}", code="bad-record")
    try:
        config = LMConfig(**{key: raw[key] for key in own & raw.keys()})
        if "depformer_dim_feedforward" not in raw:
            config = replace(config, depformer_dim_feedforward=int(config.hidden_scale * config.depformer_dim))
        return config
    except UserError as why:
        raise UserError(f"{where}: {why}", code=why.code) from why


def config_to_dict(config: LMConfig) -> dict[str, Any]:
    """The language-model keys of a public config.json, as stock Moshi runtimes read them."""
    return config.to_dict() | FIXED_FACTS | UNUSED_FACTS


def read_config(path: Path) -> LMConfig | None:
    """The configuration in a config.json; None if the file does not exist or only names the model (as NVIDIA's does).

    Raises: UserError if the file is not JSON ("unreadable"), or as `config_from_dict`.
    """
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as why:
        raise UserError(f"{path}: not JSON ({why}); fetch or export the model again", code="unreadable") from why
    if not isinstance(raw, dict):
        raise UserError(f"{path}: not a JSON object; fetch or export the model again", code="bad-record")
    return config_from_dict(raw, str(path)) if raw.keys() - FILE_KEYS else None


def from_pretrained(
    path_or_repo: Path | str,
    config: LMConfig | None = None,
    revision: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> DuplexLM:
    """A model from a folder, a .safetensors file, or a Hugging Face repository ("nvidia/personaplex-7b-v1").

    All names and shapes are checked before a value is read. The values go from the file into place, at most 16 MiB at
    a time, on a GPU without a copy on the CPU.
    config: None reads config.json beside the weights, or takes the public 7B sizes without it. If its dep_q
    differs from the file's, the depth stack is expanded or cut, and the log says how.
    dtype: None keeps the file's type.
    Raises: UserError if the weights are missing, broken, hold NaN or do not fit.
    """
    opened = open_weights(path_or_repo, config, revision)
    try:
        model = DuplexLM(opened.config, device="meta")
        targets = _targets(model, opened.split, dtype=dtype, device=device)
    except UserError as why:
        raise UserError(f"{opened.file}: {why}", code=why.code) from why
    copy_values(targets)
    opened.log_changes(path_or_repo)
    return model


class OpenWeights(NamedTuple):
    """The header of a weights file, fitted to a model's depth steps."""

    file: Path
    config: LMConfig
    split: Mapping[str, StoredTensor]
    report: Sequence[str]

    def log_changes(self, path_or_repo: Path | str) -> None:
        """Logs how the depth steps were fitted."""
        for line in self.report:
            log.warning("%s: %s", path_or_repo, line)


def open_weights(path_or_repo: Path | str, config: LMConfig | None, revision: str | None) -> OpenWeights:
    """The header of the weights that `from_pretrained` would read. Raises: UserError as there."""
    path = Path(path_or_repo)
    if not path.exists():
        path = hub_model(str(path_or_repo), HUB_FILES, revision)
    elif revision is not None:
        raise UserError(
            f"revision={revision!r} with the local path {path}: a revision needs a repository name",
            code="bad-combination",
        )
    file = weights_path(path)
    stored = read_header(file)
    beside = read_config(file.parent / CONFIG_NAME) if config is None else None
    try:
        found = depth_steps(stored)
        if beside is not None and beside.dep_q != found:
            raise UserError(
                f"{found} depth steps, but dep_q={beside.dep_q} in {CONFIG_NAME}, which are not one model's",
                code="bad-weights",
            )
        config = config or beside or LMConfig(dep_q=found)
        return OpenWeights(file, config, *fit_depth(stored, config.dep_q))
    except UserError as why:
        raise UserError(f"{file}: {why}", code=why.code) from why


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file of weights, whole or not at all.

    Raises: UserError ("exists") if the file exists.
    """
    if path.exists():
        raise _exists(path)
    write_safetensors(path, tensors, {"format": "pt", **(metadata or {})})


def _exists(path: Path) -> UserError:
    return UserError(f"{path}: exists already; choose another place or remove it", code="exists")


def save_native(
    path: Path | str,
    model: DuplexLM,
    *,
    dtype: torch.dtype | None = None,
    dep_q: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the base weights in the public layout; a folder gets config.json too. Merge adapters first.

    dtype: None keeps the parameters' types. dep_q=8 leaves out the user's depth steps.
    Raises: UserError ("exists") if the weights file exists.
    """
    path = Path(path)
    config = model.config if dep_q is None else replace(model.config, dep_q=dep_q)
    split, _ = fit_depth(split_state_dict(model), config.dep_q)
    tensors = fuse_split(split)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        write_weights(path, tensors, metadata)
        return
    if (path / WEIGHTS_NAME).exists():
        raise _exists(path / WEIGHTS_NAME)
    write_json(path / CONFIG_NAME, config_to_dict(config))
    write_weights(path / WEIGHTS_NAME, tensors, metadata)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all, and replaces an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(dict(content), indent=2) + "\n").encode())
