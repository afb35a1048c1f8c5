"""Mixtures, curricula and prompts that are left out: what is trained on, against counts and a conversation by hand."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from data_pipelines.shards.index import ShardReader
from model.config import FRAME_RATE
from model.prompt import hybrid_prompt, role_ids
from model.text import TextTokenizer
from ppx_train.config.load import load
from ppx_train.config.run import Run
from ppx_train.training.callbacks.seen import SEEN_FILE
from ppx_train.training.checkpoint import checkpoints
from ppx_train.training.curves import read_metrics
from ppx_train.training.data import SamplePool, StepLoader
from ppx_train.training.run import train
from ppx_train.training.sequences import SequenceBuilder, dropped_parts
from tests.ppx_train.fixtures import run_arguments
from tests.refusals import refused


def loader_of(prepared: Path, *more: str) -> tuple[Run, StepLoader]:
    run = load(run_arguments(prepared, prepared / "unused", *more))
    codec, tokenizer = prepared / "codec.safetensors", prepared / "tokenizer.model"
    builder = SequenceBuilder(run.model.lm, run.data, run.loss, codec, tokenizer)
    return run, StepLoader(SamplePool(run.data, "train", builder, run.seed), run.data, run.seed)


def test_the_sources_of_a_step_are_those_of_its_mixture(prepared: Path) -> None:
    _, loader = loader_of(
        prepared, "data.curriculum=[{from_step: 3, mix: {fisher: 1}}, {from_step: 5, mix: {service: 1}}]"
    )
    by_step = [Counter(s for micro in loader.step(n, 0, 1) for s in micro.sources) for n in range(8)]
    assert sum(by_step[:3], Counter()) == {"service": 8, "fisher": 4}  # 2 : 1
    assert by_step[3:5] == [Counter(fisher=4)] * 2 and by_step[5:] == [Counter(service=4)] * 3


def test_a_mixture_by_hours_gives_the_sources_their_shares_of_frames(prepared: Path) -> None:
    run, loader = loader_of(
        prepared, "data.mix_by=hours", "data.mix={service: 3, fisher: 2, assistant: 0}", "data.max_frames=60"
    )
    pool, steps = loader.pool, 300
    frames: Counter[str] = Counter()
    for n in range(steps):
        for place in (place for group in loader.plan.step(n) for place in group):
            frames[place.source] += int(pool.lengths[place.source][place.row])
    share = frames["service"] / frames.total()
    assert share == pytest.approx(3 / 5, abs=2 * run.data.max_frames * 8 / frames.total())  # two epochs of 8 at most


def test_prompts_are_left_out_as_often_as_asked_whatever_the_other_settings(prepared: Path) -> None:
    run, _ = loader_of(prepared, "data.drop_voice=0.3", "data.drop_prompt=0.5")
    more, _ = loader_of(prepared, "data.drop_voice=0.4")
    dropped = [dropped_parts(run.data, 0, i) for i in range(4000)]
    counts = Counter(part for parts in dropped for part in parts)
    assert counts["voice"] == pytest.approx(1200, abs=3 * (4000 * 0.21) ** 0.5)
    assert counts["prompt"] == pytest.approx(2000, abs=3 * (4000 * 0.25) ** 0.5)
    both = sum(len(parts) == 2 for parts in dropped)
    assert both == pytest.approx(600, abs=3 * (4000 * 0.15 * 0.85) ** 0.5)  # the two are independent of each other
    with_more = {i for i in range(4000) if "voice" in dropped_parts(more.data, 0, i)}
    assert {i for i, parts in enumerate(dropped) if "voice" in parts} < with_more
    assert dropped != [dropped_parts(run.data, 1, i) for i in range(4000)]


def test_samples_and_their_prompts_do_not_depend_on_how_a_step_is_split(prepared: Path) -> None:
    _, loader = loader_of(prepared, "data.drop_voice=0.5", "data.drop_prompt=0.5")
    _, other = loader_of(prepared, "data.drop_voice=0.5", "data.drop_prompt=0.5")
    for n in (5, 2, 11):
        whole = {(m.ids, m.dropped, m.lengths) for m in loader.step(n, 0, 1)}
        parts = [{(m.ids, m.dropped, m.lengths) for m in other.step(n, rank, 2)} for rank in (0, 1)]
        assert whole == parts[0] | parts[1]


def test_drop_out_changes_neither_the_order_nor_samples_that_keep_their_prompt(prepared: Path) -> None:
    _, plain = loader_of(prepared)
    _, ours = loader_of(prepared, "data.drop_voice=0.5", "data.drop_prompt=0.5")
    kept = 0
    for n in range(6):
        for one, other in zip(plain.step(n, 0, 1), ours.step(n, 0, 1), strict=True):
            assert one.ids == other.ids
            if not any(other.dropped):
                kept += 1
                assert torch.equal(one.codes_BKT, other.codes_BKT) and torch.equal(one.weights_BKT, other.weights_BKT)
    assert kept > 0


@pytest.mark.parametrize("dropped", [("voice",), ("prompt",), ("voice", "prompt"), ()])
def test_a_sequence_without_a_part_of_its_prompt_is_what_a_call_without_it_feeds(
    prepared: Path, dropped: tuple[str, ...]
) -> None:
    run, loader = loader_of(prepared)
    sample = ShardReader(prepared / "shards" / "train").read(0)
    ours = loader.pool.builder(sample, dropped)
    words = role_ids(sample.role_prompt, TextTokenizer(prepared / "tokenizer.model"))
    builder, lm = loader.pool.builder, run.model.lm
    voice = None if "voice" in dropped else sample.voice_codes_QP
    role = [] if "prompt" in dropped else words
    frames = sample.codes_QT.shape[1]
    if voice is None and not role:  # nothing is fed before the dialogue, and the first frame of it is discarded
        before, dialogue_QT = 0, sample.codes_QT[:, 1:]
    else:
        prompt_KP = hybrid_prompt(lm, voice, role, builder.silence, builder.sine)
        before, dialogue_QT = prompt_KP.shape[1] - 1, sample.codes_QT
        assert torch.equal(ours.codes_KT[:, :before], prompt_KP[:, 1:])
    assert torch.equal(ours.codes_KT[1:, before:], dialogue_QT)
    assert ours.codes_KT.shape[1] == frames + (before or -1)
    assert ours.has_loss_T.tolist() == [False] * before + [True] * dialogue_QT.shape[1]
    assert ours.dropped == dropped


def test_a_sample_without_a_role_is_not_said_to_go_without_it(prepared: Path) -> None:
    _, loader = loader_of(prepared)
    sample = ShardReader(prepared / "shards" / "train").read(0)
    sample.role_prompt = " "
    assert loader.pool.builder(sample, ("prompt",)).dropped == ()


def test_what_was_seen_lies_beside_each_checkpoint_and_goes_on_after_a_stop(prepared: Path, tmp_path: Path) -> None:
    more = (
        "steps=6",
        "optim.warmup_steps=1",
        "trainer.checkpoint_every=2",
        "data.drop_voice=0.5",
        "data.drop_prompt=1",
        "data.heldout_samples=0",
        "data.curriculum=[{from_step: 3, mix: {service: 1, fisher: 1}}]",
    )
    assert train(load(run_arguments(prepared, tmp_path / "whole", *more))) == 0
    expected: dict[str, Counter[str]] = {"service": Counter(), "fisher": Counter()}
    _, loader = loader_of(prepared, *more)
    for n in range(6):
        for micro in loader.step(n, 0, 1):
            for source, frames, dropped in zip(micro.sources, micro.lengths, micro.dropped, strict=True):
                expected[source].update({"samples": 1, "frames": frames, **dict.fromkeys(dropped, 1)})
        folder = tmp_path / "whole" / "checkpoints" / f"step-{n + 1:07d}"
        if n % 2:
            seen = json.loads((folder / SEEN_FILE).read_text())
            assert (seen["step"], seen["from_step"], seen["skipped_steps"]) == (n + 1, 0, 0)
            for source, counts in expected.items():
                of_source = seen["sources"][source]
                assert of_source["samples"] == counts["samples"]
                assert of_source["hours"] == round(counts["frames"] / FRAME_RATE / 3600, 4)
                assert of_source["epochs"] == round(counts["samples"] / loader.plan.mixture.sizes[source], 4)
                assert of_source["without_voice"] == counts["voice"]
                assert of_source["without_prompt"] == counts["prompt"]
                # Some calls have no role that could be left out.
                assert counts["prompt"] == counts["samples"] or source == "fisher"
    metrics = read_metrics(tmp_path / "whole")
    assert metrics["seen/service_samples"][-1] == (6, expected["service"]["samples"])

    before, last = checkpoints(tmp_path / "whole")[-2:]
    whole, earlier = (json.loads((folder / SEEN_FILE).read_text()) for folder in (last, before))
    assert 0 < earlier["process_hours"] < whole.pop("process_hours")
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    assert train(load([*run_arguments(prepared, tmp_path / "whole", *more), "resume=true"])) == 0
    again = json.loads((last / SEEN_FILE).read_text())
    assert again.pop("process_hours") > earlier["process_hours"]  # The clock goes on, too.
    assert again == whole


def test_a_run_resumes_with_its_own_mixtures_only(prepared: Path, tmp_path: Path) -> None:
    more = ("steps=2", "optim.warmup_steps=0", "data.heldout_samples=0", "data.drop_voice=0.1")
    assert train(load(run_arguments(prepared, tmp_path / "run", *more))) == 0
    for key, other in (
        ("data.mix", "{service: 1, fisher: 1, assistant: 0}"),
        ("data.mix_by", "hours"),
        ("data.drop_voice", "0.2"),
        ("data.drop_prompt", "0.2"),
        ("data.curriculum", "[{from_step: 1, mix: {fisher: 1}}]"),
    ):
        with refused("other-settings", key):
            train(load([*run_arguments(prepared, tmp_path / "run", *more), "resume=true", f"{key}={other}"]))


def test_a_later_mixture_of_a_source_that_is_not_there_is_refused_at_the_start(prepared: Path, tmp_path: Path) -> None:
    with refused("no-data", "assistant"):
        train(load(run_arguments(prepared, tmp_path, "data.curriculum=[{from_step: 3, mix: {assistant: 1}}]")))


@pytest.mark.parametrize(
    ("setting", "code", "names"),
    [
        ("data.drop_voice=1.5", "bad-value", ["data.drop_voice=1.5", "0 to 1"]),
        ("data.drop_prompt=.nan", "bad-value", ["data.drop_prompt=nan"]),
        ("data.mix_by=minutes", "bad-value", ["data.mix_by"]),
        ("data.curriculum=[{from_step: 0, mix: {fisher: 1}}]", "bad-value", ["data.curriculum[0].from_step=0"]),
        ("data.curriculum=[{from_step: 8, mix: {fisher: 1}}]", "bad-value", ["from_step=8", "steps=8"]),
        ("data.curriculum=[{from_step: 3, mix: {fisher: 0}}]", "bad-value", ["data.curriculum[0].mix", "fisher 0"]),
        ("data.curriculum=[{from_step: 3, mix: {fisher: 1, service: 2}}]", "bad-combination", ["mixture before it"]),
        ("data.curriculum=[{mix: {fisher: 1}}]", "missing-option", ["from_step"]),
        ("data.curriculum=[{step: 3, mix: {fisher: 1}}]", "unknown-name", ["step"]),
        (
            "data.curriculum=[{from_step: 4, mix: {fisher: 1}}, {from_step: 3, mix: {service: 1}}]",
            "bad-value",
            ["data.curriculum[1].from_step=3", "above 4"],
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_one_line(prepared: Path, setting: str, code: str, names: list[str]) -> None:
    with refused(code, *names):  # type: ignore[arg-type]
        load(run_arguments(prepared, prepared / "unused", setting))


def test_hours_of_one_source_are_refused_because_they_change_nothing() -> None:
    with refused("bad-combination", "data.mix_by=hours"):
        load(["recipe=service_only", "data.paths=[shards]", "data.mix_by=hours"])
