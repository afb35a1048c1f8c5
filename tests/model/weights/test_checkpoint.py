"""Weights in the public layout: round trips, expansion and cut, and the files that are refused."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import LMConfig
from model.duplex import DuplexLM
from model.errors import Code
from model.weights.checkpoint import (
    check_names,
    config_from_dict,
    config_to_dict,
    from_pretrained,
    load_native,
    native_state_dict,
    read_config,
    save_native,
    write_weights,
)
from model.weights.native import cut_depth, depth_steps, expand_depth, fuse_split, split_fused
from tests.model.golden import assert_same_tensors, language_model, lm_config, metadata, tensors, weights
from tests.refusals import refused


def test_native_weights_survive_load_and_save_bitwise(tmp_path: Path) -> None:
    model = language_model("lm_small")
    save_native(tmp_path / "out", model)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert_same_tensors(load_file(tmp_path / "out/model.safetensors"), weights("lm_small"))
    again = from_pretrained(tmp_path / "out")
    assert again.config == model.config
    assert_same_tensors(native_state_dict(again), weights("lm_small"))
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in again.parameters())


def test_split_attention_names_load_like_fused_ones() -> None:
    split = split_fused(weights("lm_small"), 16)
    assert split["depformer.layers.1.self_attn.in_projs.15.weight"].shape == (96, 32)
    assert split["transformer.layers.0.self_attn.out_projs.0.weight"].shape == (64, 64)
    assert not any("in_proj_weight" in name for name in split)
    model = DuplexLM(lm_config("lm_small"))
    load_native(model, split)
    assert_same_tensors(native_state_dict(model), weights("lm_small"))
    assert_same_tensors(fuse_split(split), weights("lm_small"))


def test_a_tensor_present_fused_and_split_is_refused() -> None:
    both = weights("lm_small") | {"transformer.layers.0.self_attn.in_projs.0.weight": torch.zeros(192, 64)}
    with refused("bad-weights", "transformer.layers.0.self_attn.in_projs.0.weight"):
        load_native(DuplexLM(lm_config("lm_small")), both)


def test_bf16_weights_load_into_an_fp32_model_and_keep_their_type_otherwise(tmp_path: Path) -> None:
    half = {name: tensor.to(torch.bfloat16) for name, tensor in weights("lm_window").items()}
    write_weights(tmp_path / "model.safetensors", half)
    model = DuplexLM(lm_config("lm_window"))
    load_native(model, half)
    assert model.text_head.weight.dtype == torch.float32
    assert from_pretrained(tmp_path, lm_config("lm_window")).text_head.weight.dtype == torch.bfloat16
    wide = from_pretrained(tmp_path / "model.safetensors", lm_config("lm_window"), dtype=torch.float32)
    assert torch.equal(wide.text_head.weight, half["text_linear.weight"].float())


def test_a_model_built_and_loaded_on_the_meta_device_shares_nothing_with_the_tensors() -> None:
    source = {name: tensor.clone() for name, tensor in weights("lm_window").items()}
    model = DuplexLM(lm_config("lm_window"), device="meta")
    load_native(model, source)
    for tensor in source.values():
        tensor.zero_()
    assert_same_tensors(native_state_dict(model), weights("lm_window"))


def test_loading_without_strict_keeps_what_the_file_does_not_hold() -> None:
    model = language_model("lm_small")
    load_native(model, {"linears.3.weight": torch.ones(64, 32)}, strict=False)
    assert (model.depth.heads.weight[3] == 1).all()
    assert torch.equal(model.depth.heads.weight[2], weights("lm_small")["linears.2.weight"])


# -- depth steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
def test_expansion_copies_steps_and_tables_as_documented(split: bool) -> None:
    eight = weights("lora_small")
    sixteen = dataclasses.replace(lm_config("lora_small"), dep_q=16)
    result, report = expand_depth(split_fused(eight, 8) if split else eight)
    result = fuse_split(result)
    assert depth_steps(result) == 16
    assert any("depformer_emb.7" in line and "depformer_emb.0" in line for line in report)
    for k in range(8):
        for pattern in ("depformer_in.{}.weight", "linears.{}.weight", "depformer.layers.1.gating.{}.linear_in.weight"):
            assert torch.equal(result[pattern.format(k + 8)], eight[pattern.format(k)])
    for table, source in ((0, 0), (6, 6), (7, 0), (8, 0), (11, 3), (14, 6)):
        assert torch.equal(result[f"depformer_emb.{table}.weight"], eight[f"depformer_emb.{source}.weight"])
    for name in ("in_proj_weight", "out_proj.weight"):
        old, new = eight[f"depformer.layers.0.self_attn.{name}"], result[f"depformer.layers.0.self_attn.{name}"]
        assert torch.equal(new, torch.cat((old, old)))
    model = DuplexLM(sixteen)
    load_native(model, result)


def test_expanded_agent_logits_equal_those_of_the_8_step_model() -> None:
    golden = tensors("lora_small")
    sixteen = dataclasses.replace(lm_config("lora_small"), dep_q=16)
    model = DuplexLM(sixteen)
    load_native(model, expand_depth(weights("lora_small"))[0])
    with torch.no_grad():
        ours, theirs = (m.logits(golden["forward.codes"]) for m in (model, language_model("lora_small")))
    # Sums over 16 steps may run in another order than over 8. Logits up to 7 are 5e-7 apart in fp32: 20 roundings.
    torch.testing.assert_close(ours.audio_BQTV[:, :8], theirs.audio_BQTV, rtol=0, atol=1e-5)


def test_cutting_undoes_the_expansion_and_keeps_the_agents_logits() -> None:
    eight = weights("lora_small")
    assert_same_tensors(fuse_split(cut_depth(expand_depth(eight)[0])), eight)
    golden, config = tensors("lm_small"), dataclasses.replace(lm_config("lm_small"), dep_q=8)
    model = DuplexLM(config)
    load_native(model, cut_depth(weights("lm_small")))
    with torch.no_grad():
        logits = model.logits(golden["forward.codes"])
    mask = golden["forward.audio_mask"][:, :8]
    assert torch.equal(logits.audio_mask_BQT, mask)
    assert (logits.audio_BQTV - golden["forward.audio_logits"][:, :8])[mask].abs().max() < 1e-4


def test_expanding_or_cutting_the_wrong_number_of_steps_is_refused() -> None:
    with refused("bad-combination", "16 depth steps"):
        expand_depth(weights("lm_small"))
    with refused("bad-combination", "8 depth steps"):
        cut_depth(weights("lora_small"))
    with refused("bad-weights", "0 heads"):
        depth_steps({"text_emb.weight": torch.zeros(1)})


def test_from_pretrained_expands_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_weights(tmp_path / "model.safetensors", weights("lora_small"))
    with caplog.at_level(logging.WARNING):
        model = from_pretrained(tmp_path, dataclasses.replace(lm_config("lora_small"), dep_q=16))
    assert model.depth.heads.weight.shape[0] == 16
    assert "depformer_emb.7" in caplog.text


def test_a_saved_8_step_copy_is_a_whole_model(tmp_path: Path) -> None:
    save_native(tmp_path / "cut", language_model("lm_small"), dep_q=8, dtype=torch.bfloat16)
    model = from_pretrained(tmp_path / "cut")
    assert model.config.dep_q == 8 and model.text_head.weight.dtype == torch.bfloat16


# -- errors -----------------------------------------------------------------------------------------------------------


def test_missing_extra_and_misshapen_tensors_are_listed_by_name() -> None:
    broken = weights("lm_small")
    del broken["linears.4.weight"], broken["out_norm.alpha"]
    broken["extra_heads.0.weight"] = torch.zeros(2, 2)
    broken["text_emb.weight"] = torch.zeros(50, 64)
    missing, extra = "2 missing: linears.4.weight, out_norm.alpha", "1 extra: extra_heads.0.weight"
    with refused("bad-weights", missing, extra, "1 misshapen: text_emb.weight [50, 64] instead of [49, 64]"):
        load_native(DuplexLM(lm_config("lm_small")), broken)


def test_long_lists_of_names_are_cut() -> None:
    with refused("bad-weights", "30 missing: t0, t1, t10, t11, t12 and 25 more"):
        check_names({}, {f"t{i}": torch.Size([1]) for i in range(30)}, strict=True)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors", weights("lm_window"))
    with refused("bad-weights", tmp_path / "model.safetensors", "misshapen"):
        from_pretrained(tmp_path, lm_config("lm_small"))
    with refused("bad-weights", "missing"):  # Without a config.json the public 7B sizes are expected.
        from_pretrained(tmp_path)
    save_file({"a": torch.zeros(1000)}, tmp_path / "other.safetensors")
    with refused("bad-weights", tmp_path / "other.safetensors", "0 heads"):
        from_pretrained(tmp_path / "other.safetensors")
    odd = weights("lm_small") | {"depformer.layers.0.self_attn.in_proj_weight": torch.zeros(1535, 32)}
    with refused("bad-weights", "[1535, 32]", "16 steps"):
        load_native(DuplexLM(lm_config("lm_small")), odd)


@pytest.mark.parametrize("damage", ["cut", "short", "noise", "empty"])
def test_broken_files_are_user_errors(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1000)}, file)
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-100], "short": content[:5], "noise": b"\xff" * 5000, "empty": b""}[damage])
    with refused("unreadable", file):
        from_pretrained(tmp_path)


def test_missing_paths_and_misplaced_revisions_are_user_errors(tmp_path: Path) -> None:
    with refused("not-found", tmp_path / "model.safetensors"):
        from_pretrained(tmp_path)
    with refused("not-found", "./no/such/folder"):
        from_pretrained("./no/such/folder")
    with refused("bad-combination", "'main'", tmp_path):
        from_pretrained(tmp_path, revision="main")


def test_writing_never_replaces_a_file_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    write_weights(file, {"a": torch.ones(3)}, {"step": "7"})
    with refused("exists", file):
        write_weights(file, {"a": torch.zeros(3)})
    with refused("exists", file):
        save_native(tmp_path, language_model("lm_window"))
    assert not (tmp_path / "config.json").exists()

    def fail(_: Any, path: Path, **__: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("model.weights.tensor_files.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_weights(tmp_path / "other.safetensors", {"a": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


# -- config.json ------------------------------------------------------------------------------------------------------


def test_a_public_configuration_reads_and_writes_the_same_keys() -> None:
    public = metadata("lm_small")["config"]
    config = config_from_dict(public | {"moshi_name": "model.safetensors", "model_id": {"run": 3}}, "config.json")
    assert config == lm_config("lm_small")
    assert config_to_dict(config) == public


def test_a_configuration_that_only_names_the_model_means_the_public_shapes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "personaplex", "version": "7b-v1"}')
    assert read_config(tmp_path / "config.json") is None
    assert read_config(tmp_path / "none.json") is None
    assert config_from_dict(config_to_dict(LMConfig()), "here") == LMConfig()


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"gating": "gelu"}, "bad-weights", "gating='gelu'"),
        ({"depformer_weights_per_step": False}, "bad-weights", "depformer_weights_per_step=False"),
        ({"conditioners": {}}, "bad-record", "unknown conditioners"),
        ({"dep_q": 9}, "bad-value", "dep_q=9"),
        ({"dim": "wide"}, "bad-record", "dim='wide'"),
        ({"delays": [0] * 16 + ["1"]}, "bad-record", "delays="),
        ({"hidden_scale": float("inf")}, "bad-value", "hidden_scale=inf"),
        ({"dim": 10**7, "num_heads": 1}, "bad-value", "dim=10000000"),
    ],
)
def test_configurations_of_other_models_are_refused(change: dict[str, Any], code: Code, named: str) -> None:
    with refused(code, named, "config.json: "):
        config_from_dict(metadata("lm_small")["config"] | change, "config.json")


def test_a_key_that_is_null_or_absent_has_the_default_of_the_architecture() -> None:
    public = config_to_dict(LMConfig(dep_q=8))
    # What Kyutai's constructor computes is int(4.125 * 1024), the width of the public models' depth blocks.
    assert config_from_dict(public | {"hidden_scale": 4.125, "depformer_dim_feedforward": None}, "here") == LMConfig(
        dep_q=8, depformer_dim_feedforward=4224
    )
    small = {"hidden_scale": 3, "depformer_dim": 10, "depformer_num_heads": 1, "depformer_dim_feedforward": None}
    assert config_from_dict(small, "here").depformer_dim_feedforward == 30
    for key in public:
        assert config_from_dict(public | {key: None, "conditioners": None}, "here") in (LMConfig(dep_q=8), LMConfig())
        assert config_from_dict({k: v for k, v in public.items() if k != key}, "here").dim == 4096


@pytest.mark.parametrize(("content", "code"), [("{", "unreadable"), ("[1]", "bad-record"), ("\udcff", "unreadable")])
def test_a_broken_configuration_file_is_a_user_error(tmp_path: Path, content: str, code: Code) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with refused(code, tmp_path / "config.json"):
        read_config(tmp_path / "config.json")


def test_a_saved_configuration_is_json_with_the_public_keys_alone(tmp_path: Path) -> None:
    save_native(tmp_path / "model", language_model("lm_window"))
    assert json.loads((tmp_path / "model/config.json").read_text()) == metadata("lm_window")["config"]
