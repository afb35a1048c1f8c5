"""What watches the operators of a dry run: what a GPU would refuse or wait for, memory, kernels, FLOPs and bytes."""

import sys
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tests.paths import ROOT

PEAK, BANDWIDTH = 989e12, 3.35e12
"""Of an H100 SXM: FLOP/s of dense bf16 products, and bytes/s of its memory."""
REACHED = {"product": 0.65, "attention": 0.45, "bytes": 0.8}
"""Assumed shares of these that kernels reach."""
LAUNCH = 3e-6
"""Seconds that a kernel takes at least."""
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
"""Operators beside views that launch nothing."""
LOOKUPS = {"embedding", "index_select", "index", "gather", "_embedding_bag", "_embedding_bag_forward_only"}
"""Operators that read of their first tensor no more than they return."""
ROW_WRITES = {"index_copy_", "index_put_", "index_add_"}
"""Operators that write of their first tensor no more than their last one holds."""
OVERWRITES = {"copy_", "fill_", "zero_", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
"""Operators that read nothing of their first tensor."""
TILE = 128
"""Frames to which flash attention pads."""


class Observer(TorchDispatchMode):
    """Counts operators by phase, and notes those that a GPU could not run, or that the host has to wait for.

    answers: the host may ask the GPU for a value in these functions, and gets this one; anywhere else it is a fault.
    """

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__()
        self.answers = answers
        self.phase = ""
        self.host_phases = {""}
        """Phases in which the host may compute."""
        self.faults: Counter[str] = Counter()
        """What must not be: mixed devices, work on the host, waiting for the GPU."""
        self.syncs: list[str] = []
        """Where the host asked the GPU for a value, and was allowed to."""
        self.kernels: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.unfused_bytes: Counter[str] = Counter()
        self.seconds: dict[str, float] = defaultdict(float)
        self.peaks: Counter[str] = Counter()
        """Most bytes that were alive in each phase."""
        self.by_place: dict[str, float] = defaultdict(float)
        """Estimated seconds of kernels that are no product, by the place that called them."""
        self.paused = False
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._pinned: dict[int, Tensor] = {}
        self.bytes = 0

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Counts what happens inside under this name."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def wrapped(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted under this name."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.during(phase):
                return function(*args, **kwargs)

        return call

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts the memory of tensors from before."""
        for tensor in tensors:
            self.resize(tensor.untyped_storage())

    def resize(self, storage: Any, size: int | None = None) -> None:
        """Counts a storage until it goes, at its own size or another one."""
        key, size = storage._cdata, storage.nbytes() if size is None else size

        def gone(_: Any) -> None:
            self.bytes -= self._alive.pop(key)[1]

        reference, before = self._alive.get(key) or (weakref.ref(storage, gone), 0)
        self._alive[key] = reference, size
        self.bytes += size - before
        self.peaks[self.phase] = max(self.peaks[self.phase], self.bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        name = func.overloadpacket.__name__
        if self.paused or func.namespace == "prim" or name == "lift_fresh":
            return func(*args, **kwargs)
        inputs = {id(x): x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}.values()
        devices = {x.device.type for x in inputs if x.ndim}
        if len(devices) > 1 and name != "copy_":
            self.faults[f"{name} mixes devices at {place()}"] += 1
        if name == "_local_scalar_dense" and args[0].device.type == "cuda":
            return self._asked()
        if name == "_pin_memory":
            pinned = torch.empty_like(args[0])
            self._pinned[pinned._cdata] = pinned
            return pinned
        if name == "is_pinned":
            return args[0]._cdata in self._pinned
        result = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        devices |= {x.device.type for x in outputs if x.ndim}
        if "cuda" not in devices:
            if devices and self.phase not in self.host_phases:
                self.faults[f"{name} runs on the host at {place()}"] += 1
        elif len(devices) > 1 and name in ("copy_", "_to_copy"):
            self._copied(name, args, kwargs)
        for x in outputs:
            if x.device.type == "cuda" and not func.is_view:
                self.resize(x.untyped_storage())
        if "cuda" in devices and not func.is_view and name not in NO_KERNEL and func.namespace != "c10d":
            self._count(func, name, args, kwargs, outputs)
        return result

    def _asked(self) -> Any:
        where = place()
        function = where.rpartition(" ")[2]
        if function not in self.answers:
            self.faults[f"the host asks for a value at {where}"] += 1
            return True
        self.syncs.append(where)
        return self.answers[function]

    def _copied(self, name: str, args: Any, kwargs: Any) -> None:
        """Notes a copy between host and GPU for which the host has to wait."""
        source = args[1] if name == "copy_" else args[0]
        is_async = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        is_async = is_async and (source.device.type == "cuda" or source._cdata in self._pinned)
        if source.ndim and not is_async and self.phase not in self.host_phases:
            self.faults[f"the host waits for a copy at {place()}"] += 1

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        moved, padded = bytes_moved(func, name, args, kwargs, outputs), 0
        if "attention" in name or "attn" in name:
            kind, (flops, padded) = "attention", attention_flops(name, args)
        elif name == "linear":  # Without autograd it is one operator.
            kind, flops = "product", 2 * args[0].numel() * args[1].shape[0]
        elif func.overloadpacket in flop_registry:
            kind, flops = "product", flop_registry[func.overloadpacket](*args, out_val=outputs[0])
        else:
            kind, flops = "bytes", 0
        seconds = max(max(flops, padded) / PEAK / REACHED[kind], moved / BANDWIDTH / REACHED["bytes"], LAUNCH)
        self.kernels[self.phase] += 1
        self.flops[self.phase] += flops
        self.seconds[self.phase] += seconds
        if kind == "bytes":
            self.unfused_bytes[self.phase] += moved
            self.by_place[f"{self.phase}: {place()}: {name}"] += seconds


def bytes_moved(func: Any, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> int:
    """Bytes of a GPU's memory that an operator reads and writes, each tensor once."""
    written = {id(x): x.nbytes for x in outputs}
    read: dict[int, int] = {}
    for number, argument in enumerate(func._schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        tensors = [x for x in tree_leaves(value) if isinstance(x, Tensor) and x.device.type == "cuda"]
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written:
            written |= {id(x): x.nbytes for x in tensors}
        if not (number == 0 and name in OVERWRITES) and not (is_written and argument.is_out):
            read |= {id(x): x.nbytes for x in tensors}
    if name in LOOKUPS:
        return 2 * sum(written.values())
    if name in ROW_WRITES:
        return 2 * [x for x in tree_leaves(args) if isinstance(x, Tensor)][-1].nbytes
    return sum(written.values()) + sum(read.values())


def attention_flops(name: str, args: Any) -> tuple[int, int]:
    """FLOPs of a fused attention, and those that it takes when short sequences are padded to a tile.

    Causal ones take half. Packed sequences are counted as if all had the longest one's length.
    """
    is_backward = "backward" in name
    query, key = args[is_backward], args[1 + is_backward]
    if query.ndim == 3:  # packed: [N, H, E], and the ends of the sequences
        ends, longest = args[6 if is_backward else 3], args[8 if is_backward else 5]
        rows, num_queries, num_keys = (len(ends) - 1) * query.shape[1], longest, longest
    else:
        rows, num_queries, num_keys = query.shape[0] * query.shape[1], query.shape[2], key.shape[2]
    share = 0.5 if num_queries == num_keys > 1 else 1.0  # With a mask, or for one query, all is computed.
    each = (5 if is_backward else 2) * 2 * rows * query.shape[-1]
    padded_queries, padded_keys = (-(-number // TILE) * TILE for number in (num_queries, num_keys))
    padded = each * padded_queries * padded_keys * (share if num_keys > TILE else 1)
    return int(each * num_queries * num_keys * share), int(padded)


def place() -> str:
    """The project's line that is running, as `path:line function`; nothing of the project is in the optimiser."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith((f"{ROOT}/model/", f"{ROOT}/ppx_train/")):
            return f"{path.removeprefix(f'{ROOT}/')}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "torch itself"
