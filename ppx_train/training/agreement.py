"""What ranks tell each other as a step begins, so that all of them act alike after it."""

from collections.abc import Callable

from torch import Tensor


class Agreement:
    """Signals that this rank has caught, and what they and the writing of a checkpoint mean for all ranks.

    A signal that comes after a step has begun waits for the next one.
    """

    def __init__(self) -> None:
        self.stop_signal = 0
        """The number of the signal that asks this rank to stop, 0 for none."""
        self.save_asked = False
        """Whether a signal asked this rank to save and go on."""
        self.is_writing: Callable[[], bool] = lambda: False
        """Whether this rank still writes its files of a checkpoint."""
        self.stop = self.save = self.writing = False
        """Whether any rank asked to stop, asked to save, or still wrote when the step began; equal on all ranks."""

    def ask(self) -> list[float]:
        """Returns the numbers of this rank, which are to be summed over all of them."""
        save, self.save_asked = self.save_asked, False
        return [float(self.stop_signal), float(save), float(self.is_writing())]

    def agree(self, sums: Tensor) -> None:
        """Takes the sums over all ranks. The host waits for their device once."""
        stop, save, writing = sums > 0
        told = int((stop + 2 * save + 4 * writing).item())
        self.stop, self.save, self.writing = bool(told & 1), bool(told & 2), bool(told & 4)
