"""Language-model weights in the public native layout: read, check, load, write. The names are in native.py."""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import LMConfig
from model.duplex import DuplexLM
from model.errors import UserError
from model.native import cut_depth, depth_steps, expand_depth, fuse_split, native_path, split_fused
from model.sources import REPOSITORY, hub_errors

log = logging.getLogger(__name__)
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"

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
        if leaf not in ("weight", "alpha"):
            continue  # an adapter's own A or B
        template = f"{native_path(path)}.{leaf}"
        if "{k}" in template:
            layout |= {template.format(k=k): (name, k) for k in range(parameter.shape[0])}
        else:
            layout[template] = (name, None)
    return layout


def native_state_dict(model: DuplexLM) -> dict[str, Tensor]:
    """The base weights under their native (fused) names, detached; adapters are left out."""
    own = dict(model.named_parameters())
    split = {
        native: (own[name] if k is None else own[name][k]).detach() for native, (name, k) in split_layout(model).items()
    }
    return fuse_split(split)


def load_native(model: DuplexLM, tensors: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Copies native weights into the model; parameters on the meta device are created in the tensors' type.

    strict=False leaves parameters alone for which the weights hold nothing. All other mismatches are errors.
    Raises: UserError listing missing, extra and misshapen names.
    """
    split = split_fused(tensors, model.config.dep_q)
    layout = split_layout(model)
    own = dict(model.named_parameters())
    expected = {native: own[name].shape if k is None else own[name].shape[1:] for native, (name, k) in layout.items()}
    check_names(split, expected, strict=strict)
    stacks: dict[str, dict[int | None, Tensor]] = {}
    for native in split:
        name, k = layout[native]
        stacks.setdefault(name, {})[k] = split[native]
    for name, parts in stacks.items():
        _fill(model, name, own[name], parts)


def check_names(found: Mapping[str, Tensor], expected: Mapping[str, torch.Size], *, strict: bool) -> None:
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


def _fill(model: nn.Module, name: str, parameter: nn.Parameter, parts: dict[int | None, Tensor]) -> None:
    if parameter.is_meta:
        if None not in parts and len(parts) != parameter.shape[0]:
            raise UserError(f"{name}: {len(parts)} of {parameter.shape[0]} steps are in the weights: give all of them")
        value = parts[None].clone() if None in parts else torch.stack([parts[k] for k in range(parameter.shape[0])])
        module = model.get_submodule(name.rpartition(".")[0])
        module.register_parameter(name.rpartition(".")[2], nn.Parameter(value, requires_grad=parameter.requires_grad))
        return
    with torch.no_grad():
        for k, tensor in parts.items():
            (parameter if k is None else parameter[k]).copy_(tensor)


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


def weights_path(path: Path) -> Path:
    """The weights file of a model folder, or the file itself. Raises: UserError if there is none."""
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file: give a folder with {WEIGHTS_NAME} or a .safetensors file")
    return file


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of model.safetensors in a folder.

    Raises: UserError if the file is missing, cut short, or not safetensors.
    """
    file = weights_path(Path(path))
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError) as why:
        raise UserError(f"{file}: not a whole safetensors file ({why}): download or export it again") from why


def from_pretrained(
    path_or_repo: Path | str,
    config: LMConfig | None = None,
    revision: str | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> DuplexLM:
    """A model from a folder, a .safetensors file, or a Hugging Face repository ("nvidia/personaplex-7b-v1").

    config: None reads config.json beside the weights; without one, the public 7B shape is taken. If its dep_q differs
    from the file's, the depth stack is expanded or cut, and the log says how. dtype: None keeps the file's type.
    Raises: UserError if the weights are missing, broken, or do not fit.
    """
    path = Path(path_or_repo)
    if not path.exists():
        path = _download(str(path_or_repo), revision)
    elif revision is not None:
        raise UserError(f"revision={revision!r} with the local path {path}: a revision needs a repository name")
    file = weights_path(path)
    tensors: Mapping[str, Tensor] = read_weights(file)
    config = config or read_config(file.parent / CONFIG_NAME) or LMConfig(dep_q=depth_steps(tensors))
    tensors, report = fit_depth(tensors, config)
    if broken := next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None):
        raise UserError(f"{file}: {broken} holds NaN or infinite values: download or export it again")
    model = DuplexLM(config, device="meta")
    try:
        load_native(model, tensors)
    except UserError as why:
        raise UserError(f"{file}: {why}") from why
    for line in report:
        log.warning("%s: %s", path_or_repo, line)
    return model if dtype is None else model.to(dtype)


def fit_depth(tensors: Mapping[str, Tensor], config: LMConfig) -> tuple[Mapping[str, Tensor], list[str]]:
    """Expands or cuts native weights to config.dep_q steps, with a report of what was done (empty: nothing)."""
    found = depth_steps(tensors)
    if found == config.dep_q:
        return tensors, []
    if found < config.dep_q:
        return expand_depth(tensors, config)
    return cut_depth(tensors), ["depth steps 8..15 and embedding tables 7..14 are left out"]


def _download(repo: str, revision: str | None) -> Path:
    if not REPOSITORY.match(repo):
        raise UserError(f"{repo}: no such path, nor a repository name like nvidia/personaplex-7b-v1")
    with hub_errors(repo):
        try:
            hf_hub_download(repo, CONFIG_NAME, revision=revision)
        except EntryNotFoundError as why:  # public repositories may have none
            if isinstance(why, LocalEntryNotFoundError):
                raise
        return Path(hf_hub_download(repo, WEIGHTS_NAME, revision=revision))


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
    tensors: Mapping[str, Tensor] = native_state_dict(model)
    config = model.config if dep_q is None else replace(model.config, dep_q=dep_q)
    tensors, _ = fit_depth(tensors, config)
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
