"""Names of the public native layout, and the operations on weights that need nothing but names.

Our parameters stack what the public files keep per step or per codebook. In between stands the "split" form, with
native names and one tensor per step, `...self_attn.in_projs.{k}.weight` included; LoRA files name modules like this.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from model.errors import UserError

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
"""Pairs of our module path and the native path, where {k} counts the steps of a stacked weight."""
FUSED = re.compile(r"(?P<attention>.*\.self_attn)\.(?:in_proj_weight|(?P<out>out_proj)\.weight)")
DEPTH_STEP = re.compile(
    r"(?P<before>depformer_in\.|linears\.|depformer\.layers\.\d+\.(?:gating|self_attn\.(?:in|out)_projs)\.)"
    r"(?P<step>\d+)(?P<after>\..*)"
)
DEPTH_TABLE = re.compile(r"depformer_emb\.(?P<table>\d+)\.weight")
SPLIT = re.compile(r"(?P<attention>.*\.self_attn)\.(?P<side>in|out)_projs\.(?P<step>\d+)\.weight")


class Weight(Protocol):
    """A Tensor, or anything with a shape that can be cut into equal parts along its rows."""

    @property
    def shape(self) -> torch.Size:
        """The shape, rows first."""

    def chunk(self, chunks: int) -> Sequence[Any]:
        """The weight in that many equal parts along its rows."""


W = TypeVar("W", bound=Weight)


def native_path(path: str) -> str:
    """Native path of one of our modules; `{k}` stands for the step if its weight is stacked.

    Raises: KeyError for a path that no model has.
    """
    for pattern, template in PATHS:
        match = re.fullmatch(pattern, path)
        if match:
            return match.expand(template)
    raise KeyError(path)


def split_fused(tensors: Mapping[str, W], steps: int) -> dict[str, W]:
    """Splits fused attention weights into one per step, and passes on split ones.

    Raises: UserError if a fused weight cannot be cut into `steps` equal parts, or a weight is there in both forms.
    """
    result: dict[str, W] = {}
    for name, tensor in tensors.items():
        match = FUSED.fullmatch(name)
        if not match:
            parts = {name: tensor}
        else:
            count = steps if name.startswith("depformer.") else 1
            if len(tensor.shape) != 2 or tensor.shape[0] % count:
                raise UserError(
                    f"{name}: shape {list(tensor.shape)} does not hold {count} steps, as this architecture needs",
                    code="bad-weights",
                )
            side = "out" if match["out"] else "in"
            chunks = tensor.chunk(count)
            parts = {f"{match['attention']}.{side}_projs.{k}.weight": chunk for k, chunk in enumerate(chunks)}
        twice = sorted(parts.keys() & result.keys())
        if twice:
            raise UserError(
                f"{name}: the weights hold it both fused and split ({twice[0]}); keep one", code="bad-weights"
            )
        result |= parts
    return result


def fuse_split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins the attention weights of all steps under the native fused name, the opposite of `split_fused`."""
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


def depth_steps(names: Iterable[str]) -> int:
    """Number of depth steps that native weights hold: 8 (Moshi) or 16 (PersonaPlex).

    Raises: UserError for any other number.
    """
    steps = sum(bool(re.fullmatch(r"linears\.\d+\.weight", name)) for name in names)
    if steps not in (8, 16):
        raise UserError(
            f"the weights hold {steps} heads linears.*, but a Moshi language model has 8 or 16 depth steps",
            code="bad-weights",
        )
    return steps


def expand_depth(tensors: Mapping[str, W]) -> tuple[dict[str, W], list[str]]:
    """Makes 16 depth steps of 8: native weights in, (split weights, report lines) out. Copies share their values.

    Steps 8..15 start as copies of steps 0..7 and embedding tables 8..14 as copies of 0..6. Table 7 (agent codebook 7,
    seen by step 8) has no source, so that it copies table 0; the report says this.
    Raises: UserError if the weights have not 8 steps.
    """
    found = depth_steps(tensors)
    if found != 8:
        raise UserError(f"expanding {found} depth steps to 16: only 8 to 16 is defined", code="bad-combination")
    split = split_fused(tensors, found)
    result = dict(split)
    for name, tensor in split.items():
        if match := DEPTH_STEP.fullmatch(name):
            result[f"{match['before']}{int(match['step']) + 8}{match['after']}"] = tensor
        elif match := DEPTH_TABLE.fullmatch(name):
            result[f"depformer_emb.{int(match['table']) + 8}.weight"] = tensor
    if "depformer_emb.0.weight" not in split:
        raise UserError("depformer_emb.0.weight is missing: the weights are incomplete", code="bad-weights")
    result["depformer_emb.7.weight"] = split["depformer_emb.0.weight"]
    report = [
        "depth steps 8..15 start as copies of steps 0..7, embedding tables 8..14 as copies of tables 0..6",
        "depformer_emb.7 (agent codebook 7, seen by step 8) has no source: it starts as a copy of depformer_emb.0",
    ]
    return result, report


def cut_depth(tensors: Mapping[str, W]) -> dict[str, W]:
    """Keeps depth steps 0..7 of 16, which predict the agent: native weights in, split weights out.

    Raises: UserError if the weights have not 16 steps.
    """
    found = depth_steps(tensors)
    if found != 16:
        raise UserError(f"cutting {found} depth steps to 8: only 16 to 8 is defined", code="bad-combination")
    result = {}
    for name, tensor in split_fused(tensors, found).items():
        step, table = DEPTH_STEP.fullmatch(name), DEPTH_TABLE.fullmatch(name)
        if not ((step and int(step["step"]) >= 8) or (table and int(table["table"]) >= 7)):
            result[name] = tensor
    return result


def fit_depth(tensors: Mapping[str, W], steps: int) -> tuple[dict[str, W], list[str]]:
    """Split weights with that many depth steps, expanded or cut where necessary, and a report of what was changed."""
    found = depth_steps(tensors)
    if found == steps:
        return split_fused(tensors, found), []
    if found < steps:
        return expand_depth(tensors)
    return cut_depth(tensors), ["depth steps 8..15 and embedding tables 7..14 are left out"]
