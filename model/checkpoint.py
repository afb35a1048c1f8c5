"""Language-model weights in the public native layout: read, check, load, write. The names are in native.py."""

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import LMConfig
from model.duplex import DuplexLM
from model.errors import UserError
from model.native import Weight, depth_steps, fit_depth, fuse_split, native_path, split_fused
from model.sources import hub_model
from model.weights import WEIGHTS_NAME, Rows, dtype_of, pieces, read_header, weights_path

log = logging.getLogger(__name__)
CONFIG_NAME = "config.json"
HUB_FILES = (CONFIG_NAME, "model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
"""What is fetched of a repository: the weights whole or in parts."""

FILE_KEYS = {"moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "lora_name", "model_type", "model_id"}
FILE_KEYS |= {"version", "lm_gen_config", "tts_config", "stt_config", "lora", "lora_rank", "lora_scaling"}
"""Keys of a config.json that say nothing about the shape of the language model."""
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
UNUSED_FACTS = {"depformer_context": 8, "depformer_max_period": 10000}
"""Keys that Kyutai's constructor takes and never uses: the depth stack sees all steps and has no positions."""


def split_layout(model: nn.Module) -> dict[str, tuple[str, int | None]]:
    """Split native name -> (our parameter name, its index in the stack or None), for every base parameter."""
    layout: dict[str, tuple[str, int | None]] = {}
    for name, parameter in model.named_parameters():
        path, _, leaf = name.replace(".base.", ".").rpartition(".")  # `base`: the frozen weight inside an adapter
        if leaf == "codes":
            raise UserError(f"{path} is quantized: only full weights have native names, start from those")
        if leaf not in ("weight", "alpha"):
            continue  # an adapter's own A or B
        template = f"{native_path(path)}.{leaf}"
        if "{k}" in template:
            layout |= {template.format(k=k): (name, k) for k in range(parameter.shape[0])}
        else:
            layout[template] = (name, None)
    return layout


def split_state_dict(model: DuplexLM) -> dict[str, Tensor]:
    """The base weights under their split native names: detached views. Adapters are left out."""
    own = dict(model.named_parameters())
    return {
        native: (own[name] if k is None else own[name][k]).detach() for native, (name, k) in split_layout(model).items()
    }


def native_state_dict(model: DuplexLM) -> dict[str, Tensor]:
    """The base weights under their native (fused) names, detached; adapters are left out."""
    return fuse_split(split_state_dict(model))


def load_native(model: DuplexLM, tensors: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Copies native weights into the model; parameters on the meta device are created in the tensors' type.

    strict=False leaves parameters alone for which the weights hold nothing; on the meta device all must be given.
    Raises: UserError listing missing, extra and misshapen names.
    """
    strict = strict or any(parameter.is_meta for parameter in model.parameters())
    _copy(_targets(model, split_fused(tensors, model.config.dep_q), strict=strict))


def _targets(
    model: DuplexLM,
    split: Mapping[str, Tensor | Rows],
    *,
    strict: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> list[tuple[Tensor | Rows, Tensor]]:
    """(weight, where its values go in the model) of split weights, all of whose names and shapes are known to fit.

    dtype, device: of parameters that are created; None: that of the weights (of the widest, in a stack), and the CPU.
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


def _copy(targets: Iterable[tuple[Tensor | Rows, Tensor]]) -> None:
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
    """Raises UserError naming missing (if strict), extra and misshapen tensors."""
    problems = []
    missing = sorted(expected.keys() - found.keys()) if strict else []
    extra = sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} {list(found[name].shape)} instead of {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in found and found[name].shape != shape
    ]
    for kind, names in (("missing", missing), ("extra", extra), ("misshapen", misshapen)):
        if names:
            rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
            problems.append(f"{len(names)} {kind}: {', '.join(names[:5])}{rest}")
    if problems:
        raise UserError(f"the weights do not fit this model ({'; '.join(problems)}): check dep_q and the other sizes")


def config_from_dict(raw: Mapping[str, Any], where: str) -> LMConfig:
    """LMConfig from the keys of a public config.json, all of which must be there.

    Raises: UserError naming `where` and keys that are missing, unknown, or describe another architecture.
    """
    own = {field.name for field in fields(LMConfig)}
    missing = sorted(own - raw.keys())
    unknown = sorted(raw.keys() - own - FILE_KEYS - FIXED_FACTS.keys() - UNUSED_FACTS.keys())
    if missing or unknown:
        listed = [f"{kind} {', '.join(names)}" for kind, names in (("missing", missing), ("unknown", unknown)) if names]
        raise UserError(f"{where}: {'; '.join(listed)}: not the configuration of a Moshi language model")
    for key, value in FIXED_FACTS.items():
        if key in raw and raw[key] != value:
            raise UserError(f"{where}: {key}={raw[key]!r}: only {value!r} is supported")
    for key, example in LMConfig().to_dict().items():
        kinds = (int, float) if isinstance(example, float) else type(example)
        if not isinstance(raw[key], kinds) or isinstance(raw[key], bool):
            raise UserError(f"{where}: {key}={raw[key]!r}: must be of the kind of {example!r}")
    return LMConfig(**{key: raw[key] for key in own})


def config_to_dict(config: LMConfig) -> dict[str, Any]:
    """The language-model keys of a public config.json, as stock Moshi runtimes read them."""
    return config.to_dict() | FIXED_FACTS | UNUSED_FACTS


def read_config(path: Path) -> LMConfig | None:
    """Configuration in a config.json; None if the file does not exist or only names the model (as NVIDIA's does)."""
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as why:
        raise UserError(f"{path}: not JSON ({why}): fetch or export the model again") from why
    if not isinstance(raw, dict):
        raise UserError(f"{path}: not a JSON object: fetch or export the model again")
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

    config: None reads config.json beside the weights; without one, the public 7B shape is taken. If its dep_q differs
    from the file's, the depth stack is expanded or cut, and the log says how. dtype: None keeps the file's type.
    All names and shapes are checked before a value is read. The values go from the file into place, at most 16 MiB at
    a time, on a GPU without a copy on the CPU.
    Raises: UserError if the weights are missing, broken, hold NaN or do not fit.
    """
    path = Path(path_or_repo)
    if not path.exists():
        path = hub_model(str(path_or_repo), HUB_FILES, revision)
    elif revision is not None:
        raise UserError(f"revision={revision!r} with the local path {path}: a revision needs a repository name")
    file = weights_path(path)
    stored = read_header(file)
    beside = read_config(file.parent / CONFIG_NAME) if config is None else None
    try:
        found = depth_steps(stored)
        if beside is not None and beside.dep_q != found:
            raise UserError(f"{found} depth steps, but dep_q={beside.dep_q} in {CONFIG_NAME}: they are not one model's")
        config = config or beside or LMConfig(dep_q=found)
        split, report = fit_depth(stored, config.dep_q)
        model = DuplexLM(config, device="meta")
        targets = _targets(model, split, dtype=dtype, device=device)
    except UserError as why:
        raise UserError(f"{file}: {why}") from why
    _copy(targets)
    for line in report:
        log.warning("%s: %s", path_or_repo, line)
    return model


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all. Raises: UserError if the file exists."""
    if path.exists():
        raise UserError(f"{path}: exists already: choose another place or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"format": "pt", **(metadata or {})})
        os.replace(temporary, path)
    except SafetensorError as why:
        if found := re.search(r"os error (\d+)", str(why)):  # as any other writer says it
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from why
        raise
    finally:
        temporary.unlink(missing_ok=True)


def save_native(
    path: Path | str,
    model: DuplexLM,
    *,
    dtype: torch.dtype | None = None,
    dep_q: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the base weights (merge adapters first) in the public layout: a folder gets config.json too.

    dtype: None keeps the parameters' types. dep_q=8 leaves out the user's depth steps.
    Raises: UserError if the weights file exists.
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
        raise UserError(f"{path / WEIGHTS_NAME}: exists already: choose another place or remove it")
    write_json(path / CONFIG_NAME, config_to_dict(config))
    write_weights(path / WEIGHTS_NAME, tensors, metadata)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all, replacing an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(dict(content), indent=2) + "\n", "utf-8")
    os.replace(temporary, path)
