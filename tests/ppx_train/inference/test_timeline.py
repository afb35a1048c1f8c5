"""The picture of a conversation."""

from pathlib import Path

import numpy as np

from ppx_train.inference.timeline import AgentWord, draw_timeline
from tests.ppx_train.inference.noise import noise


def test_a_picture_of_a_long_conversation_has_rows(tmp_path: Path) -> None:
    words = [AgentWord(text="$5 and $6", seconds=n * 0.7) for n in range(60)]  # dollars are no formula
    draw_timeline(tmp_path / "long.png", noise(47.0)[:, 0], noise(46.0)[:, 0], words, title="$a$", facts=["b"])
    draw_timeline(tmp_path / "short.png", noise(5.0)[:, 0], noise(5.0)[:, 0], [], title="a", facts=[])
    long, short = (matplotlib_image(tmp_path / f"{name}.png") for name in ("long", "short"))
    assert long.shape[1] == short.shape[1] and long.shape[0] > 2.5 * short.shape[0]


def matplotlib_image(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)
