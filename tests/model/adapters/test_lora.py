"""Adapters: parity with Kyutai's runtime, names, and what trains."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.adapters.lora import adapter_state_dict, adapters, cut_adapter, inject, load_adapter, merge, merged
from model.duplex import DuplexLM
from model.errors import Code, UserError
from model.kernels.recompute import MODES
from model.layers import Linear, StepLinear
from model.streaming.depth_stream import DepthStream
from model.weights.checkpoint import load_native, native_state_dict
from model.weights.native import cut_depth
from tests.model.golden import language_model, lm_config, metadata, tensors
from tests.refusals import refused


def file_adapter() -> tuple[dict[str, Tensor], float]:
    pairs = {k.removeprefix("lora."): v for k, v in tensors("lora_small").items() if k.startswith("lora.")}
    return pairs, metadata("lora_small")["scaling"]


def check_logits(model: DuplexLM) -> None:
    golden = tensors("lora_small")
    with torch.no_grad():
        logits = model.logits(golden["forward.codes"])
    for ours, mask, theirs in (
        (logits.audio_BQTV, logits.audio_mask_BQT, golden["forward.audio_logits"]),
        (logits.text_BTV[:, None], logits.text_mask_BT[:, None], golden["forward.text_logits"]),
    ):
        assert (ours - theirs)[mask].abs().max() < 1e-4


def adapted() -> DuplexLM:
    model = language_model("lora_small")
    load_adapter(model, *file_adapter())
    return model


def test_a_loaded_adapter_gives_the_logits_of_moshis_runtime() -> None:
    model = adapted()
    assert len(list(adapters(model))) > 0
    check_logits(model)


def test_a_merged_adapter_gives_the_same_logits_and_leaves_a_plain_model() -> None:
    model = adapted()
    merge(model)
    assert not list(adapters(model))
    assert native_state_dict(model).keys() == native_state_dict(language_model("lora_small")).keys()
    check_logits(model)


def test_unmerging_gives_back_base_and_adapters_bit_by_bit() -> None:
    model = adapted().to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with merged(model):
        assert not list(adapters(model))
        inside = native_state_dict(model)
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == {
        n: t.dtype for n, t in before.items()
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    merge(model)  # for good: the weights that the block had
    assert native_state_dict(model).keys() == inside.keys()
    assert all(torch.equal(tensor, inside[name]) for name, tensor in native_state_dict(model).items())
    assert not torch.equal(model.text_head.weight, before["text_head.base.weight"])


def test_an_error_while_merged_still_gives_the_adapters_back() -> None:
    model = adapted()
    with pytest.raises(ZeroDivisionError), merged(model):
        check_logits(model)
        raise ZeroDivisionError
    assert adapter_state_dict(model).keys() == file_adapter()[0].keys()


def test_saved_adapter_tensors_equal_the_file() -> None:
    ours, (theirs, _) = adapter_state_dict(adapted()), file_adapter()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_depth_steps_one_by_one_equal_the_parallel_pass_with_adapters() -> None:
    model = adapted()
    torch.manual_seed(1)
    hidden_NI, tokens_QN = torch.randn(5, model.config.dim), torch.randint(0, 30, (8, 5))
    with torch.no_grad():
        expected_QNV = model.depth.heads(model.depth(hidden_NI, tokens_QN))
        stream = DepthStream(model.depth, 8)
        cache = stream.init_cache(5, device="cpu", dtype=torch.float32)

        def forced(k: int, logits_BV: Tensor) -> Tensor:
            assert torch.allclose(logits_BV, expected_QNV[k], atol=1e-5)
            return tokens_QN[k + 1] if k < 7 else tokens_QN[0]

        stream.generate(hidden_NI, tokens_QN[0], forced, cache)


def test_fresh_adapters_change_nothing_and_only_they_train() -> None:
    model = language_model("lora_small")
    codes = tensors("lora_small")["forward.codes"]
    weights = torch.ones(codes.shape)
    before = model(codes, weights).loss_K.detach()
    layers = inject(model, 3, 2.0, [".*"])
    assert layers * 2 == len(file_adapter()[0])
    sums = model(codes, weights)
    assert torch.allclose(sums.loss_K, before, rtol=1e-6)
    sums.loss_K.sum().backward()
    for name, parameter in model.named_parameters():
        is_adapter = name.endswith(("lora_A", "lora_B"))
        assert parameter.requires_grad == is_adapter, name
        assert (parameter.grad is not None) == is_adapter, name
        if name.endswith("lora_B"):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_adapter_gradients_equal_those_of_the_written_out_sum() -> None:
    model = adapted()
    codes = tensors("lora_small")["forward.codes"]
    torch.manual_seed(2)
    weights = torch.rand(codes.shape)
    model(codes, weights).loss_K.sum().backward()
    # second implementation: one weight W + scaling B A, differentiated, then the chain rule to A and B
    plain = adapted()
    merge(plain)
    plain.requires_grad_(True)
    plain(codes, weights).loss_K.sum().backward()
    for path, module in adapters(model):
        grad = plain.get_submodule(path).get_parameter("weight").grad
        assert grad is not None and module.lora_A.grad is not None and module.lora_B.grad is not None
        down = module.scaling * module.lora_B.detach().transpose(-1, -2) @ grad
        up = module.scaling * grad @ module.lora_A.detach().transpose(-1, -2)
        assert torch.allclose(module.lora_A.grad, down, rtol=1e-3, atol=1e-4), path
        assert torch.allclose(module.lora_B.grad, up, rtol=1e-3, atol=1e-4), path


def test_patterns_choose_layers_by_native_name() -> None:
    model = language_model("lora_small")
    assert inject(model, 2, 1.0, [r"^transformer\..*self_attn", r"^linears\."]) == 2 * 2 + 8
    names = adapter_state_dict(model)
    assert names["transformer.layers.1.self_attn.in_projs.0.lora_A.weight"].shape == (2, 32)
    assert names["linears.7.lora_B.weight"].shape == (32, 2)


def test_base_weights_keep_their_native_names_beside_adapters() -> None:
    base, model = language_model("lora_small"), adapted()
    ours, theirs = native_state_dict(model), native_state_dict(base)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_complete_file_has_zero_pairs_for_all_other_layers() -> None:
    model = language_model("lora_small")
    inject(model, 4, 2.0, ["text_linear"])
    names = adapter_state_dict(model, complete=True)
    assert {name: tensor.shape for name, tensor in names.items()} == {
        name: tensor.shape for name, tensor in file_adapter()[0].items()
    }
    assert names["linears.0.lora_A.weight"].abs().sum() == 0 < names["text_linear.lora_A.weight"].abs().sum()


def test_an_adapter_of_16_steps_cut_to_8_gives_the_logits_of_the_agents_steps() -> None:
    model = language_model("lm_small")
    assert model.config.dep_q == 16
    torch.manual_seed(3)
    inject(model, 3, 2.0, [".*"])
    for _, module in adapters(model):
        torch.nn.init.normal_(module.lora_B, std=0.1)
    small = DuplexLM(replace(model.config, dep_q=8))
    load_native(small, cut_depth(native_state_dict(model)))
    cut = cut_adapter(adapter_state_dict(model))
    load_adapter(small, cut, 2.0)
    codes = tensors("lm_small")["forward.codes"]
    with torch.no_grad():
        ours, full = small.logits(codes), model.logits(codes)
    torch.testing.assert_close(ours.audio_BQTV, full.audio_BQTV[:, :8])
    torch.testing.assert_close(ours.text_BTV, full.text_BTV)
    assert cut_adapter(cut).keys() == cut.keys()  # 8 steps have nothing to lose


@pytest.mark.parametrize("mode", MODES)
def test_no_gradient_of_a_frozen_weight_is_ever_computed(mode: str) -> None:
    codes = tensors("lora_small")["forward.codes"]
    weights = torch.ones(codes.shape)

    def flops(model: DuplexLM) -> int:
        model.set_activation_checkpointing(mode)
        # torch's own count of all matrix products, plus those that go to oneDNN
        onednn = {torch.ops.mkldnn._linear_pointwise: lambda x, w, *_, **__: 2 * x[0] * x[1] * w[0]}
        with FlopCounterMode(display=False, custom_mapping=onednn) as counter:
            model(codes, weights).loss_K.sum().backward()
        return counter.get_total_flops()

    lora = language_model("lora_small")
    inject(lora, 1, 2.0, ["^transformer.layers.0.self_attn.in_projs"])  # gradients must go all the way down to it
    maps = [m for m in lora.modules() if isinstance(m, Linear | StepLinear)]
    of_weights = 2 * codes.shape[0] * codes.shape[2] * sum(m.weight.numel() for m in maps)
    assert flops(language_model("lora_small")) - flops(lora) >= of_weights
    for name, parameter in lora.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name


def test_recomputed_blocks_give_adapters_the_same_gradients_though_frozen_embeddings_need_none() -> None:
    codes = tensors("lora_small")["forward.codes"]
    weights = torch.ones(codes.shape)
    kept, recomputed = adapted(), adapted()
    recomputed.set_activation_checkpointing("full")
    assert not recomputed.embed(recomputed.delayed_inputs(codes)[0]).requires_grad
    for model in (kept, recomputed):
        model(codes, weights).loss_K.sum().backward()
    for (path, ours), (_, theirs) in zip(adapters(recomputed), adapters(kept), strict=True):
        assert ours.lora_B.grad is not None and ours.lora_A.grad is not None
        assert theirs.lora_B.grad is not None and theirs.lora_A.grad is not None
        torch.testing.assert_close(ours.lora_B.grad, theirs.lora_B.grad, msg=path)
        torch.testing.assert_close(ours.lora_A.grad, theirs.lora_A.grad, msg=path)


def test_an_adapter_runs_on_a_bf16_base_under_autocast() -> None:
    codes = tensors("lora_small")["forward.codes"]
    weights = torch.ones(codes.shape)
    expected = adapted()(codes, weights)
    model = adapted()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = model(codes, weights)
    sums.loss_K.sum().backward()
    assert torch.allclose(sums.loss_K, expected.loss_K, rtol=0.03)
    grads = [module.lora_A.grad for _, module in adapters(model)]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with refused("unknown-name", "'nonsense'", "transformer.layers.0"):
        inject(language_model("lora_small"), 2, 1.0, [".*", "nonsense"])


@pytest.mark.parametrize(
    ("patterns", "rank", "code", "named"),
    [
        (["("], 2, "bad-value", "'('"),
        ([r"linears\.3"], 2, "bad-combination", "match linears.3 but not linears.0"),
        ([".*"], 0, "bad-value", "rank=0"),
    ],
)
def test_bad_adapter_settings_are_refused(patterns: list[str], rank: int, code: Code, named: str) -> None:
    with refused(code, named):
        inject(DuplexLM(lm_config("lora_small")), rank, 1.0, patterns)


CHANGES: list[tuple[dict[str, Tensor], str]] = [
    ({"linears.8.lora_A.weight": torch.zeros(4, 16)}, "1 extra: linears.8.lora_A.weight"),
    ({"text_linear.lora_B.weight": torch.zeros(41, 4)}, "text_linear.lora_B.weight [41, 4] instead of [40, 4]"),
    ({"linears.0.lora_A.weight": torch.tensor(1.0)}, "misshapen: linears.0.lora_A.weight []"),
    ({"text_emb.weight": torch.zeros(2, 2)}, "text_emb.weight"),
    ({"text_linear.lora_A.weight": torch.full((4, 32), torch.nan)}, "text_linear.lora_A.weight"),
]


@pytest.mark.parametrize(("change", "named"), CHANGES)
def test_an_adapter_file_that_does_not_fit_names_the_tensor(change: dict[str, Tensor], named: str) -> None:
    pairs, scaling = file_adapter()
    with refused("bad-weights", named):
        load_adapter(language_model("lora_small"), pairs | change, scaling)


def test_an_adapter_file_that_lacks_a_tensor_or_all_is_refused() -> None:
    pairs, scaling = file_adapter()
    del pairs["linears.0.lora_B.weight"]
    with refused("bad-weights", "1 missing: linears.0.lora_B.weight"):
        load_adapter(language_model("lora_small"), pairs, scaling)
    with refused("bad-weights", "empty"):
        load_adapter(language_model("lora_small"), {}, scaling)


def test_a_model_with_adapters_takes_no_others() -> None:
    with refused("bad-combination", "scaling=1.0", "2.0"):
        load_adapter(adapted(), file_adapter()[0], 1.0)
    with refused("bad-combination", "merge"):
        inject(adapted(), 2, 1.0, [".*"])


def test_a_model_that_refused_an_adapter_file_is_as_it_was() -> None:
    pairs, scaling = file_adapter()
    bad = pairs | {"text_linear.lora_B.weight": torch.zeros(41, 4)}
    plain = language_model("lora_small")
    with pytest.raises(UserError):
        load_adapter(plain, bad, scaling)
    assert not list(adapters(plain)) and all(parameter.requires_grad for parameter in plain.parameters())
    model = adapted()
    with pytest.raises(UserError):
        load_adapter(model, {name: tensor + 1 for name, tensor in bad.items()}, scaling)
    check_logits(model)
