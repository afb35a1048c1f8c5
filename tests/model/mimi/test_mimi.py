"""The codec against numbers of the public runtime, and streaming against one pass."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.assets import asset
from model.errors import Code
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig, PatchConfig, QuantizerConfig, SeanetConfig, TransformerConfig
from model.mimi.conv import CausalConv1d, CausalConvTranspose1d
from model.mimi.files import load_mimi, save_mimi
from model.mimi.patch import PatchBlock, PatchDecoder
from model.mimi.train_optimizer import orthogonalize
from model.mimi.train_quantizer import init_codebooks, quantize_with_gradient
from tests.paths import GOLDEN
from tests.refusals import refused

FRAME = 1920


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "mimi_small.safetensors")


@pytest.fixture(scope="module")
def golden_codec(golden: dict[str, Tensor]) -> Mimi:
    with safe_open(GOLDEN / "mimi_small.safetensors", framework="pt") as file:
        codec = Mimi(MimiConfig.from_json(file.metadata()["config"]))
    prefix = "weights."
    codec.load_state_dict({name[len(prefix) :]: t for name, t in golden.items() if name.startswith(prefix)})
    return codec.eval()


def tiny_codec(context: int = 12, patch: PatchConfig | None = None) -> Mimi:
    """Random weights, a layer scale that makes the transformers matter, and a short window."""
    torch.manual_seed(3)
    config = MimiConfig(
        seanet=SeanetConfig(dimension=32, n_filters=4),
        quantizer=QuantizerConfig(dimension=16, n_q=8, bins=64),
        transformer=TransformerConfig(
            d_model=32, num_heads=4, num_layers=2, layer_scale=1.0, context=context, dim_feedforward=64
        ),
        patch=patch,
    )
    codec = Mimi(config).eval()
    for codebook in codec.codebooks():  # centroids of the size of what they quantise, so that all are in use
        codebook.embedding_sum.mul_(0.02)
        codebook.refresh()
    return codec


def speechlike(batch: int, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    times = torch.arange(frames * FRAME) / 24000
    pitch = torch.tensor([120.0, 210.0, 330.0])[:batch, None]
    wave = torch.sin(2 * math.pi * pitch * times + 3 * torch.sin(2 * math.pi * 2.5 * times))
    return (0.3 * wave + 0.05 * torch.randn(batch, frames * FRAME, generator=generator))[:, None]


def encode_in_chunks(codec: Mimi, wav_B1S: Tensor, frames: int) -> Tensor:
    state = codec.init_encoder_state(wav_B1S.shape[0])
    return torch.cat([codec.encode_frame(state, chunk) for chunk in wav_B1S.split(frames * FRAME, dim=2)], dim=2)


def decode_in_chunks(codec: Mimi, codes_BQT: Tensor, frames: int) -> Tensor:
    state = codec.init_decoder_state(codes_BQT.shape[0])
    return torch.cat([codec.decode_frame(state, chunk) for chunk in codes_BQT.split(frames, dim=2)], dim=2)


def relative(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).norm() / wanted.norm())


def test_one_pass_codes_are_those_of_the_public_runtime(golden: dict[str, Tensor], golden_codec: Mimi) -> None:
    assert torch.equal(golden_codec.encode(golden["wav"]), golden["codes"])


def test_streamed_codes_are_those_of_the_public_runtime(golden: dict[str, Tensor], golden_codec: Mimi) -> None:
    assert torch.equal(encode_in_chunks(golden_codec, golden["wav"], 1), golden["codes_streaming"])


def test_a_partial_last_frame_is_padded_like_the_public_runtime(golden: dict[str, Tensor], golden_codec: Mimi) -> None:
    ragged = golden["wav"][..., : 10 * FRAME + 777]
    assert torch.equal(golden_codec.encode(ragged), golden["codes_ragged"])


def test_decoded_audio_is_that_of_the_public_runtime(golden: dict[str, Tensor], golden_codec: Mimi) -> None:
    assert relative(golden_codec.decode(golden["codes"]), golden["decoded"]) < 1e-3
    assert relative(decode_in_chunks(golden_codec, golden["codes"], 1), golden["decoded_streaming"]) < 1e-3


PATCH = PatchConfig(width=24, layers=2, kernel_size=5, hidden=40, hop=120)
DECODERS = pytest.mark.parametrize("patch", [None, PATCH], ids=["seanet", "patch"])


@DECODERS
@pytest.mark.parametrize("frames", [1, 3, 7])
def test_chunks_of_any_length_give_one_pass_past_the_window(frames: int, patch: PatchConfig | None) -> None:
    codec, wav = tiny_codec(patch=patch), speechlike(3, 60)  # 120 steps at 25 Hz, a window of 12
    codes = codec.encode(wav)
    assert torch.equal(encode_in_chunks(codec, wav, frames), codes)
    torch.testing.assert_close(decode_in_chunks(codec, codes, frames), codec.decode(codes), atol=1e-5, rtol=1e-4)


@DECODERS
def test_streams_that_join_reset_and_pause_at_random_give_what_each_gives_alone(patch: PatchConfig | None) -> None:
    """Four rows for 120 ticks, past the window of 12 steps: codes equal, sound to rounding."""
    codec, rng = tiny_codec(patch=patch), np.random.default_rng(1)
    rows, sources = 4, speechlike(3, 400)[:, 0]
    encoder, decoder = codec.init_encoder_state(rows), codec.init_decoder_state(rows)
    calls: list[tuple[list[Tensor], list[Tensor], list[Tensor]]] = [([], [], []) for _ in range(rows)]
    ended = []
    for _ in range(120):
        for row in range(rows):
            if rng.random() < 0.04:
                ended.append(calls[row])
                calls[row] = ([], [], [])
                encoder.reset([row])
                decoder.reset([row])
        goes = [bool(rng.random() < 0.8) for _ in range(rows)]
        starts = rng.integers(0, 399 * FRAME, rows)
        wav = torch.stack([sources[row % 3, start : start + FRAME] for row, start in enumerate(starts)])[:, None]
        codes = codec.encode_frame(encoder, wav, goes)
        made = codec.decode_frame(decoder, codes, goes)
        for row in range(rows):
            if goes[row]:
                for kept, new in zip(calls[row], (wav, codes, made), strict=True):
                    kept.append(new[row])
    ended += calls
    assert len(ended) > 12 and max(len(wavs) for wavs, _, _ in ended) > 20
    for wavs, found, sounds in ended:
        if wavs:
            alone = encode_in_chunks(codec, torch.cat(wavs, 1)[None], 1)
            assert torch.equal(torch.cat(found, 1), alone[0])
            whole = decode_in_chunks(codec, alone, 1)[0]
            torch.testing.assert_close(torch.cat(sounds, 1), whole, atol=1e-5, rtol=1e-4)


def test_long_recordings_are_the_dense_windowed_computation() -> None:
    codec, wav = tiny_codec(), speechlike(1, 130)  # several internal pieces
    with torch.no_grad():
        dense = codec.quantizer.encode(codec.latent(wav), 8)  # no state: one banded mask over all steps
        audio = codec.synthesize(codec.quantizer.decode(dense))
    assert torch.equal(codec.encode(wav), dense)
    torch.testing.assert_close(codec.decode(dense), audio, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("channels", "stride"), [(16, 8), (32, 6), (64, 5), (64, 4)])
def test_strided_convolutions_in_bf16_are_those_in_fp32_and_so_are_their_gradients(channels: int, stride: int) -> None:
    """The library's own kernels are not, for 16 channels and a stride of 8 on some processors."""
    torch.manual_seed(1)
    for layer, width in (
        (CausalConv1d(channels, 2 * channels, 2 * stride, stride=stride), channels),
        (CausalConvTranspose1d(2 * channels, channels, stride), 2 * channels),
    ):
        found = []
        for half in (False, True):
            x = torch.randn(2, width, 600 * stride, generator=torch.Generator().manual_seed(2)).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                y = layer(x)
            layer.zero_grad()
            y.float().square().mean().backward()
            gradients = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
            assert x.grad is not None
            found.append([y.detach().float(), x.grad, *gradients])
        for full, reduced in zip(*found, strict=True):
            assert relative(reduced, full) < 0.02


def test_the_patch_decoder_is_its_formula() -> None:
    """Written once more, step by step: what a step sees, and that it adds to its own samples and the next step's."""
    decoder = tiny_codec(patch=PATCH).decoder
    assert isinstance(decoder, PatchDecoder)
    latent = torch.randn(1, 32, 4, generator=torch.Generator().manual_seed(1))
    up, end = decoder.upsample.convtr.convtr, decoder.spectrum.out
    assert up.bias is not None
    steps = [up.bias.clone() for _ in range(4 * 8 + 8)]
    for t in range(4):
        for tap in range(16):
            steps[8 * t + tap] = steps[8 * t + tap] + latent[0, :, t] @ up.weight[:, :, tap]
    steps = steps[:32]
    for block in decoder.blocks:
        assert isinstance(block, PatchBlock)
        taps, bias = block.filter.conv.conv.weight[:, 0], block.filter.conv.conv.bias
        assert bias is not None
        seen = [bias.clone() for _ in steps]
        for t in range(len(steps)):
            for back in range(min(5, t + 1)):
                seen[t] = seen[t] + taps[:, 4 - back] * steps[t - back]
        normed = [(x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() for x in seen]
        hidden = [block.linear1.weight @ x + block.linear1.bias for x in normed]  # The norm's own weights are 1 and 0.
        hidden = [0.5 * h * (1 + torch.erf(h / math.sqrt(2))) for h in hidden]
        steps = [x + (block.linear2.weight @ h + block.linear2.bias) / 2 for x, h in zip(steps, hidden, strict=True)]
    wave, n = torch.zeros(33 * 120), torch.arange(240)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * n / 240)
    for t, x in enumerate(steps):
        x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        logs, phases = (end.weight @ x + end.bias).split(121)
        for k in range(121):  # A sum of cosines; those between 0 Hz and the highest have a mirror image.
            cosine = logs[k].exp() * torch.cos(2 * math.pi * k * n / 240 + phases[k])
            wave[120 * t : 120 * t + 240] += window * cosine * (1 if k in (0, 120) else 2) / 240
    with torch.no_grad():
        torch.testing.assert_close(decoder(latent)[0, 0], wave[: 32 * 120], atol=1e-5, rtol=1e-4)


def test_the_window_limits_what_a_frame_sees() -> None:
    wav = speechlike(1, 40)
    changed = wav.clone()
    changed[..., :FRAME] = 0
    with torch.no_grad():
        short, long = ((codec.latent(wav) - codec.latent(changed)).abs() for codec in (tiny_codec(8), tiny_codec(80)))
    # Two layers of 8 steps reach 14 steps = 7 frames back; the convolutions add about three frames.
    assert float(short[..., 12:].max()) == 0 and float(short[..., 3].max()) > 0
    assert float(long[..., 12:].max()) > 0


def test_a_batch_is_its_rows() -> None:
    codec, wav = tiny_codec(), speechlike(3, 8)
    codes = codec.encode(wav)
    assert torch.equal(codes, torch.cat([codec.encode(row) for row in wav.split(1)]))
    assert len(codes[0].unique()) > 10  # the test has something to compare


def test_the_full_size_has_the_public_names_and_shapes() -> None:
    with torch.device("meta"):
        shapes = {name: list(tensor.shape) for name, tensor in Mimi(MimiConfig.full()).state_dict().items()}
    lines = (GOLDEN / "mimi_parameter_names.txt").read_text().splitlines()
    assert shapes == {name: json.loads(shape) for name, shape in (line.split("\t") for line in lines)}


def test_the_public_weights_have_the_published_constants() -> None:
    silence, sine = MimiConfig.full().silence_codes, MimiConfig.full().sine_codes
    assert silence == (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
    assert sine == (430, 1268, 381, 1611, 1095, 1495, 56, 472)


def test_constants_are_steady_state_codes_and_are_stored(tmp_path: Path) -> None:
    codec = tiny_codec()
    silence, sine = codec.constants()
    times = torch.arange(20 * 24000) / 24000
    tone = (0.5 * torch.sin(2 * math.pi * 440 * times))[None, None]
    assert tuple(codec.encode(torch.zeros(1, 1, 10 * 24000))[0, :, -1].tolist()) == silence
    # The tone of 440 Hz repeats every 5 frames.
    assert sine in {tuple(frame) for frame in codec.encode(tone)[0, :, -5:].t().tolist()}
    save_mimi(codec, tmp_path)
    assert load_mimi(tmp_path).config == codec.config == replace(codec.config, silence_codes=silence, sine_codes=sine)


def test_a_saved_codec_comes_back_and_is_not_overwritten(tmp_path: Path) -> None:
    codec, wav = tiny_codec(), speechlike(1, 5)
    path = save_mimi(codec, tmp_path / "out")
    again = load_mimi(path)
    assert torch.equal(again.encode(wav), codec.encode(wav))
    assert again.fingerprint() == codec.fingerprint()
    assert not any(p.requires_grad for p in again.parameters())
    with refused("exists", path):
        save_mimi(codec, tmp_path / "out")


def test_half_precision_storage_loads_as_its_exact_values(tmp_path: Path) -> None:
    codec = tiny_codec()
    again = load_mimi(save_mimi(codec, tmp_path, dtype=torch.bfloat16))
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, codec.state_dict()[name].bfloat16().float()), name


def test_broken_files_are_named(tmp_path: Path) -> None:
    codec = tiny_codec()
    path = save_mimi(codec, tmp_path)
    tensors, metadata = load_file(path), {"config": codec.config.to_json()}
    lost = tensors.pop("downsample.conv.conv.conv.weight")
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    with refused("bad-weights", tmp_path / "a.safetensors", "1 missing: downsample.conv.conv.conv.weight"):
        load_mimi(tmp_path / "a.safetensors")
    tensors |= {"downsample.conv.conv.conv.weight": lost[:4].clone(), "more": torch.zeros(1)}
    save_file(tensors, tmp_path / "b.safetensors", metadata)
    with refused("bad-weights", "1 extra: more", "1 misshapen: downsample.conv.conv.conv.weight [4, 32, 4]"):
        load_mimi(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(path.read_bytes()[:5000])
    with refused("unreadable", tmp_path / "c.safetensors"):
        load_mimi(tmp_path / "c.safetensors")
    with refused("not-found", tmp_path / "missing", "mimi.safetensors"):
        load_mimi(tmp_path / "missing")


def test_configs_are_checked_and_survive_json() -> None:
    config = tiny_codec().config
    assert MimiConfig.from_json(config.to_json()) == config
    values = json.loads(config.to_json())
    changes: list[tuple[str, str, object, Code]] = [
        ("seanet", "norm", "weight_norm", "bad-weights"),
        ("transformer", "extra", 1, "bad-weights"),
        ("quantizer", "n_q", 1, "bad-value"),
        ("transformer", "num_layers", 10**9, "bad-value"),
        ("transformer", "layer_scale", "1", "bad-value"),
        ("seanet", "n_filters", 4.5, "bad-value"),
        ("seanet", "n_filters", True, "bad-value"),
        ("seanet", "ratios", [8, 6, 5, None], "bad-value"),
        ("seanet", "compress", 100, "bad-combination"),
    ]
    for section, key, value, code in changes:
        broken = values | {section: values[section] | {key: value}}
        with refused(code, key):
            MimiConfig.from_json(json.dumps(broken))
    with refused("bad-weights", "more"):
        MimiConfig.from_json(json.dumps(values | {"more": 1}))
    for key, wrong in (("silence_codes", [64] * 8), ("sine_codes", 3), ("frame_rate", "12.5"), ("sample_rate", None)):
        with refused("bad-value", key):
            MimiConfig.from_json(json.dumps(values | {key: wrong}))
    for text in ("{", "{}", "[]", "[" * 100_000):
        with refused("unreadable", "seanet"):
            MimiConfig.from_json(text)
    patched = replace(config, patch=PATCH)
    assert "patch" not in values and MimiConfig.from_json(patched.to_json()) == patched
    with refused("bad-combination", "patch.hop 7", "960"):
        replace(config, patch=PatchConfig(hop=7))
    with refused("bad-value", "patch.layers"):
        replace(config, patch=PatchConfig(layers=0))
    with refused("unreadable", "3 is no object"):
        MimiConfig.from_json(json.dumps(values | {"patch": 3}))
    with refused("bad-weights", "hidden"):
        MimiConfig.from_json(json.dumps(values | {"patch": {"width": 24}}))
    with refused("bad-combination", "(8, 6, 5, 2)", "12.5 Hz"):
        MimiConfig(seanet=SeanetConfig(ratios=(8, 6, 5, 2)))


def test_wrong_input_is_refused() -> None:
    codec = tiny_codec()
    with refused("bad-audio", "(1, 1, 0)"):
        codec.encode(torch.zeros(1, 1, 0))
    with refused("bad-audio", "(1, 1, 1000)", "1920"):
        codec.encode_frame(codec.init_encoder_state(1), torch.zeros(1, 1, 1000))
    for value in (-1, 64):
        with refused("bad-value", f"from {value} to {value}", "0 to 63"):
            codec.decode(torch.full((1, 8, 2), value))
    with refused("bad-value", "(1, 9, 2)"):
        codec.decode(torch.zeros(1, 9, 2, dtype=torch.int64))
    state = codec.init_encoder_state(2)
    with refused("bad-combination", "3 rows", "2"):
        codec.encode_frame(state, torch.zeros(2, 1, 1920), [True, False, True])
    with refused("bad-value", "[2]", "0..1"):
        state.reset([2])
    with refused("bad-combination", "2 streams", "1"):
        codec.decode_frame(codec.init_decoder_state(1), torch.zeros(2, 8, 1, dtype=torch.int64))


def test_codebook_training_lowers_the_error_and_passes_gradients() -> None:
    torch.manual_seed(0)
    quantizer = tiny_codec().quantizer
    latent = torch.randn(4, 32, 200) * torch.linspace(0.1, 2, 32)[:, None]
    init_codebooks(quantizer, latent)

    def error(latent_BDT: Tensor) -> float:
        half = quantizer.rvq_rest
        x_BTZ = half.project_in(latent_BDT)
        codes = half.encode(latent_BDT, 7)
        chosen = [codebook.lookup(c) for codebook, c in zip(half.codebooks, codes, strict=True)]
        return float((x_BTZ - torch.stack(chosen).sum(0)).detach().square().mean())

    fresh = latent + 1.0  # the latents have moved since the codebooks were filled
    before = error(fresh)
    for _ in range(150):
        first, rest, commit = quantize_with_gradient(quantizer, fresh, 7)
    assert error(fresh) < 0.5 * before
    fresh.requires_grad_()
    first, rest, commit = quantize_with_gradient(quantizer, fresh, 7)
    (first.sum() + rest.sum() + commit).backward()
    assert fresh.grad is not None and float(fresh.grad.abs().min()) > 0


def test_orthogonalized_updates_have_even_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((40, 200), (200, 40)):
        matrix = torch.randn(shape, generator=generator) * torch.linspace(0.05, 1, shape[1])
        values = torch.linalg.svdvals(orthogonalize(matrix).float())
        assert float(values.min()) > 0.5 and float(values.max()) < 1.4


@pytest.fixture(scope="module")
def shipped() -> Mimi:
    return load_mimi(asset("mimi_small.safetensors"))


def test_the_shipped_codec_is_small_and_has_its_constants(shipped: Mimi) -> None:
    assert asset("mimi_small.safetensors").stat().st_size < 20e6
    assert shipped.num_codebooks == 8 and shipped.config.frame_samples == FRAME
    assert shipped.config.silence_codes is not None and shipped.config.sine_codes is not None
    silence = shipped.encode(torch.zeros(1, 1, 80 * FRAME))[0, :, -1]
    assert tuple(silence.tolist()) == shipped.config.silence_codes
