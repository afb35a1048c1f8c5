"""Makes the codec that a run trains, from scratch or from a Mimi, and writes it as a file."""

# Shapes: V vocabulary (of a codebook), Z quantiser width

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.errors import UserError
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig, PatchConfig, QuantizerConfig, SeanetConfig, TransformerConfig
from model.mimi.conv import CausalConv1d
from model.mimi.files import load_mimi, write_mimi
from model.mimi.patch import PatchDecoder
from model.mimi.seanet import ResidualBlock
from model.weights.sources import codec_path
from ppx_train.config.codec import CodecModel, CodecRun

HEAD_WIDTH = 32
SMALL: dict[str, Any] = {"filters": 16, "ratios": [4, 5, 6, 8], "width": 256, "layers": 3, "context": 50, "bins": 512}
"""Sizes from scratch. The stride of 8 first takes a third fewer operations than the public order."""


def make_codec(run: CodecRun) -> Mimi:
    """The codec of `run` before its first step; from scratch it depends on run.seed alone.

    Raises: UserError for weights that are missing or broken, or sizes that contradict them or each other.
    """
    settings = run.model
    torch.manual_seed(run.seed)
    if settings.init == "scratch":
        codec = Mimi(small_config(settings))
        init_weights(codec)
        return codec
    codec = load_mimi(codec_path(settings.init))
    seanet, transformer = codec.config.seanet, codec.config.transformer
    held = {
        "filters": seanet.n_filters,
        "ratios": list(seanet.ratios),
        "width": seanet.dimension,
        "layers": transformer.num_layers,
        "context": transformer.context,
        "bins": codec.config.quantizer.bins,
        "decoder": "seanet" if codec.config.patch is None else "patch",
    }
    for name, size in held.items():
        asked = getattr(settings, name)
        if asked is not None and asked != size:
            raise UserError(
                f"model.{name}={asked}, but the codec of model.init={settings.init} has {size}: leave it out",
                code="bad-combination",
            )
    # The constants are computed anew from the trained weights.
    codec.config = replace(codec.config, silence_codes=None, sine_codes=None)
    return codec.train().requires_grad_(True)


def small_config(settings: CodecModel) -> MimiConfig:
    """The sizes of a codec from scratch. Raises: UserError if they contradict each other."""
    given = {name: getattr(settings, name) for name in SMALL}
    sizes = {name: SMALL[name] if value is None else value for name, value in given.items()}
    for name, value in sizes.items():
        if min(value if isinstance(value, list) else [value]) < 1:
            raise UserError(f"model.{name}={value}: must be above 0", code="bad-value")
    width = sizes["width"]
    if width % HEAD_WIDTH:
        raise UserError(f"model.width={width}: give a multiple of {HEAD_WIDTH}", code="bad-value")
    return MimiConfig(
        seanet=SeanetConfig(dimension=width, n_filters=sizes["filters"], ratios=tuple(sizes["ratios"])),
        quantizer=QuantizerConfig(dimension=width // 4, n_q=8, bins=sizes["bins"]),
        transformer=TransformerConfig(
            d_model=width,
            num_heads=width // HEAD_WIDTH,
            num_layers=sizes["layers"],
            layer_scale=0.1,
            context=sizes["context"],
            dim_feedforward=4 * width,
        ),
        patch=PatchConfig(width=width, hidden=3 * width) if settings.decoder == "patch" else None,
    )


def init_weights(codec: Mimi) -> None:
    """Keeps the size of the signal through the convolutions, with speech scaled up to about 1 on the way in.

    With the library's default it shrinks a hundredfold to the latent, and nothing was learnt in 1,300 steps.
    """
    for name, module in codec.named_modules():
        if isinstance(module, nn.Conv1d):
            gain = 1.0 if name.endswith("_proj") or module.bias is None else 1.4  # 1.4 makes up for the ELU.
            nn.init.normal_(module.weight, std=gain / math.sqrt(module.weight[0].numel()))
        elif isinstance(module, nn.ConvTranspose1d) and module.groups == 1:
            nn.init.normal_(module.weight, std=1.4 / math.sqrt(2 * module.in_channels))  # Two taps meet in an output.
        elif isinstance(module, nn.ConvTranspose1d):
            nn.init.constant_(module.weight, 0.5)  # The mean of two neighbours.
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    first = codec.encoder.model[0]
    assert isinstance(first, CausalConv1d)
    with torch.no_grad():
        first.conv.conv.weight.mul_(10)
        if isinstance(codec.decoder, PatchDecoder):
            head = codec.decoder.spectrum.out
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            head.bias[: len(head.bias) // 2] = -2.0  # Magnitudes of about a hundredth of full scale.
            return
        last = codec.decoder.model[-1]
        assert isinstance(last, CausalConv1d)
        for block in codec.decoder.model:
            if isinstance(block, ResidualBlock):  # Otherwise the signal grows tenfold through the decoder.
                end = block.block[-1]
                assert isinstance(end, CausalConv1d)
                end.conv.conv.weight.mul_(0.2)
        last.conv.conv.weight.mul_(0.03)


def write_codec(codec: Mimi, path: Path) -> None:
    """Writes the codec in half precision, its constants computed with the rounded weights."""
    rounded = Mimi(replace(codec.config, silence_codes=None, sine_codes=None)).eval()
    rounded.load_state_dict({name: tensor.cpu() for name, tensor in codec.state_dict().items()})
    for codebook in rounded.codebooks():  # Centroids over counts of one round better than sums over counts.
        codebook.embedding_sum.copy_(codebook.centroids_VZ)
        codebook.cluster_usage.fill_(1)
    rounded.load_state_dict({name: tensor.half().float() for name, tensor in rounded.state_dict().items()})
    write_mimi(rounded, path, torch.float16)
