"""Shape and special ids of the language model (public checkpoints: kyutai/moshiko, nvidia/personaplex-7b-v1).

Field names are the keys of Kyutai's `config.json`, so that loading and exporting need no translation.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from model.errors import UserError

FRAME_RATE = 12.5  # frames a second: one frame is 80 ms
SAMPLE_RATE = 24000
FRAME_SAMPLES = 1920  # samples of one frame at 24 kHz
ZERO_ID = -1  # adds no embedding and carries no loss
UNGENERATED_ID = -2  # streaming only: the runtime has not produced this token yet


DELAYS = (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)


@dataclass(kw_only=True)
class LMConfig:
    """Hyper-parameters of the temporal and depth transformers.

    Streams: channel 0 is the agent's text, 1..8 the agent's audio codebooks, 9..16 the user's.
    Raises: UserError if the sizes contradict each other.
    Source: public `config.json` keys; fixed facts of the architecture (SiLU gating, RMSNorm in
    fp32, interleaved rotary positions, no biases) are not settings.
    """

    dim: int = 4096
    num_heads: int = 32
    num_layers: int = 32
    hidden_scale: float = 4.125
    context: int = 3000
    """Attention window in frames, the current one included."""
    max_period: int = 10000
    text_card: int = 32000
    existing_text_padding_id: int = 3
    n_q: int = 16
    dep_q: int = 16
    """Depth steps: 16 in training (agent then user), 8 in Moshi's public weights and for serving."""
    card: int = 2048
    depformer_dim: int = 1024
    depformer_dim_feedforward: int = 4224
    depformer_num_heads: int = 16
    depformer_num_layers: int = 6
    delays: list[int] = field(default_factory=lambda: list(DELAYS))
    """Frames by which each of the 17 streams is delayed inside the model."""

    def __post_init__(self) -> None:
        self.delays = list(self.delays)
        for width, heads in ((self.dim, self.num_heads), (self.depformer_dim, self.depformer_num_heads)):
            if heads <= 0 or width % heads or (width // heads) % 2:
                raise UserError(f"width {width} with {heads} heads: the head size must be whole and even")
        if self.n_q != 16:
            raise UserError(f"n_q={self.n_q}: this architecture has 16 audio streams (8 agent, 8 user)")
        if self.dep_q not in (8, 16):
            raise UserError(f"dep_q={self.dep_q}: use 16 (training) or 8 (serving, Moshi's weights)")
        if len(self.delays) != self.num_streams:
            raise UserError(f"{len(self.delays)} delays for {self.num_streams} streams: give one each")
        if min(self.context, self.num_layers, self.text_card, self.card, self.depformer_num_layers) < 1:
            raise UserError("context, num_layers, text_card, card and depformer_num_layers must be positive")

    @property
    def num_streams(self) -> int:
        """17: text plus the audio codebooks of both speakers."""
        return self.n_q + 1

    @property
    def num_codebooks(self) -> int:
        """Codebooks of one speaker."""
        return self.n_q // 2

    @property
    def agent_audio(self) -> slice:
        """Channels of the agent's audio in a [.., 17, T] tensor."""
        return slice(1, 1 + self.num_codebooks)

    @property
    def user_audio(self) -> slice:
        """Channels of the user's audio in a [.., 17, T] tensor."""
        return slice(1 + self.num_codebooks, self.num_streams)

    @property
    def text_padding_id(self) -> int:
        """PAD: the agent is not starting a word."""
        return self.existing_text_padding_id

    @property
    def text_end_padding_id(self) -> int:
        """EPAD: the frame before a word."""
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
        """Plain dict with the fields of this class."""
        return asdict(self)


def gated_hidden(dim: int, dim_feedforward: int) -> int:
    """Hidden width of Moshi's gated feed-forward: 21/8 of the width if dim_feedforward is 4 x dim, else 2/3 of it."""
    return 21 * dim // 8 if dim_feedforward == 4 * dim else 2 * dim_feedforward // 3
