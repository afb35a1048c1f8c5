"""`ppx-train plan`: what fits where, what to change, epochs and hours. tests/test_dry_run.py counts bytes anew."""

import re
import runpy
from pathlib import Path

import pytest

from model.duplex import DuplexLM
from model.errors import Code
from ppx_train.cli.train import command
from ppx_train.config.load import load
from ppx_train.config.run import Run
from ppx_train.planning.gpus import GPUS, find_gpu
from ppx_train.planning.plan import SIZES, change_that_fits, changed, needed_by
from ppx_train.planning.speed import step_time
from ppx_train.recipes import recipe_names
from ppx_train.training.build import empty_lm
from ppx_train.training.memory import OUTSIDE, rank_memory
from tests.paths import ROOT
from tests.refusals import refused

SHARDS = ROOT / "tests" / "golden" / "training" / "shards"
PLANS = runpy.run_path(str(ROOT / "scripts" / "recipe_plans.py"))
"""The script that writes the table of plans; it knows for which GPUs a recipe is made."""
RECIPES = {recipe: made_for for recipe in recipe_names() if (made_for := PLANS["hardware"](recipe))}


def run_of(recipe: str, *words: str) -> Run:
    return load([f"recipe={recipe}", "data.paths=[not_there]", *words])


def needed_of(run: Run) -> float:
    return rank_memory(run, empty_lm(run)).total + OUTSIDE


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert command(["plan", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_of_7b_fits_the_gpus_it_is_meant_for(recipe: str) -> None:
    number, gpu = RECIPES[recipe]
    run = run_of(recipe)
    assert run.processes == number and 16e9 < needed_of(run) <= gpu.memory


def test_all_recipes_for_gpus_say_for_which_and_the_page_has_their_plans_of_today() -> None:
    assert set(recipe_names()) - set(RECIPES) == {"codec_small", "overfit_one", "quickstart"}
    page = PLANS["PAGE"].read_text("utf-8")
    assert PLANS["with_table"](page) == page, "python scripts/recipe_plans.py --write"


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_to_be_changed_fits_and_is_accepted_by_the_command(recipe: str) -> None:
    run = run_of(recipe)
    for gpu in SIZES:
        if needed_of(run) <= gpu.memory:
            continue
        words = change_that_fits(run, empty_lm(run), gpu.memory)
        assert words is not None
        by_command = run_of(recipe, *words)
        assert changed(run, words) == by_command
        assert needed_of(by_command) == needed_by(by_command, empty_lm(run)) <= gpu.memory


def test_a_whole_copy_takes_sixteen_bytes_a_weight_and_shards_take_their_part() -> None:
    weights = DuplexLM(run_of("service_only").model.lm, device="meta").num_parameters()
    run = run_of("service_only", "trainer.strategy=ddp", "trainer.devices=8", "data.micro_frames=2048")
    whole = rank_memory(run, empty_lm(run))
    assert whole.weights + whole.moments == 12.0 * weights and whole.end == 16.0 * weights
    for processes in (2, 4):
        words = ("trainer.strategy=fsdp2", f"trainer.devices={processes}", "data.micro_frames=2048")
        part = rank_memory(run_of("service_only", *words), empty_lm(run))
        assert part.weights == 4.0 * weights / processes and part.moments == 8.0 * weights / processes


def test_the_plan_of_adapters_says_what_fits_and_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "recipe=lora_voice", "data.paths=[not_there]")
    assert "498,499,584 trainable" in text
    assert re.search(r"^80 GB \(A100 80GB, H100\): fits$", text, re.MULTILINE)
    assert re.search(r"^24 GB \(RTX 4090\): does not fit; with model\.lora\.base=nf4", text, re.MULTILINE)
    assert "data: not_there not there" in text and "not measured" in text
    assert shown(capsys, "recipe=lora_voice").replace("data: shards", "data: not_there") == text
    assert all(gpu.name in text for gpu in GPUS)


def test_passes_are_as_many_as_hold_the_sequences_of_a_rank() -> None:
    run = run_of("lora_voice")  # 16 sequences in passes of 4,096 frames
    assert (run.passes(), run.passes(2048), run.passes(1025), run.passes(700), run.passes(256)) == (8, 8, 6, 4, 1)
    counted = run_of("lora_voice", "data.micro_frames=null", "data.micro_batch=2")
    assert counted.passes() == counted.passes(700) == 8
    lm = empty_lm(run)
    assert rank_memory(counted, lm) == rank_memory(run, lm)


def test_a_gpu_that_is_too_small_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "recipe=lora_voice", "data.paths=[not_there]", "--gpu", "rtx 4090")
    assert re.search(r"^24 GB \(RTX 4090\): does not fit; with model\.lora\.base=nf4", text, re.MULTILINE)
    assert "RTX 4090 (changed as above)" in text and "H100" not in text
    small = shown(capsys, "recipe=lora_voice", "data.paths=[not_there]", "model.lm.dim=16384", "--gpu", "rtx 4090")
    assert "does not fit, whatever" in small and "RTX 4090 (does not fit)" in small


def test_the_time_on_a_gpu_that_is_too_small_is_that_of_the_change(capsys: pytest.CaptureFixture[str]) -> None:
    change = ["model.lora.base=nf4", "model.activation_checkpointing=full"]
    before = shown(capsys, "recipe=lora_voice", "data.paths=[not_there]", "--gpu", "rtx 4090")
    after = shown(capsys, "recipe=lora_voice", "data.paths=[not_there]", "--gpu", "rtx 4090", *change)
    row = re.compile(r"^  RTX 4090(?: \(changed as above\))? +(.*)$", re.MULTILINE)
    assert " ".join(change) in before and row.findall(before) == row.findall(after) != []


def test_samples_and_epochs_are_those_of_the_shards(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipe=tests/golden/training/golden.yaml", f"data.paths=[{SHARDS}]", "--step-seconds", "0.5"]
    text = shown(
        capsys, *(word.replace("tests/", f"{ROOT}/tests/") if word.startswith("recipe") else word for word in words)
    )
    # 20 steps of 4 sequences, two of service for each of an assistant.
    assert re.search(r"assistant +2 +0\.\d+ +[\d.]+ +13\.50", text) and re.search(
        r"service +4 +0\.\d+ +[\d.]+ +13\.25", text
    )
    assert "0.5 s a step as measured: 0.0 h" in text


def test_time_grows_with_what_is_computed() -> None:
    h100, run = find_gpu("H100"), run_of("mix_real_synth")
    step = step_time(run, empty_lm(run), h100, 700)
    assert step.total < step_time(run, empty_lm(run), h100, 2048).total * 700 / 2048 * 1.25
    again = run_of("mix_real_synth", "model.activation_checkpointing=full")
    assert step_time(again, empty_lm(again), h100, 700).products > 1.3 * step.products
    assert 0.2 < step.useful_flops / step.total / h100.peak < 0.65


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (["--gpu", "H1"], "unknown-name", ["--gpu H1", "H100"]),
        (["--mean-seconds", "500"], "bad-value", ["500", "163.84"]),
        (["--mean-seconds", "0"], "bad-value", ["--mean-seconds 0"]),
        (["--step-seconds", "-1"], "bad-value", ["--step-seconds -1"]),
        (["trainer.accelerator=cpu", "--gpu", "H100"], "bad-combination", ["--gpu"]),
        (["recipe=codec_small"], "other-settings", ["job=codec"]),
    ],
)
def test_a_mistake_is_one_line(words: list[str], code: Code, names: list[str]) -> None:
    recipe = [] if any(word.startswith("recipe=") for word in words) else ["recipe=lora_voice", "data.paths=[x]"]
    with refused(code, *names):
        command(["plan", *recipe, *words])


def test_data_that_is_no_shard_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cases: tuple[tuple[Code, Path], ...] = (("bad-shards", tmp_path), ("not-found", tmp_path / "file"))
    for code, path in cases:
        with refused(code, path):
            command(["plan", "recipe=lora_voice", f"data.paths=[{path}]"])


@pytest.mark.parametrize(("strategy", "share"), [("fsdp2", 8), ("ddp", 1), ("zero3", 1)])
def test_the_copy_that_a_checkpoint_is_written_from_is_counted(
    strategy: str, share: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("recipe=service_only", "data.paths=[not_there]", "trainer.devices=8")
    text = shown(capsys, *words, f"trainer.strategy={strategy}")
    weights = DuplexLM(run_of("service_only").model.lm, device="meta").num_parameters()
    assert f"host memory: {12 * weights / share / 1e9:.1f} GB of" in text
    assert "host memory" not in shown(capsys, *words, f"trainer.strategy={strategy}", "trainer.async_save=false")


def test_a_moving_average_takes_four_bytes_a_weight() -> None:
    plain, averaged = run_of("service_only"), run_of("service_only", "optim.ema_decay=0.999")
    weights = DuplexLM(plain.model.lm, device="meta").num_parameters()
    more = rank_memory(averaged, empty_lm(plain)).moments - rank_memory(plain, empty_lm(plain)).moments
    assert more == 4 * weights / plain.trainer.shards
