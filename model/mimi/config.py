"""Sizes of the Mimi codec under the keys of Kyutai's loader, from and to JSON."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from model.config import FRAME_RATE, SAMPLE_RATE
from model.errors import UserError

STRIDE = 2
"""Stride of the learnt down-sampling behind the encoder's transformer."""

FIXED_SEANET: dict[str, Any] = {
    "channels": 1,
    "causal": True,
    "activation": "ELU",
    "disable_norm_outer_blocks": 0,
    "norm": "none",
    "pad_mode": "constant",
    "true_skip": True,
}
"""Values of the published architecture, the only one that this code knows; other runtimes need them in the JSON."""
FIXED_TRANSFORMER: dict[str, Any] = {
    "causal": True,
    "conv_layout": True,
    "gating": "none",
    "norm": "layer_norm",
    "positional_embedding": "rope",
}
"""The same for the transformers."""

RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "seanet": {
        "dimension": (1, 2**14), "n_filters": (1, 2**10), "n_residual_layers": (0, 2**5), "compress": (1, 2**10),
        "dilation_base": (1, 2**5), "kernel_size": (1, 2**8), "residual_kernel_size": (1, 2**8),
        "last_kernel_size": (1, 2**8),
    },
    "quantizer": {"dimension": (1, 2**14), "n_q": (2, 2**8), "bins": (1, 2**16)},
    "transformer": {
        "d_model": (1, 2**14), "num_heads": (1, 2**10), "num_layers": (1, 2**8), "layer_scale": (-1e6, 1e6),
        "context": (1, 2**17), "max_period": (1, 10**9), "dim_feedforward": (1, 2**17),
    },
    "patch": {
        "width": (1, 2**14), "layers": (1, 2**8), "kernel_size": (1, 2**8), "hidden": (1, 2**17), "hop": (1, 2**14),
    },
}  # fmt: skip
"""Sizes that are believed, by section. They lie far above those of any codec, and keep a damaged file from work without
end."""
MAX_RATIOS = 10
"""How many strides are believed, and how large each may be."""

Section = TypeVar("Section", "SeanetConfig", "QuantizerConfig", "TransformerConfig", "PatchConfig")


@dataclass(kw_only=True, frozen=True)
class SeanetConfig:
    """Sizes of the convolutional encoder and decoder; `ratios` are the decoder's strides in order."""

    dimension: int = 512
    n_filters: int = 64
    n_residual_layers: int = 1
    compress: int = 2
    dilation_base: int = 2
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    ratios: tuple[int, ...] = (8, 6, 5, 4)


@dataclass(kw_only=True, frozen=True)
class QuantizerConfig:
    """Sizes of the split residual quantiser: 1 semantic and n_q - 1 acoustic codebooks of `bins` entries."""

    dimension: int = 256
    n_q: int = 32
    bins: int = 2048


@dataclass(kw_only=True, frozen=True)
class TransformerConfig:
    """Sizes of the two transformers at 25 Hz; `context` counts the current step."""

    d_model: int = 512
    num_heads: int = 8
    num_layers: int = 8
    layer_scale: float = 0.01
    context: int = 250
    max_period: int = 10000
    dim_feedforward: int = 2048


@dataclass(kw_only=True, frozen=True)
class PatchConfig:
    """Sizes of the patch decoder, whose steps are `hop` samples."""

    width: int = 256
    layers: int = 4
    kernel_size: int = 7
    hidden: int = 768
    hop: int = 240


@dataclass(kw_only=True, frozen=True)
class MimiConfig:
    """Hyper-parameters of a codec and its two constant frames.

    Raises: UserError if the sizes contradict each other.
    Source: `mimi_config` keys of Kyutai's loader; the constants are the published ones of the public weights.
    """

    sample_rate: int = SAMPLE_RATE
    frame_rate: float = FRAME_RATE
    seanet: SeanetConfig = field(default_factory=SeanetConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    patch: PatchConfig | None = None
    """Sizes of the patch decoder that stands in for SEANet's, which no public runtime knows; None: SEANet's."""
    silence_codes: tuple[int, ...] | None = None
    """Codes of a frame of digital silence, or None if they are not computed yet."""
    sine_codes: tuple[int, ...] | None = None
    """Codes of a frame of a 440 Hz sine of amplitude 0.5, or None if they are not computed yet."""

    def __post_init__(self) -> None:
        ratios = self.seanet.ratios
        if not _are_whole(ratios, 1, 2**10) or not 1 <= len(ratios) <= MAX_RATIOS:
            raise UserError(f"ratios {ratios!r:.60}: give 1 to {MAX_RATIOS} whole numbers", code="bad-value")
        object.__setattr__(self.seanet, "ratios", tuple(ratios))
        for section, ranges in RANGES.items():
            sizes = getattr(self, section)
            for name, (low, high) in ranges.items() if sizes is not None else ():
                value = getattr(sizes, name)
                if not _is_number(value, whole=isinstance(low, int)) or not low <= value <= high:
                    kind = "a whole number" if isinstance(low, int) else "a number"
                    raise UserError(
                        f"{section}.{name} is {value!r:.60}: must be {kind} from {low} to {high}", code="bad-value"
                    )
        for name in ("silence_codes", "sine_codes"):
            codes = getattr(self, name)
            if codes is not None and not _are_whole(codes, 0, self.quantizer.bins - 1):
                raise UserError(
                    f"{name} is {codes!r:.60}: give a list of whole numbers from 0 to {self.quantizer.bins - 1}",
                    code="bad-value",
                )
            object.__setattr__(self, name, None if codes is None else tuple(codes))
        if not _is_number(self.sample_rate, whole=True) or not _is_number(self.frame_rate, whole=False):
            raise UserError(
                f"sample_rate {self.sample_rate!r:.60} and frame_rate {self.frame_rate!r:.60}: give numbers",
                code="bad-value",
            )
        if self.seanet.compress > self.seanet.n_filters:
            raise UserError(
                f"compress {self.seanet.compress} leaves nothing of n_filters {self.seanet.n_filters}: make it smaller",
                code="bad-combination",
            )
        heads, width = self.transformer.num_heads, self.transformer.d_model
        if width % heads or (width // heads) % 2:
            raise UserError(
                f"d_model {width} with {heads} heads: the head width must be whole and even", code="bad-combination"
            )
        if width != self.seanet.dimension:
            raise UserError(
                f"d_model {width} and seanet dimension {self.seanet.dimension}: they must be equal",
                code="bad-combination",
            )
        if self.frame_samples * self.frame_rate != self.sample_rate:
            raise UserError(
                f"ratios {self.seanet.ratios} give frames of {self.frame_samples} samples, not {self.frame_rate} Hz: "
                "choose ratios that do",
                code="bad-combination",
            )
        if self.patch is not None and math.prod(ratios) % self.patch.hop:
            raise UserError(
                f"patch.hop {self.patch.hop} with ratios {ratios}: it must divide {math.prod(ratios)} samples",
                code="bad-combination",
            )

    @classmethod
    def full(cls) -> "MimiConfig":
        """The sizes of the public weights, 79.3 M parameters, with their published constant frames."""
        return cls(
            silence_codes=(948, 243, 1178, 546, 1736, 1030, 1978, 2008),
            sine_codes=(430, 1268, 381, 1611, 1095, 1495, 56, 472),
        )

    @property
    def frame_samples(self) -> int:
        """Samples of one frame (1920 at 24 kHz and 12.5 Hz)."""
        return STRIDE * math.prod(self.seanet.ratios)

    @property
    def patches_a_step(self) -> int:
        """Steps of the patch decoder in one of the transformer (4 at a hop of 240 samples)."""
        assert self.patch is not None
        return math.prod(self.seanet.ratios) // self.patch.hop

    def to_json(self) -> str:
        """JSON with Kyutai's keys, the fixed ones included, and the two constant frames."""
        width = self.seanet.dimension
        return json.dumps(
            {
                "sample_rate": self.sample_rate,
                "channels": 1,
                "frame_rate": self.frame_rate,
                "seanet": asdict(self.seanet) | FIXED_SEANET,
                "quantizer": asdict(self.quantizer) | {"input_dimension": width, "output_dimension": width},
                "transformer": asdict(self.transformer)
                | FIXED_TRANSFORMER
                | {"input_dimension": width, "output_dimensions": [width]},
                "silence_codes": self.silence_codes,
                "sine_codes": self.sine_codes,
            }
            | ({} if self.patch is None else {"patch": asdict(self.patch)})
        )

    @classmethod
    def from_json(cls, text: str) -> "MimiConfig":
        """Reads what `to_json` writes, or Kyutai's config without the constants.

        Raises: UserError for broken JSON ("unreadable"), an unknown key, or a fixed key with another value
        ("bad-weights").
        """
        try:
            values = _object(json.loads(text))
            seanet, quantizer, transformer = (
                _object(values.pop(key)) for key in ("seanet", "quantizer", "transformer")
            )
            patch = None if (sizes := values.pop("patch", None)) is None else _object(sizes)
        except (ValueError, KeyError, TypeError, RecursionError) as why:
            raise UserError(
                f"Mimi config is not readable ({why!r}): it needs seanet, quantizer and transformer", code="unreadable"
            ) from why
        width = seanet.get("dimension", None)
        widths = {"input_dimension": width, "output_dimension": width}
        _take_fixed("mimi", values, {"channels": 1})
        _take_fixed("seanet", seanet, FIXED_SEANET)
        _take_fixed("quantizer", quantizer, widths)
        _take_fixed(
            "transformer", transformer, FIXED_TRANSFORMER | {"input_dimension": width, "output_dimensions": [width]}
        )
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"Mimi config has unknown keys {unknown}: known are {sorted(known)}", code="bad-weights")
        return cls(
            seanet=_section(SeanetConfig, seanet),
            quantizer=_section(QuantizerConfig, quantizer),
            transformer=_section(TransformerConfig, transformer),
            patch=None if patch is None else _section(PatchConfig, patch),
            **values,
        )


def _object(value: Any) -> dict[str, Any]:
    """A copy of a JSON object. Raises TypeError for another value."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.60} is no object")
    return dict(value)


def _is_number(value: Any, *, whole: bool) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


def _are_whole(values: Any, low: int, high: int) -> bool:
    """True for a list of whole numbers within a range."""
    return isinstance(values, (list, tuple)) and all(_is_number(v, whole=True) and low <= v <= high for v in values)


def _take_fixed(section: str, values: dict[str, Any], fixed: dict[str, Any]) -> None:
    for key, wanted in fixed.items():
        if key in values and values.pop(key) != wanted:
            raise UserError(
                f"Mimi config {section}.{key} must be {wanted!r}: other variants are not supported", code="bad-weights"
            )


def _section(kind: type[Section], values: dict[str, Any]) -> Section:
    known = {f.name for f in fields(kind)}
    if set(values) != known:
        raise UserError(
            f"Mimi config keys {sorted(set(values) ^ known)} of {kind.__name__}: give exactly {sorted(known)}",
            code="bad-weights",
        )
    return kind(**values)
