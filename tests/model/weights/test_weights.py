"""Weights on disk: memory while loading, parts, and the files that are refused before a value is read."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import LMConfig
from model.duplex import DuplexLM
from model.mimi.files import load_mimi
from model.weights import tensor_files
from model.weights.checkpoint import (
    config_to_dict,
    from_pretrained,
    native_state_dict,
    save_native,
    write_json,
    write_weights,
)
from model.weights.native import cut_depth, fuse_split, split_fused
from model.weights.tensor_files import read_header
from tests.model.golden import assert_same_tensors, language_model, lm_config, weights, write_parts
from tests.model.weights.pickles import Trap
from tests.refusals import refused

MIB = 2**20

MEASURE = """
import json, os, sys
import torch
from model.weights.checkpoint import from_pretrained
from model.config import LMConfig

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key + ":")) * 1024

def peak(small, path, dep_q, dtype):
    dtype = dtype and getattr(torch, dtype)
    from_pretrained(small, dtype=dtype)  # what the process itself needs to load anything depends on the machine
    config = LMConfig(**json.load(open(sys.argv[1])) | {"dep_q": dep_q})
    # Memory counts once it is written. Filled at once, parameters are there before the first value is read, and a copy
    # adds to all of them wherever its values stand in the file.
    empty = torch.empty
    torch.empty = lambda *args, **kwargs: empty(*args, **kwargs).fill_(0)
    before = status("VmRSS")
    model = from_pretrained(path, config, dtype=dtype)
    return status("VmHWM") - before, sum(p.nbytes for p in model.parameters()), status("VmRSS") - before

for case in json.loads(sys.argv[2]):
    read, write = os.pipe()
    if os.fork() == 0:  # its peak starts at what it has now
        os.write(write, json.dumps(peak(*case)).encode())
        os._exit(0)
    os.close(write)
    print(os.read(read, 1000).decode(), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_loading_copies_neither_the_model_nor_its_largest_parameter(tmp_path: Path) -> None:
    config = LMConfig(
        dim=512, num_layers=1, num_heads=8, depformer_dim=1024, depformer_dim_feedforward=384, depformer_num_heads=4,
        depformer_num_layers=1, text_card=8000, card=256,
    )  # fmt: skip
    torch.manual_seed(0)
    fused = native_state_dict(DuplexLM(config))
    sizes = {name: tensor.nbytes for name, tensor in fused.items()}
    # A parameter that loading holds twice costs at least twice the fifth that it is allowed beside the model.
    assert max(sizes.values()) > 0.4 * sum(sizes.values()) > 160 * MIB
    write_weights(tmp_path / "fused.safetensors", fused)
    write_weights(tmp_path / "split.safetensors", {k: v.clone() for k, v in split_fused(fused, 16).items()})
    write_weights(tmp_path / "eight.safetensors", fuse_split(cut_depth(fused)))
    write_weights(tmp_path / "half.safetensors", {name: tensor.bfloat16() for name, tensor in fused.items()})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    save_native(tmp_path / "small", language_model("lm_small"))
    save_native(tmp_path / "small_half", language_model("lm_small"), dtype=torch.bfloat16)
    del fused
    cases: list[tuple[str, int, str | None]] = [
        ("fused", 16, None), ("split", 16, None), ("eight", 16, None), ("fused", 8, None), ("split", 8, None),
        ("half", 16, None), ("half", 16, "float32"), ("fused", 16, "bfloat16"),
    ]  # fmt: skip
    small = {"half": str(tmp_path / "small_half")}
    asked = [
        (small.get(name, str(tmp_path / "small")), str(tmp_path / f"{name}.safetensors"), dep_q, dtype)
        for name, dep_q, dtype in cases
    ]
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "config.json"), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    for case, line in zip(cases, lines, strict=True):
        peak, size, kept = json.loads(line)
        assert kept > 0.95 * size, case  # the measure sees the model itself
        assert peak <= 1.2 * size, (case, peak / size)


@pytest.mark.parametrize("piece_bytes", [1, 1000])
def test_weights_read_in_pieces_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(tensor_files, "PIECE_BYTES", piece_bytes)
    save_native(tmp_path, language_model("lm_small"))
    assert_same_tensors(native_state_dict(from_pretrained(tmp_path)), weights("lm_small"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_type_asked_for_is_that_of_every_parameter_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    save_native(tmp_path, language_model("lm_small"))
    model = from_pretrained(tmp_path, dtype=dtype)
    assert_same_tensors(
        native_state_dict(model), {name: tensor.to(dtype) for name, tensor in weights("lm_small").items()}
    )


def test_norms_stored_in_fp32_beside_bf16_matrices_keep_their_type(tmp_path: Path) -> None:
    mixed = {name: t if name.endswith("alpha") else t.bfloat16() for name, t in weights("lm_small").items()}
    write_weights(tmp_path / "model.safetensors", mixed)
    assert_same_tensors(native_state_dict(from_pretrained(tmp_path, lm_config("lm_small"))), mixed)


def test_weights_in_several_files_load_like_those_in_one(tmp_path: Path) -> None:
    write_parts(tmp_path, weights("lm_small"), 3)
    write_json(tmp_path / "config.json", config_to_dict(lm_config("lm_small")))
    assert_same_tensors(native_state_dict(from_pretrained(tmp_path)), weights("lm_small"))


def test_a_file_of_several_that_is_missing_or_another_is_named(tmp_path: Path) -> None:
    write_parts(tmp_path, weights("lm_small"), 3)
    second = tmp_path / "model-00002-of-00003.safetensors"
    second.rename(tmp_path / "moved")
    with refused("not-found", second):
        from_pretrained(tmp_path, lm_config("lm_small"))
    (tmp_path / "model-00001-of-00003.safetensors").rename(second)
    (tmp_path / "moved").rename(tmp_path / "model-00001-of-00003.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    with refused("bad-weights", index, "depformer", "model-00001-of-00003.safetensors"):
        from_pretrained(tmp_path, lm_config("lm_small"))
    write_parts(tmp_path, weights("lm_small"), 3)
    where = json.loads(index.read_text())["weight_map"]
    del where["text_emb.weight"]
    index.write_text(json.dumps({"weight_map": where}))
    with refused("bad-weights", index, "text_emb.weight"):
        from_pretrained(tmp_path, lm_config("lm_small"))
    index.write_text("[]")
    with refused("unreadable", index):
        from_pretrained(tmp_path, lm_config("lm_small"))


# -- refused before a value is read -----------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("a value was read")

    monkeypatch.setattr(tensor_files.StoredTensor, "pieces", read)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
@pytest.mark.usefixtures("nothing_is_read")
def test_weights_of_a_type_that_is_no_weights_type_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    write_weights(
        tmp_path / "model.safetensors", weights("lm_small") | {"linears.3.weight": torch.ones(64, 32).to(dtype)}
    )
    with refused("bad-weights", "F32, BF16, F16", "linears.3.weight", "F64" if dtype == torch.float64 else "I8"):
        from_pretrained(tmp_path, lm_config("lm_small"))


@pytest.mark.usefixtures("nothing_is_read")
def test_names_and_shapes_are_checked_before_a_value_is_read(tmp_path: Path) -> None:
    tensors = weights("lm_small") | {"linears.3.weight": torch.ones(63, 32), "more": torch.ones(1)}
    del tensors["out_norm.alpha"]
    write_weights(tmp_path / "model.safetensors", tensors)
    problems = ["1 missing: out_norm.alpha", "1 extra: more", "1 misshapen: linears.3.weight [63, 32]"]
    with refused("bad-weights", tmp_path / "model.safetensors", *problems):
        from_pretrained(tmp_path, lm_config("lm_small"))


@pytest.mark.usefixtures("nothing_is_read")
def test_a_configuration_beside_the_weights_must_be_theirs(tmp_path: Path) -> None:
    save_native(tmp_path, language_model("lm_small"))
    config = lm_config("lm_small")
    write_json(tmp_path / "config.json", config_to_dict(dataclasses.replace(config, dep_q=8)))
    with refused("bad-weights", "16 depth steps", "dep_q=8", "config.json"):
        from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", config_to_dict(dataclasses.replace(config, card=63)))
    with refused("bad-weights", "misshapen", "emb.0.weight [65, ", "instead of [64, "):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pth", "weights.pt"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("folder", [True, False])
def test_pickles_are_refused_unread_with_the_fix(tmp_path: Path, name: str, zipped: bool, folder: bool) -> None:
    torch.save({"a": Trap(tmp_path / "mark")}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    with refused("unsafe", tmp_path / name, "safetensors.torch.save_file"):
        from_pretrained(tmp_path if folder else tmp_path / name, lm_config("lm_small"))
    assert not (tmp_path / "mark").exists()


def test_a_pickled_codec_is_refused_unread_with_the_fix(tmp_path: Path) -> None:
    torch.save({"a": Trap(tmp_path / "mark")}, tmp_path / "mimi.safetensors")
    with refused("unsafe", tmp_path / "mimi.safetensors"):
        load_mimi(tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_found_in_the_last_piece_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(tensor_files, "PIECE_BYTES", 1000)
    broken = weights("lm_small")["text_linear.weight"].clone()
    broken[-1, -1] = value
    write_weights(tmp_path / "model.safetensors", weights("lm_small") | {"text_linear.weight": broken})
    with refused("bad-weights", "text_linear.weight"):
        from_pretrained(tmp_path, lm_config("lm_small"))


@pytest.mark.usefixtures("nothing_is_read")
def test_a_file_that_lost_its_end_is_refused(tmp_path: Path) -> None:
    save_native(tmp_path, language_model("lm_small"))
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate((tmp_path / "model.safetensors").stat().st_size - 1)
    with refused("unreadable", tmp_path / "model.safetensors"):
        from_pretrained(tmp_path)


def test_a_header_says_all_but_the_values(tmp_path: Path) -> None:
    save_native(tmp_path, language_model("lm_small"), dtype=torch.bfloat16)
    stored = read_header(tmp_path / "model.safetensors")["linears.3.weight"]
    assert (stored.shape, stored.dtype) == (torch.Size((64, 32)), "BF16")
    assert torch.equal(stored.read(), weights("lm_small")["linears.3.weight"].bfloat16())
    half = stored.chunk(2)[1]
    assert torch.equal(half.read(), weights("lm_small")["linears.3.weight"][32:].bfloat16())


def test_parameters_are_made_on_the_device_asked_for(tmp_path: Path) -> None:
    save_native(tmp_path, language_model("lm_small"))
    model = from_pretrained(tmp_path, dtype=torch.bfloat16, device="meta")  # a device that every machine has
    assert {(parameter.device.type, parameter.dtype) for parameter in model.parameters()} == {("meta", torch.bfloat16)}


def test_a_header_with_a_line_break_is_refused_in_one_line(tmp_path: Path) -> None:
    header = b'{"x": {"dtype": "a\\nb", "shape": [1], "data_offsets": [0, 4]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with refused("unreadable", path):
        tensor_files.open_safetensors(path)
