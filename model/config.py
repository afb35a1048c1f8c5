"""Sizes, special ids and frames of the language model (public: kyutai/moshiko, nvidia/personaplex-7b-v1).

Field names are the keys of Kyutai's `config.json`, so that loading and exporting need no translation.
"""

from dataclasses import asdict, dataclass, field
from math import floor
from typing import Any

from model.errors import UserError

FRAME_RATE = 12.5
"""Frames a second: one frame is 80 ms."""
SAMPLE_RATE = 24000
"""Samples a second of all audio that the codec reads and writes."""
FRAME_SAMPLES = 1920
"""Samples of one frame."""
ZERO_ID = -1
"""An id that adds no embedding and carries no loss."""
UNGENERATED_ID = -2
"""Stands for a token that the streaming runtime has not produced yet."""
DELAYS = (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)
"""Frames by which PersonaPlex delays each of its 17 streams: all but the text and the semantic codebooks by one."""

RANGES = {
    "dim": (1, 2**16),
    "num_heads": (0, 2**10),
    "num_layers": (1, 2**10),
    "hidden_scale": (0, 2**7),
    "context": (1, 2**17),
    "max_period": (1, 10**9),
    "text_card": (1, 2**20),
    "existing_text_padding_id": (0, 2**20),
    "card": (1, 2**16),
    "depformer_dim": (1, 2**16),
    "depformer_dim_feedforward": (0, 2**20),
    "depformer_num_heads": (0, 2**10),
    "depformer_num_layers": (1, 2**10),
}
"""Sizes that are believed. They lie far above those of any model, and keep a damaged file from filling the memory."""
MAX_DELAY = 1000
"""Frames by which a stream may be delayed."""


def frames_of(seconds: float) -> int:
    """Number of frames that hold audio of this length; the last one may be filled in part only.

    The length is rounded to whole samples first. ceil(seconds * FRAME_RATE) without rounding is one too high for 142 of
    the 2,500 lengths of up to 200 s that are whole frames: 0.56 s, for one, times 12.5 is 7.000000000000001.
    Units: seconds of audio at SAMPLE_RATE.
    """
    return -(-round(seconds * SAMPLE_RATE) // FRAME_SAMPLES)


def frame_at(seconds: float) -> int:
    """Number of the frame in which a moment lies, counted from 0.

    A moment that lies less than a millionth of a frame before an edge counts as the edge: 2.32 s, where frame 29
    begins, times 12.5 is 28.999999999999996.
    """
    return floor(seconds * FRAME_RATE + 1e-6)


@dataclass(kw_only=True)
class LMConfig:
    """Hyper-parameters of the temporal and depth transformers.

    Stream 0 is the agent's text, streams 1..8 are the agent's audio codebooks and 9..16 the user's.
    Raises: UserError if the sizes contradict each other.
    Source: public `config.json` keys. The fixed facts of the architecture (SiLU gating, RMSNorm in fp32, interleaved
    rotary positions, no biases) are not settings.
    """

    dim: int = 4096
    num_heads: int = 32
    num_layers: int = 32
    hidden_scale: float = 4.125
    context: int = 3000
    """Attention window in frames, the current one included."""
    max_period: int = 10000
    """Longest period of the rotary positions, in frames."""
    text_card: int = 32000
    """Pieces of the text vocabulary."""
    existing_text_padding_id: int = 3
    n_q: int = 16
    """Audio codebooks of both speakers."""
    dep_q: int = 16
    """Depth steps: 16 in training (agent then user), 8 in Moshi's public weights and for serving."""
    card: int = 2048
    """Entries of an audio codebook."""
    depformer_dim: int = 1024
    depformer_dim_feedforward: int = 4224
    depformer_num_heads: int = 16
    depformer_num_layers: int = 6
    delays: list[int] = field(default_factory=lambda: list(DELAYS))
    """Frames by which the model delays each of the 17 streams."""

    def __post_init__(self) -> None:
        self.delays = list(self.delays)
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:  # NaN is in no range.
                raise UserError(f"{name}={value}: must be from {low} to {high}", code="bad-value")
        if not all(0 <= delay <= MAX_DELAY for delay in self.delays):
            raise UserError(f"delays={self.delays}: must be from 0 to {MAX_DELAY}", code="bad-value")
        for width, heads in ((self.dim, self.num_heads), (self.depformer_dim, self.depformer_num_heads)):
            if heads <= 0 or width % heads or (width // heads) % 2:
                raise UserError(
                    f"width {width} with {heads} heads: the head width must be whole and even", code="bad-combination"
                )
        if self.n_q != 16:
            raise UserError(
                f"n_q={self.n_q}: this architecture has 16 audio streams (8 agent, 8 user)", code="bad-value"
            )
        if self.dep_q not in (8, 16):
            raise UserError(f"dep_q={self.dep_q}: use 16 (training) or 8 (serving, Moshi's weights)", code="bad-value")
        if len(self.delays) != self.num_streams:
            raise UserError(
                f"{len(self.delays)} delays for {self.num_streams} streams: give one each", code="bad-combination"
            )
        if self.feedforward_hidden < 1 or self.depformer_hidden < 1:
            raise UserError(
                f"hidden_scale={self.hidden_scale} and depformer_dim_feedforward={self.depformer_dim_feedforward}: "
                "a feed-forward of no width, make them larger",
                code="bad-combination",
            )

    @property
    def num_streams(self) -> int:
        """17 streams: the text and the audio codebooks of both speakers."""
        return self.n_q + 1

    @property
    def num_codebooks(self) -> int:
        """Audio codebooks of one speaker, 8."""
        return self.n_q // 2

    @property
    def agent_audio(self) -> slice:
        """Streams of the agent's audio, as an index into the 17 of a [.., K, T] tensor."""
        return slice(1, 1 + self.num_codebooks)

    @property
    def user_audio(self) -> slice:
        """Streams of the user's audio, as an index into the 17 of a [.., K, T] tensor."""
        return slice(1 + self.num_codebooks, self.num_streams)

    @property
    def text_padding_id(self) -> int:
        """Id PAD of a frame in which the agent says no piece of a word."""
        return self.existing_text_padding_id

    @property
    def text_end_padding_id(self) -> int:
        """Id EPAD of the frame before a word."""
        return 0

    @property
    def text_start_id(self) -> int:
        """Initial id of the text stream, before the first frame."""
        return self.text_card

    @property
    def audio_start_id(self) -> int:
        """Initial id of every audio stream."""
        return self.card

    @property
    def feedforward_hidden(self) -> int:
        """Gated hidden width of a temporal block."""
        return gated_hidden(self.dim, int(self.hidden_scale * self.dim))

    @property
    def depformer_hidden(self) -> int:
        """Gated hidden width of a depth block."""
        return gated_hidden(self.depformer_dim, self.depformer_dim_feedforward)

    def to_dict(self) -> dict[str, Any]:
        """The fields of this class as a plain dict, with the keys of `config.json`."""
        return asdict(self)


def gated_hidden(dim: int, dim_feedforward: int) -> int:
    """Hidden width of Moshi's gated feed-forward.

    It is 21/8 of `dim` where dim_feedforward is 4 x dim, else 2/3 of dim_feedforward.
    """
    return 21 * dim // 8 if dim_feedforward == 4 * dim else 2 * dim_feedforward // 3
