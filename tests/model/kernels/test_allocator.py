"""Freed memory stays with the process, as glibc itself reports it."""

import json
import os
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


NEW_SHAPES = """
import json, sys
from pathlib import Path
import torch
from model.kernels import allocator
from model.kernels.matmul import linear

torch.set_num_threads(1)
if sys.argv[1] == "few":
    allocator.keep_few_kernels()
weight, sizes = torch.ones(256, 256), []
for rows in range(100, 400):
    linear(torch.ones(rows, 256), weight)
    sizes.append(int(Path("/proc/self/statm").read_text().split()[1]))
print(json.dumps(sizes[-1] - sizes[100]))
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_products_of_ever_new_shapes_take_no_more_memory_once_their_kernels_are_bounded() -> None:
    pages = []
    for words in ("few", "as they come"):
        command = [sys.executable, "-c", NEW_SHAPES, words]
        environment = {name: value for name, value in os.environ.items() if name not in allocator.ONEDNN_CACHES}
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment)
        assert done.returncode == 0, done.stderr
        pages.append(json.loads(done.stdout))
    if pages[1] < 1000:
        pytest.skip("oneDNN keeps next to nothing on this processor")
    assert pages[0] < 0.25 * pages[1]


def test_a_number_of_kernels_that_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = allocator.ONEDNN_CACHES
    monkeypatch.setenv(one, "7")
    monkeypatch.setenv(other, "")
    monkeypatch.delenv(other)
    allocator.keep_few_kernels()
    assert os.environ[one] == "7" and os.environ[other] == str(allocator.KEPT_KERNELS)


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
