"""Language-model weights in the public native layout: read, check, translate, expand, cut, write.

Our parameters stack what the public files keep per step or per codebook. In between stands the "split" form: native
names with one tensor per step, `...self_attn.in_projs.{k}.weight` included, which is also how LoRA files name modules.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.duplex import DuplexLM
from model.errors import UserError

# our module path -> native path; {k} counts the steps of a stacked weight
PATHS = (
    (r"text_emb", "text_emb"),
    (r"audio_emb", "emb.{k}"),
    (r"text_head", "text_linear"),
    (r"out_norm", "out_norm"),
    (r"temporal\.layers\.(\d+)\.(norm[12]|gating\.linear_in|gating\.linear_out)", r"transformer.layers.\1.\2"),
    (r"temporal\.layers\.(\d+)\.attention\.(in|out)_proj", r"transformer.layers.\1.self_attn.\2_projs.0"),
    (r"depth\.inputs", "depformer_in.{k}"),
    (r"depth\.text_emb", "depformer_text_emb"),
    (r"depth\.audio_emb", "depformer_emb.{k}"),
    (r"depth\.heads", "linears.{k}"),
    (r"depth\.layers\.(\d+)\.(norm[12])", r"depformer.layers.\1.\2"),
    (r"depth\.layers\.(\d+)\.gating\.(linear_in|linear_out)", r"depformer.layers.\1.gating.{k}.\2"),
    (r"depth\.layers\.(\d+)\.attention\.(in|out)_proj", r"depformer.layers.\1.self_attn.\2_projs.{k}"),
)
FUSED = re.compile(r"(?P<attention>.*\.self_attn)\.(?:in_proj_weight|(?P<out>out_proj)\.weight)")
SPLIT = re.compile(r"(?P<attention>.*\.self_attn)\.(?P<side>in|out)_projs\.(?P<step>\d+)\.weight")

FILE_KEYS = {"moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "lora_name", "lora", "lora_rank"}
FILE_KEYS |= {"lora_scaling", "model_type", "model_id", "version", "lm_gen_config", "tts_config", "stt_config"}
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
SAVED_TYPES = (torch.float32, torch.bfloat16, torch.float16)


# -- names ------------------------------------------------------------------------------------------------------------


def native_path(path: str) -> str:
    """Native path of one of our modules, `{k}` standing for the step if its weight is stacked. KeyError if unknown."""
    for pattern, template in PATHS:
        match = re.fullmatch(pattern, path)
        if match:
            return match.expand(template)
    raise KeyError(path)


def split_fused(tensors: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """Splits fused attention weights into one per step; split names pass through.

    Raises: UserError if a fused weight cannot be cut into `steps` equal parts, or a file has both forms of one.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = FUSED.fullmatch(name)
        if not match:
            parts = {name: tensor}
        else:
            count = steps if name.startswith("depformer.") else 1
            if tensor.dim() != 2 or tensor.shape[0] % count:
                raise UserError(f"{name}: shape {list(tensor.shape)} does not hold {count} steps: wrong architecture")
            side = "out" if match["out"] else "in"
            chunks = tensor.chunk(count)
            parts = {f"{match['attention']}.{side}_projs.{k}.weight": chunk for k, chunk in enumerate(chunks)}
        twice = sorted(parts.keys() & result.keys())
        if twice:
            raise UserError(f"{name}: the weights hold it both fused and split ({twice[0]}): keep one")
        result |= parts
    return result


def fuse_split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of `split_fused`: attention weights of all steps in one tensor, under the native fused name."""
    result: dict[str, Tensor] = {}
    groups: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = SPLIT.fullmatch(name)
        if not match:
            result[name] = tensor
            continue
        suffix = "in_proj_weight" if match["side"] == "in" else "out_proj.weight"
        groups.setdefault(f"{match['attention']}.{suffix}", {})[int(match["step"])] = tensor
    for name, steps in groups.items():
        result[name] = torch.cat([steps[k] for k in sorted(steps)])
    return result


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
