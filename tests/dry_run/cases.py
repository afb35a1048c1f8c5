"""The steps that are run dry: the shipped 7B recipes, and a streaming step.

Each runs in a process of its own, as `run.py` starts it.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule

from model.adapters.quantized import bitsandbytes
from model.config import LMConfig
from model.duplex import DuplexLM
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from ppx_train.config.load import load
from ppx_train.config.run import Run
from ppx_train.config.trainer import FSDP
from ppx_train.planning.gpus import find_gpu
from ppx_train.planning.speed import step_time
from ppx_train.training.build import empty_lm, trainable_lm
from ppx_train.training.memory import rank_memory
from ppx_train.training.micro_batch import MicroBatch, collate
from ppx_train.training.module import DuplexModule
from ppx_train.training.optim import make_optimizer
from ppx_train.training.parallel import shard
from ppx_train.training.sequences import TrainingSequence
from tests.dry_run.fake_gpu import pretend, storages
from tests.dry_run.observer import Observer
from tests.dry_run.run import NAMES

GPU = torch.device("cuda", 0)
ANSWERS = {"agree": 0, "_update": True}
"""Where a training step may wait for its GPU: no rank asks for anything; the gradient is finite."""
GB = 1e9
Figures = dict[str, Any]


class ShapesOnly(FakeTensorMode):
    """Tensors without values, also where they are copied to a GPU that seems to be there."""

    avoid_device_init = True


def train(recipe: str, *settings: str, passes: int | None = None) -> Figures:
    """One optimiser step of a recipe, all sequences of the longest length and with loss everywhere.

    passes: micro-batches of this rank; None: those of the recipe. The step is taken twice, because the optimiser makes
    its moments in the first.
    """
    run = load([f"recipe={recipe}", "data.paths=[x]", *settings])
    if run.model.lora.base != "full":
        # The library is loaded, and makes its levels, while there is no GPU and tensors have values.
        levels = bitsandbytes().create_linear_map(signed=True)
        bitsandbytes().create_linear_map = lambda **_: levels
    passes = passes or run.passes()
    planned = plan_of(run, passes)
    pretend()
    batches = [host_batch(run) for _ in range(passes)]
    observer = Observer(ANSWERS)
    sharded = run.trainer.strategy in FSDP
    fake = ShapesOnly(allow_non_fake_inputs=True)
    with ranks(run) as mesh, fake, observer, storages(observer.resize):
        module = fake_module(run, mesh, observer)
        held = observer.bytes
        autocast = run.trainer.precision == "bf16-mixed" and not sharded
        for _ in range(2):
            first = {name: dict(getattr(observer, name)) for name in ("kernels", "flops", "unfused_bytes", "seconds")}
            observer.syncs.clear()
            observer.by_place.clear()
            with observer.during("prepare"), torch.autocast("cuda", torch.bfloat16) if autocast else nullcontext():
                module.training_step([micro.to(GPU) for micro in batches], 0)
    frames = sum(micro.frames for micro in batches)
    forward = module.lm.flops_per_frame(run.data.max_frames)
    trained = sum(p.numel() for p in module.lm.parameters() if p.requires_grad)
    useful = 2 * forward + 6.0 * trained if run.model.lora.rank else 3 * forward
    return figures(observer, held, first, frames, passes, useful) | {
        "padding": padding(module.lm, run.trainer.shards) if sharded else 0.0,
        "planned": planned,
    }


def plan_of(run: Run, passes: int) -> dict[str, float]:
    """What `ppx-train plan` would say of a step of so many passes on an H100."""
    run = replace(run, data=replace(run.data, batch=passes * sequences_of(run) * run.processes))
    lm = empty_lm(run)
    step = step_time(run, lm, find_gpu("H100"), run.data.max_frames)
    return {"peak GB": rank_memory(run, lm).total / GB, "ms": step.total * 1e3}


def sequences_of(run: Run) -> int:
    """Sequences of the longest length in a micro-batch."""
    return run.data.pass_frames // run.data.max_frames


def host_batch(run: Run) -> MicroBatch:
    """A micro-batch as the loader makes it, of random codes."""
    generator = torch.Generator().manual_seed(0)
    frames = run.data.max_frames
    codes_KT = torch.randint(run.model.lm.card, (run.model.lm.num_streams, frames), generator=generator)
    has_loss_T = torch.ones(frames, dtype=torch.bool)
    return collate([TrainingSequence("x", codes_KT, has_loss_T)] * sequences_of(run), run.loss, run.model.lm)


@contextmanager
def ranks(run: Run) -> Iterator[DeviceMesh | None]:
    """This process as the first of several ranks, whose collectives exchange nothing; None where nothing is sharded."""
    shards, copies = run.trainer.shards, run.processes // run.trainer.shards
    if run.trainer.strategy not in FSDP:
        yield None
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=run.processes, store=FakeStore())
    try:
        names = ("copies", "shards")
        yield (
            init_device_mesh("cuda", (copies, shards), mesh_dim_names=names)
            if copies > 1
            else (init_device_mesh("cuda", (shards,)))
        )
    finally:
        dist.destroy_process_group()


def fake_module(run: Run, mesh: DeviceMesh | None, observer: Observer) -> DuplexModule:
    """The training module with a fake model on the GPU, in the place of Lightning's trainer a stub."""
    frozen = bool(run.model.lora.rank) and run.trainer.precision == "bf16-mixed"
    lm = trainable_lm(run, DuplexLM(run.model.lm, device=GPU, dtype=torch.bfloat16 if frozen else torch.float32))
    lm.train()
    if mesh is not None:
        count_no_shapes(observer)
        shard(lm, mesh, run.trainer.precision)
    module = DuplexModule(run)
    module.lm = lm
    optimizer = LightningOptimizer(make_optimizer(lm.named_parameters(), run.optim))
    strategy = SimpleNamespace(
        _lightning_optimizers=[optimizer],
        optimizer_step=observer.wrapped("optimiser", lambda inner, closure, **_: inner.step(closure)),
        backward=observer.wrapped("backward", lambda loss, _: loss.backward()),
    )
    optimizer._strategy = strategy  # type: ignore[assignment]
    module.stub = SimpleNamespace(strategy=strategy, global_step=0, model=module)  # type: ignore[assignment]
    module.trainer = module.stub  # type: ignore[assignment]
    module.forward = observer.wrapped("forward", module.forward)  # type: ignore[method-assign]
    nn.utils.clip_grad_norm_ = observer.wrapped("clip", nn.utils.clip_grad_norm_)
    return module


def count_no_shapes(observer: Observer) -> None:
    """Lets the observer look away while DTensor works out the shapes of whole tensors, which no rank holds."""
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    def unseen(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before, observer.paused = observer.paused, True
            try:
                return function(*args, **kwargs)
            finally:
                observer.paused = before

        return call

    for name, function in list(vars(ShardingPropagator).items()):
        if "propagate" in name and callable(function):
            setattr(ShardingPropagator, name, unseen(function))


def padding(lm: DuplexLM, number: int) -> float:
    """Share of the shards of one rank that pads axes which the number of shards does not divide."""
    held = 0
    for module in lm.modules():
        if isinstance(module, FSDPModule):
            state: Any = module._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
            held += sum(param._sharded_param_data.numel() for group in groups if group for param in group.fsdp_params)
    return held * number / lm.num_parameters() - 1


def stream(rows: int, live: int) -> Figures:
    """One streaming step of the 8 depth steps of the agent, as a CUDA graph captures it: `live` frames are read."""
    pretend()
    observer = Observer({})
    with ShapesOnly(allow_non_fake_inputs=True), observer:
        lm = DuplexLM(LMConfig(dep_q=8), device=GPU, dtype=torch.bfloat16).eval().requires_grad_(False)
        streaming = DuplexStream(lm, Sampling(), cuda_graphs=False)
        state = streaming.init_state(rows, seeds=[0] * rows)
        held = observer.bytes
        with torch.inference_mode(), observer.during("step"):
            streaming._advance(state, live, masked=True)
    return figures(observer, held, {}, rows, 1, lm.flops_per_frame(1))


def faults() -> Figures:
    """One fault of each kind."""
    pretend()
    observer = Observer({})
    with ShapesOnly(allow_non_fake_inputs=True), observer:
        host, gpu, rows = torch.ones(4), torch.ones(4, device=GPU), torch.tensor([0, 2])
        with observer.during("forward"):
            _ = gpu[rows], host * 2, host.to(GPU, non_blocking=True), bool(gpu.sum() > 0)
            _ = gpu * 2, gpu[0] + 1, host.pin_memory().to(GPU, non_blocking=True)  # These are none.
    return figures(observer, 0, {}, 1, 1, 1.0)


def figures(
    observer: Observer, held: int, before: Mapping[str, Mapping[str, float]], frames: int, passes: int, useful: float
) -> Figures:
    """What an observer counted since `before`, by the frame or the micro-batch; held: bytes before the step."""

    def since(name: str, phases: Sequence[str] | None = None) -> float:
        counted = getattr(observer, name)
        return sum(counted[p] - before.get(name, {}).get(p, 0) for p in phases or counted if p)

    inner = [phase for phase in ("forward", "backward", "step") if phase in observer.kernels]
    return {
        "table": {
            "weights GB": held / GB,
            "peak GB": max(size for phase, size in observer.peaks.items() if phase) / GB,
            "host waits": len(observer.syncs),
            "kernels a pass": since("kernels", inner) / passes,
            "executed / useful": since("flops") / frames / useful,
            "unfused kB a frame": since("unfused_bytes", inner) / frames / 1e3,
            "ms, estimated": since("seconds") * 1e3,
        },
        "faults": dict(observer.faults),
        "costly": dict(sorted(observer.by_place.items(), key=lambda item: -item[1])[:12]),
    }


CASES: Sequence[Callable[[], Figures]] = (
    lambda: train("mix_real_synth"),
    lambda: train("mix_real_synth_4gpu", passes=2),
    lambda: train("mix_real_synth_2nodes"),
    lambda: train("lora_voice", passes=2),
    lambda: train("lora_voice", "model.lora.base=int8", passes=1),
    lambda: train("lora_voice_24gb", passes=1),
    lambda: stream(1, 256),
    lambda: stream(32, 3000),
)
"""In the order of NAMES."""

if __name__ == "__main__":
    print(json.dumps(faults() if sys.argv[1] == "faults" else CASES[NAMES.index(sys.argv[1])]()))
