"""SEANet: the convolutional encoder and decoder of Mimi."""

# Shapes: B batch, C channels, T frames (steps of a layer's own rate), S samples, D width

from torch import Tensor, nn

from model.mimi.config import SeanetConfig
from model.mimi.conv import CausalConv1d, CausalConvTranspose1d, ConvState


class ResidualBlock(nn.Module):
    """x + conv1(ELU(conv3(ELU(x)))), with half the channels in between."""

    def __init__(self, channels: int, config: SeanetConfig, dilation: int) -> None:
        super().__init__()
        hidden = channels // config.compress
        self.block = nn.ModuleList(
            [
                nn.ELU(),
                CausalConv1d(channels, hidden, config.residual_kernel_size, dilation=dilation),
                nn.ELU(),
                CausalConv1d(hidden, channels, 1),
            ]
        )

    def forward(self, x_BCT: Tensor, state: ConvState | None = None) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        return x_BCT + run_layers(self.block, x_BCT, state)


def run_layers(layers: nn.ModuleList, x_BCT: Tensor, state: ConvState | None) -> Tensor:
    """Applies layers in order, and hands the streaming state to those that have one."""
    for layer in layers:
        x_BCT = layer(x_BCT) if isinstance(layer, nn.ELU) else layer(x_BCT, state)
    return x_BCT


class SeanetEncoder(nn.Module):
    """The convolutional encoder, [B, 1, S] -> [B, D, T], T = S / 960 at the public ratios."""

    def __init__(self, config: SeanetConfig) -> None:
        super().__init__()
        channels = config.n_filters
        layers: list[nn.Module] = [CausalConv1d(1, channels, config.kernel_size)]
        for ratio in reversed(config.ratios):
            layers += _residual_layers(channels, config)
            layers += [nn.ELU(), CausalConv1d(channels, 2 * channels, 2 * ratio, stride=ratio)]
            channels *= 2
        layers += [nn.ELU(), CausalConv1d(channels, config.dimension, config.last_kernel_size)]
        self.model = nn.ModuleList(layers)

    def forward(self, wav_B1S: Tensor, state: ConvState | None = None) -> Tensor:
        """The encoded audio, [B, D, T]."""
        return run_layers(self.model, wav_B1S, state)


class SeanetDecoder(nn.Module):
    """The mirror of the encoder, [B, D, T] -> [B, 1, S]."""

    def __init__(self, config: SeanetConfig) -> None:
        super().__init__()
        channels = config.n_filters * 2 ** len(config.ratios)
        layers: list[nn.Module] = [CausalConv1d(config.dimension, channels, config.kernel_size)]
        for ratio in config.ratios:
            layers += [nn.ELU(), CausalConvTranspose1d(channels, channels // 2, ratio)]
            channels //= 2
            layers += _residual_layers(channels, config)
        layers += [nn.ELU(), CausalConv1d(channels, 1, config.last_kernel_size)]
        self.model = nn.ModuleList(layers)

    def forward(self, latent_BDT: Tensor, state: ConvState | None = None) -> Tensor:
        """The decoded audio, [B, 1, S]."""
        return run_layers(self.model, latent_BDT, state)


def _residual_layers(channels: int, config: SeanetConfig) -> list[nn.Module]:
    return [ResidualBlock(channels, config, config.dilation_base**n) for n in range(config.n_residual_layers)]
