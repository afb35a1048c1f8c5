"""What a batch of streamed conversations needs to go on, and where one of them stood."""

# Shapes: B batch, L layers, H heads, P prompt frames, E head width, A agent streams (9: text and 8 codebooks)
# Shapes: Q codebooks (8)

from dataclasses import dataclass, field

from torch import Generator, Tensor

from model.streaming.cuda_graphs import StepGraphs
from model.streaming.depth_stream import DepthCache
from model.streaming.kv_cache import KVCache
from model.streaming.sample import RowSampling


@dataclass
class StreamState:
    """All that a batch of conversations needs to go on, made by `DuplexStream.init_state` and changed by each step."""

    cache: KVCache
    """Keys and values of the temporal transformer; its offset_B is the position that each row is fed next."""
    depth_cache: DepthCache
    """Working space of one frame."""
    agent_BA: Tensor
    """Agent streams of the next position, delays applied."""
    user_BQ: Tensor
    """The user frame before the present one."""
    generators: list[Generator]
    """One random generator a row."""
    new_user_BQ: Tensor
    """The user frame of the present step."""
    active_B: Tensor
    """Rows that the present step advances."""
    uniform_BA: Tensor
    """Random numbers of the present step, one for each token."""
    host_uniform_BA: Tensor
    """The same numbers on the host, where they are drawn."""
    active_rows: list[int]
    """Rows that are true in active_B."""
    sampling: RowSampling | None = None
    """How each row chooses its tokens, where rows may differ."""
    graphs: StepGraphs | None = field(default=None, repr=False)
    """Captured steps, on a GPU."""

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.generators)


@dataclass(frozen=True)
class SavedRow:
    """Where a row stood after some frames of a prompt, to begin other conversations there; see `DuplexStream.save`."""

    kv: Tensor
    """Keys and values, [L, 2, H, P, E]."""
    agent_A: Tensor
    user_Q: Tensor
    frames: int

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""
        return self.kv.nbytes
