"""ppx-train on several ranks of this machine, forked from a process that has imported everything already.

The ranks see the variables that torchrun sets. ZeRO runs on a CPU here, which Lightning refuses.
"""

import faulthandler
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DDPStrategy

from ppx_train.config.load import load
from ppx_train.training import zero
from ppx_train.training.run import train


class CpuZeroStrategy(zero.ZeroStrategy):
    """Lifts what keeps Lightning's strategy from a CPU, where DeepSpeed itself runs over gloo."""

    @classmethod
    def check_device(cls, accelerator: str) -> None:
        pass

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        reset_seed()  # Lightning would check here that every rank has a GPU of its own.
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)


def start_ranks(ranks: int, arguments: Sequence[str], log: Path | None = None) -> list[tuple[ForkProcess, Connection]]:
    """Starts `ranks` ranks, whose output goes to `log`; each comes with what tells how its training failed, if so."""
    if any("strategy=zero" in word for word in arguments):
        import deepspeed.ops  # Once, not in every rank.

        # Gloo does without this operator, which DeepSpeed would compile, for minutes and in the user's cache.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    fork = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(ranks):
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=_one_rank, args=(number, ranks, port, list(arguments), log, sender))
        process.start()
        sender.close()
        started.append((process, receiver))
    return started


def train_on_ranks(ranks: int, arguments: Sequence[str], log: Path | None = None) -> None:
    """Trains on `ranks` ranks, whose output goes to `log`. Raises: AssertionError with what the first rank raised."""
    started = start_ranks(ranks, arguments, log)
    try:
        for process, receiver in started:
            try:
                failure = receiver.recv()
            except EOFError:
                failure = "it died"
            assert not failure, f"rank {process.name}: {failure}"
    finally:
        for process, _ in started:
            process.join(60)
            process.kill()


def _one_rank(number: int, ranks: int, port: int, arguments: list[str], log: Path | None, result: Connection) -> None:
    if ranks > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "forked"}
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "GROUP_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    torch.set_num_threads(1)
    patched: Any = zero
    patched.ZeroStrategy = CpuZeroStrategy
    failure = ""
    if log:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115 - pytest has put files of its own there
    faulthandler.dump_traceback_later(300)
    try:
        code = train(load(arguments))
        failure = f"exit code {code}" if code else ""
    except BaseException:  # noqa: BLE001 - the first process raises it
        failure = traceback.format_exc()
    result.send(failure)
    result.close()
    os._exit(1 if failure else 0)
