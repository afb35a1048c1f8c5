"""A GPU that computes nothing, for a process of its own, in a build of torch for CPUs.

`build` compiles a device guard that does nothing, which has to be loaded before torch (`environment`). `pretend` then
puts stand-ins in the place of what only a CUDA build has: streams, and the fused kernels, whose conditions it checks.
"""

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import cpp_extension

from data_pipelines.files import cache_root

SOURCE = Path(__file__).with_name("fake_cuda.cpp")
H100 = (9, 0)
"""The compute capability that the device pretends to have."""
LARGEST_HEAD = 256
"""Width of a head up to which flash attention works."""


def build() -> Path:
    """The compiled guard, in the user's cache. Raises: RuntimeError that says why it cannot be compiled."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        raise RuntimeError(f"torch {torch.__version__} has a CUDA of its own: the dry run needs a build for CPUs")
    compiler = cpp_extension.get_cxx_compiler()
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = cache_root() / f"fake_cuda-{key}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    partial = library.with_suffix(f".{os.getpid()}")
    words = [compiler, "-shared", "-fPIC", "-std=c++20", str(SOURCE), "-o", str(partial)]
    words += [f"-I{path}" for path in cpp_extension.include_paths()]
    words += [word for path in cpp_extension.library_paths() for word in (f"-L{path}", f"-Wl,-rpath,{path}")]
    try:
        subprocess.run([*words, "-lc10", "-ltorch_cpu"], check=True, capture_output=True, text=True)
    except FileNotFoundError as why:
        raise RuntimeError(f"no C++ compiler: {compiler} is not found") from why
    except subprocess.CalledProcessError as why:
        raise RuntimeError(f"{compiler} cannot compile {SOURCE.name}: {why.stderr.strip().splitlines()[-1]}") from why
    partial.replace(library)
    return library


def environment(library: Path) -> dict[str, str]:
    """The environment of a process in which the guard is there before torch asks for one."""
    return os.environ | {"LD_PRELOAD": str(library)}


class FakeStream:
    """Stands for a stream and for an event: all is done at once."""

    device, device_index, device_type, stream_id, cuda_stream = torch.device("cuda", 0), 0, 1, 0, 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def nothing(self, *_: Any) -> None:
        pass

    wait_stream = wait_event = wait = synchronize = nothing

    def record(self, *_: Any) -> "FakeStream":
        return self

    record_event = record

    def query(self) -> bool:
        return True


def pretend() -> None:
    """Lets torch believe for the rest of this process that it has an H100."""
    stream = FakeStream()
    stand_ins: Mapping[str, Any] = {
        "Stream": FakeStream,
        "Event": FakeStream,
        "_lazy_init": lambda: None,
        "is_initialized": lambda: False,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "current_device": lambda: 0,
        "device_count": lambda: 8,
        "get_device_capability": lambda *_: H100,
        "current_stream": lambda *_: stream,
        "default_stream": lambda *_: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "set_device": lambda _: None,
        "synchronize": lambda *_: None,
    }
    for name, value in stand_ins.items():
        setattr(torch.cuda, name, value)
    torch.Tensor.record_stream = lambda self, _: None  # type: ignore[assignment, method-assign]
    F.rms_norm = _rms_norm  # type: ignore[assignment]
    F.scaled_dot_product_attention = _attention(F.scaled_dot_product_attention)


@contextlib.contextmanager
def storages(resize: Callable[[Any, int], None]) -> Iterator[None]:
    """Reports every storage that FSDP2 empties or fills again behind the dispatcher's back, with its new size."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group

    def set_size(tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        if storage.size() != size:
            storage.resize_(size)
        resize(storage, size)

    functions = {
        "alloc_storage": lambda tensor: set_size(tensor, tensor.numel() * tensor.itemsize),
        "free_storage": lambda tensor: set_size(tensor, 0),
    }
    places = [
        (module, name) for module in (_fsdp_param, _fsdp_param_group) for name in functions if hasattr(module, name)
    ]
    kept = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, functions[name])
    try:
        yield
    finally:
        for (module, name), function in zip(places, kept, strict=True):
            setattr(module, name, function)


_library = torch.library.Library("dry_run", "DEF")
_library.define("rms_norm(Tensor x, Tensor weight) -> (Tensor, Tensor)")
_library.define("rms_norm_backward(Tensor grad, Tensor x, Tensor scale, Tensor weight) -> (Tensor, Tensor)")
_library.impl(
    "rms_norm", lambda x, _: (torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)), "Meta"
)
_library.impl(
    "rms_norm_backward", lambda grad, x, scale, weight: (torch.empty_like(x), torch.empty_like(weight)), "Meta"
)


class _FusedNorm(torch.autograd.Function):
    """One kernel forward and one backward, as in a CUDA build; a CPU build takes the norm apart into many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        y, scale = torch.ops.dry_run.rms_norm(x, weight)
        ctx.save_for_backward(x, scale, weight)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return torch.ops.dry_run.rms_norm_backward(grad, *ctx.saved_tensors)


def _rms_norm(x: Tensor, normalized_shape: Any, weight: Tensor, eps: float) -> Tensor:
    assert x.dtype == weight.dtype, f"no fused norm of {x.dtype} with a weight of {weight.dtype}"
    return _FusedNorm.apply(x, weight)


def _attention(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The fused kernel that a GPU would take: flash, or with a mask the memory-efficient one."""

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **how: Any) -> Tensor:
        is_causal = how.get("is_causal", False)
        if query.device.type != "cuda":
            return plain(query, key, value, attn_mask, **how)
        assert query.dtype == key.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float16), "not in half"
        assert all(x.ndim == 4 and x.stride(-1) == 1 and x.shape[-1] <= LARGEST_HEAD for x in (query, key, value))
        if attn_mask is not None:
            mask = attn_mask if attn_mask.is_floating_point() else torch.zeros_like(attn_mask, dtype=query.dtype)
            mask = mask.expand(*query.shape[:3], key.shape[2])
            return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, mask, False)[0]
        assert not is_causal or query.shape[2] == key.shape[2], "causal, but not square"
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal)[0]

    return attention
