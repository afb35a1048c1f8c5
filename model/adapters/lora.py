"""Low-rank adapters: y = W x + scaling * B A x, where only A and B train.

Adapters wrap Linear and StepLinear modules; those of a stacked weight are stacked too. Tensors in files have the names
of Kyutai's LoRA files, one pair per native linear layer: `{path}.lora_A.weight` [R, I], `{path}.lora_B.weight` [O, R].
"""

# Shapes: Q codebooks (depth steps), N rows, B batch, I input width, O output width, R rank (of an adapter)

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.adapters.quantized import QuantizedLinear, QuantizedStepLinear
from model.duplex import DuplexLM
from model.errors import UserError
from model.layers import Linear, StepLinear, shared_matmul
from model.weights.checkpoint import check_names
from model.weights.native import DEPTH_STEP, native_path

SUFFIXES = (".lora_A.weight", ".lora_B.weight")
Single = Linear | QuantizedLinear
Stacked = StepLinear | QuantizedStepLinear


class LoRALinear(nn.Module):
    """A frozen Linear with its adapter, lora_A [R, I] and lora_B [O, R] in fp32; it starts as the base map (B = 0)."""

    def __init__(self, base: Single, rank: int, scaling: float) -> None:
        super().__init__()
        self.base = base
        self.scaling = scaling
        device = next(base.parameters()).device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.empty(base.out_features, rank, device=device, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws A from a normal distribution of standard deviation 1 / sqrt(I), and sets B to zero."""
        nn.init.normal_(self.lora_A, std=self.base.in_features**-0.5)
        nn.init.zeros_(self.lora_B)

    def low_rank(self, x: Tensor) -> Tensor:
        """scaling * A x, [.., I] -> [.., R]."""
        return self.scaling * F.linear(x, self.lora_A.to(x.dtype))

    def terms(self, x_NI: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of (input, weight) whose products add up to the output, as `Linear.terms`."""
        low_NR = self.low_rank(x_NI)
        return [*self.base.terms(x_NI), (low_NR[None], self.lora_B.to(low_NR.dtype)[None])]

    def forward(self, x: Tensor) -> Tensor:
        """The adapted map, [.., I] -> [.., O]."""
        y = self.base(x)
        low_NR = self.low_rank(x).to(y.dtype).flatten(0, -2)
        # addmm takes the product and the sum in one pass over the output.
        return torch.addmm(y.flatten(0, -2), low_NR, self.lora_B.to(y.dtype).T).view_as(y)


class LoRAStepLinear(nn.Module):
    """A frozen StepLinear with one adapter per step, lora_A [Q, R, I] and lora_B [Q, O, R], both fp32."""

    def __init__(self, base: Stacked, rank: int, scaling: float) -> None:
        super().__init__()
        self.base = base
        self.scaling = scaling
        steps, device = base.steps, next(base.parameters()).device
        self.lora_A = nn.Parameter(torch.empty(steps, rank, base.in_features, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.empty(steps, base.out_features, rank, device=device, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws A from a normal distribution of standard deviation 1 / sqrt(I), and sets B to zero."""
        nn.init.normal_(self.lora_A, std=self.base.in_features**-0.5)
        nn.init.zeros_(self.lora_B)

    def low_rank(self, x_QNI: Tensor) -> Tensor:
        """scaling * A_k x_k of the first steps, [Q, N, I] -> [Q, N, R]."""
        return self.scaling * torch.bmm(x_QNI, self.lora_A[: len(x_QNI)].to(x_QNI.dtype).transpose(1, 2))

    def plus_raised(self, y_QNO: Tensor, low_QNR: Tensor) -> Tensor:
        """y + B low, in one pass over the output, [Q, N, O]."""
        up_QRO = self.lora_B[: len(y_QNO)].to(y_QNO.dtype).transpose(1, 2)
        return torch.baddbmm(y_QNO, low_QNR.to(y_QNO.dtype), up_QRO)

    def terms(self, x_QNI: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of (input, weight) whose products add up to the output, as `StepLinear.terms`."""
        low_QNR = self.low_rank(x_QNI)
        return [*self.base.terms(x_QNI), (low_QNR, self.lora_B[: len(x_QNI)].to(low_QNR.dtype))]

    def step(self, k: int, x_BI: Tensor) -> Tensor:
        """The adapted map of step k alone, [B, I] -> [B, O]."""
        low_BR = self.scaling * F.linear(x_BI, self.lora_A[k].to(x_BI.dtype))
        return self.base.step(k, x_BI) + F.linear(low_BR, self.lora_B[k].to(low_BR.dtype))

    def shared(self, x_NI: Tensor, steps: int) -> Tensor:
        """The first `steps` adapted maps of one input, [N, I] -> [steps, N, O]."""
        low_QNR = self.scaling * shared_matmul(x_NI, self.lora_A[:steps].to(x_NI.dtype))
        return self.plus_raised(self.base.shared(x_NI, steps), low_QNR)

    def forward(self, x_QNI: Tensor) -> Tensor:
        """The adapted maps of the first steps, each of its own input, [Q, N, I] -> [Q, N, O]."""
        return self.plus_raised(self.base(x_QNI), self.low_rank(x_QNI))


Adapter = LoRALinear | LoRAStepLinear


def inject(model: DuplexLM, rank: int, scaling: float, patterns: Sequence[str]) -> int:
    """Freezes the model, adds an adapter to each linear layer that a pattern matches, and counts the native layers.

    patterns: regular expressions, searched in native names such as `transformer.layers.0.self_attn.in_projs.0`,
    `depformer.layers.0.gating.3.linear_in`, `text_linear`, `linears.0`. A pattern must match all steps of a stacked
    layer or none.
    Raises: UserError if a pattern is broken, matches nothing, or matches only some steps of a layer.
    """
    if rank < 1:
        raise UserError(f"rank={rank}: an adapter needs a rank of at least 1", code="bad-value")
    if any(adapters(model)):
        raise UserError("the model has adapters already: merge them before adding others", code="bad-combination")
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as why:
            raise UserError(f"pattern {pattern!r}: not a regular expression ({why})", code="bad-value") from why
    layers = {path: native_names(path, module) for path, module in _linears(model)}
    for regex in compiled:
        if not any(regex.search(name) for names in layers.values() for name in names):
            example = next(name for names in layers.values() for name in names)
            raise UserError(
                f"pattern {regex.pattern!r} matches no linear layer: see native names like {example}",
                code="unknown-name",
            )
    chosen = []
    for path, names in layers.items():
        matched = [name for name in names if any(regex.search(name) for regex in compiled)]
        if matched and len(matched) < len(names):
            missing = next(name for name in names if name not in matched)
            raise UserError(
                f"the patterns match {matched[0]} but not {missing}: give all steps of a layer an adapter",
                code="bad-combination",
            )
        if matched:
            chosen.append(path)
    _wrap(model, dict.fromkeys(chosen, rank), scaling)
    return sum(len(layers[path]) for path in chosen)


def adapters(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """Yields paths and modules of all adapters."""
    for path, module in model.named_modules():
        if isinstance(module, Adapter):
            yield path, module


def native_names(path: str, module: nn.Module) -> list[str]:
    """Native names of the linear layers that one of our modules holds, one per step if it is stacked."""
    base = module.base if isinstance(module, Adapter) else module
    template = native_path(path)
    return [template.format(k=k) for k in range(base.steps)] if isinstance(base, Stacked) else [template]


def merge(model: DuplexLM) -> None:
    """Adds every adapter to its base weight (in fp32, then back to its type) and removes it; weights stay frozen.

    Raises: UserError if a base is quantized, which has no weight to add to.
    """
    for path, module, base in _mergeable(model):
        with torch.no_grad():
            base.weight.copy_(_merged_weight(module, base))
        _replace(model, path, base)


@contextmanager
def merged(model: DuplexLM) -> Iterator[None]:
    """Inside the `with` block the model is plain, as after `merge`; afterwards base and adapters are as before.

    The base is set aside, because subtracting the adapters from rounded sums would not restore its bits. A second copy
    of the adapted weights therefore exists inside the block. Do not train there.
    Raises: UserError if a base is quantized.
    """
    found = _mergeable(model)
    try:
        for path, module, base in found:
            plain = copy.copy(base)  # It shares all but its own table of parameters.
            plain._parameters = {"weight": nn.Parameter(_merged_weight(module, base), requires_grad=False)}
            _replace(model, path, plain)
        yield
    finally:
        for path, module, _ in found:
            _replace(model, path, module)


def adapter_state_dict(model: DuplexLM, *, complete: bool = False) -> dict[str, Tensor]:
    """A and B of all adapters under Kyutai's names, detached.

    complete: adds zero pairs for the linear layers without an adapter, since Kyutai's runtime needs one for each layer.
    Raises: UserError if the model has no adapter, or adapters of several ranks where `complete` needs one.
    """
    found = dict(adapters(model))
    if not found:
        raise UserError("the model has no adapter: nothing to save", code="no-data")
    tensors: dict[str, Tensor] = {}
    for path, module in found.items():
        names = native_names(path, module)
        for suffix, parameter in zip(SUFFIXES, (module.lora_A, module.lora_B), strict=True):
            parts = parameter.detach().unbind(0) if len(parameter.shape) == 3 else [parameter.detach()]
            tensors |= {name + suffix: part for name, part in zip(names, parts, strict=True)}
    if complete:
        ranks = {module.lora_A.shape[-2] for module in found.values()}
        if len(ranks) > 1:
            raise UserError(
                f"adapters of ranks {sorted(ranks)}: Kyutai's runtime knows one rank for all layers",
                code="bad-combination",
            )
        rank = ranks.pop()
        for path, linear in _linears(model):
            tensors |= {name: torch.zeros(shape) for name, shape in _pair_shapes(path, linear, rank).items()}
    return tensors


def load_adapter(model: DuplexLM, tensors: Mapping[str, Tensor], scaling: float) -> None:
    """Puts adapter tensors with Kyutai's names into the model, and adds the adapters first if it has none at all.

    A model with adapters must have exactly the file's layers, ranks and scaling.
    Raises: UserError that lists missing, extra, misshapen or non-finite tensors; the model is then as it was.
    """
    strange = sorted(name for name in tensors if not name.endswith(SUFFIXES))
    if strange or not tensors:
        raise UserError(
            f"not an adapter file ({strange[0] if strange else 'it is empty'}): give a LoRA .safetensors file",
            code="bad-weights",
        )
    found = dict(adapters(model))
    wrong = {module.scaling for module in found.values()} - {scaling}
    if wrong:
        raise UserError(
            f"scaling={scaling}: the model's adapters have {wrong.pop()}; use the same", code="bad-combination"
        )
    ranks = {path: module.lora_A.shape[-2] for path, module in found.items()} or _ranks(model, tensors)
    expected: dict[str, torch.Size] = {}
    for path, rank in ranks.items():
        expected |= _pair_shapes(path, found.get(path, model.get_submodule(path)), rank)
    check_names(tensors, expected, strict=True)
    if broken := next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None):
        raise UserError(
            f"{broken} holds NaN or infinite values: download or train the adapter again", code="bad-weights"
        )
    if not found:
        _wrap(model, ranks, scaling)
    for name, tensor in adapter_state_dict(model).items():
        tensor.copy_(tensors[name])  # The detached tensor shares the parameter's memory.


def cut_adapter(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out depth steps 8..15, for a base that has only the agent's 8; Kyutai's names in and out."""
    steps = {name: DEPTH_STEP.fullmatch(name) for name in tensors}
    return {name: tensors[name] for name, step in steps.items() if step is None or int(step["step"]) < 8}


def _ranks(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Rank of the adapter that a file holds for each of our linear layers; layers without one are left out."""
    ranks = {}
    for path, module in _linears(model):
        named = [tensors[n + SUFFIXES[0]] for n in native_names(path, module) if n + SUFFIXES[0] in tensors]
        if named:
            ranks[path] = named[0].shape[:1].numel()  # A scalar does not fit, whatever rank this gives it.
    return ranks


def _pair_shapes(path: str, module: nn.Module, rank: int) -> dict[str, torch.Size]:
    """Shapes of A and B of each native layer that one of our modules holds."""
    base: Any = module.base if isinstance(module, Adapter) else module
    shapes = torch.Size((rank, base.in_features)), torch.Size((base.out_features, rank))
    return {
        name + suffix: shape
        for name in native_names(path, module)
        for suffix, shape in zip(SUFFIXES, shapes, strict=True)
    }


def _mergeable(model: nn.Module) -> list[tuple[str, Adapter, Linear | StepLinear]]:
    found = []
    for path, module in adapters(model):
        if not isinstance(module.base, Linear | StepLinear):
            raise UserError(
                f"{path}: a quantized base cannot take up adapters; load them into the full weights",
                code="bad-combination",
            )
        found.append((path, module, module.base))
    return found


@torch.no_grad()
def _merged_weight(module: Adapter, base: Linear | StepLinear) -> Tensor:
    """W + scaling * B A, summed in fp32, in the type of W."""
    delta = module.scaling * (module.lora_B.float() @ module.lora_A.float())
    return (base.weight.float() + delta).to(base.weight.dtype)


def _linears(model: nn.Module) -> Iterator[tuple[str, Single | Stacked]]:
    """Yields paths and modules of the linear layers without an adapter."""
    wrapped = {path for path, _ in adapters(model)}
    for path, module in model.named_modules():
        if isinstance(module, Single | Stacked) and path.removesuffix(".base") not in wrapped:
            yield path, module


def _wrap(model: nn.Module, ranks: Mapping[str, int], scaling: float) -> None:
    model.requires_grad_(False)
    for path, rank in ranks.items():
        base = model.get_submodule(path)
        if isinstance(base, Stacked):
            _replace(model, path, LoRAStepLinear(base, rank, scaling))
        elif isinstance(base, Single):
            _replace(model, path, LoRALinear(base, rank, scaling))


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
