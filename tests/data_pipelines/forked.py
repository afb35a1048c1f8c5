"""What forked processes read with the reader of their parent, as the workers of a loader do.

They are forked in a process of their own: a child of one in which Ray or gRPC were at work may never come back.
"""

import json
import subprocess
import sys
from multiprocessing import get_context

import torch

from data_pipelines.shards.index import ShardReader

reader: ShardReader


def total(reader: ShardReader, i: int) -> int:
    """A sum that another order of the rows changes."""
    codes_QT, voice_QP = reader.codes(i)
    return int((codes_QT * torch.arange(16)[:, None]).sum()) + int(voice_QP.sum())


def forked_totals(shards: str) -> list[int]:
    """`total` of every sample of a folder or URL, in order."""
    command = [sys.executable, "-m", "tests.data_pipelines.forked", shards]
    totals: list[int] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=1200).stdout)
    return totals


def _inherited(i: int) -> int:
    return total(reader, i)


if __name__ == "__main__":
    reader = ShardReader(sys.argv[1])
    total(reader, 0)  # By URL the thread of the client runs by now, which a fork loses.
    with get_context("fork").Pool(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        print(json.dumps(pool.map(_inherited, range(len(reader)), chunksize=1)))
