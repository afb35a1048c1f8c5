"""Freed memory stays with the process, as glibc itself reports it."""

import json
import platform
import subprocess
import sys

import pytest
import torch

from model.kernels import allocator

MEASURE = """
import ctypes, json
from model.kernels.allocator import keep_freed_memory

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
SIZE = 64 << 20


class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in FIELDS]  # mallinfo of malloc.h


libc = ctypes.CDLL("libc.so.6")
libc.mallinfo.restype = Info
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]


def block():
    "Mapped blocks that one large block adds, and how much the process keeps of it once it is freed."
    before = libc.mallinfo()
    pointer = libc.malloc(SIZE)
    mapped = libc.mallinfo().hblks - before.hblks
    libc.free(pointer)
    return mapped, libc.mallinfo().fordblks - before.fordblks >= SIZE


print(json.dumps([block(), keep_freed_memory(), block()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_a_large_block_is_given_back_to_the_system_before_and_kept_after() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    before, took_effect, after = json.loads(done.stdout)
    assert before == [1, False]
    assert took_effect and after == [0, True]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", load)
    assert not allocator.keep_freed_memory()


def test_a_gpus_allocator_is_set_up_unless_the_user_did_it(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", settings.append)
    for name in allocator.ALLOCATOR_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert allocator.grow_segments() and settings == ["expandable_segments:True"]
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    assert not allocator.grow_segments() and len(settings) == 1
