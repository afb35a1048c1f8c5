"""The memory of training beside tensors: what allocators keep on a CPU and a GPU, and the kernels that oneDNN keeps."""

import ctypes
import os
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of the two switches in glibc's malloc.h."""
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables by which a user sets up CUDA's allocator."""

ONEDNN_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Variables that say how many kernels oneDNN keeps, and PyTorch of oneDNN's; both read them at the first product."""
KEPT_KERNELS = 64
"""Kernels that each of the two keeps: about those of one pass of a model, whose layers share them."""


def keep_freed_memory() -> bool:
    """Lets this process keep the memory it frees, as CUDA's allocator does; returns whether it took effect.

    glibc gives large blocks back to the system at once, so that each new tensor starts with thousands of page faults.
    They were measured to take a third of the time of a bf16 matrix product and over half of a pointwise operation's.
    Only glibc has the switches; with another C library nothing happens. The memory goes back when the process ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def keep_few_kernels() -> None:
    """Lets oneDNN keep the kernels of the shapes of one pass instead of 1,024, unless the user said how many.

    It makes a kernel for every new shape, and every batch has other lengths. At 0.6 MB (fp32) to 0.8 MB (bf16), as
    measured on small products, 1,024 of them hold 0.6 to 0.8 GB, and are hardly used again. It must come before the
    first product.
    """
    for name in ONEDNN_CACHES:
        os.environ.setdefault(name, str(KEPT_KERNELS))


def grow_segments() -> bool:
    """Lets CUDA's allocator grow its segments instead of adding new ones; returns whether it took effect.

    Every batch has other lengths, so that blocks of ever new sizes would leave gaps between them. Settings that the
    user made in the environment stay. It must come before the first tensor on a GPU.
    """
    if any(name in os.environ for name in ALLOCATOR_SETTINGS):
        return False
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    return True
