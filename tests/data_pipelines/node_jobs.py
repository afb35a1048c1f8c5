"""Work for tests that kill a node of a Ray cluster: it says where it is done, and waits for the file `go`."""

import os
from pathlib import Path

from torch import Tensor

from tests.data_pipelines.jobs import wait_for
from tests.data_pipelines.tiny_dialogues import TinyCodec


def note_node(path: Path) -> str:
    """Leaves a file that names the node and process it began on, and ends when the file `go` is there."""
    mark_node(path)
    wait_for_go(path.parent)
    return path.name


class PatientCodec(TinyCodec):
    """Names each node it works on, likewise, and waits for the file `go` once four dialogues are encoded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def encode(self, wav_B1S: Tensor) -> Tensor:
        mark_node(self.folder / "codec")
        if len(list(self.folder.glob("*/.work/*.npz"))) >= 4:
            wait_for_go(self.folder)
        return super().encode(wav_B1S)


def mark_node(path: Path) -> None:
    """Leaves a file beside `path` that names the node and the process."""
    import ray

    Path(f"{path}.{ray.get_runtime_context().get_node_id()}.{os.getpid()}").touch()


def wait_for_go(folder: Path) -> None:
    """Returns when the file `go` is there."""
    wait_for((folder / "go").exists)
