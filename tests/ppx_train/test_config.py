"""Configuration: every shipped file loads, and mistakes are one line that names the value and the fix."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from model.errors import UserError
from ppx_train.config import GROUPS, load, load_saved, read_group, recipe_names, recipe_summary
from ppx_train.roots import CONFIGS


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_saving(name: str, tmp_path: Path) -> None:
    run = load([f"recipe={name}", "data.paths=[shards]"])
    (tmp_path / "config.yaml").write_text(run.to_yaml(), "utf-8")
    assert load_saved(tmp_path / "config.yaml") == run
    assert recipe_summary(name)


def test_the_asked_for_recipes_and_groups_exist() -> None:
    assert set(recipe_names()) >= {
        "mix_real_synth", "service_only", "fisher_only", "lora_voice", "overfit_one", "quickstart",
    }  # fmt: skip
    of_the_data = {"augment", "gates", "pipelines", "rates"}  # read by ppx-data, not by ppx-train
    assert {path.name for path in CONFIGS.iterdir()} == {*GROUPS, *of_the_data}
    for group in GROUPS:
        for path in (CONFIGS / group).glob("*.yaml"):
            read_group(group, path.stem)


def test_the_published_recipe_has_the_published_numbers() -> None:
    run = load(["recipe=mix_real_synth", "data.paths=[shards]"])
    assert (run.steps, run.data.batch, run.data.max_frames) == (24576, 32, 2048)
    assert (run.optim.lr.temporal, run.optim.lr.depth) == (2e-6, 4e-6)
    assert (run.loss.acoustic, run.loss.text_padding, run.loss.semantic) == (0.02, 0.3, 1.0)
    assert set(run.data.mix) == {"service", "assistant", "fisher"}


def test_later_layers_win(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    text = "groups: {model: tiny, data: service, optim: scratch}\nsteps: 70\noptim: {clip_norm: 3.0}\n"
    mine.write_text(text + "model: {tokenizer: t.model}\n", "utf-8")
    run = load([f"recipe={mine}", "data.paths=[a]", "steps=90"])
    assert run.steps == 90  # command line over recipe
    assert run.optim.clip_norm == 3.0  # recipe over default
    assert run.optim.warmup_steps == 20  # group over default
    assert run.optim.weight_decay == 0.1  # default
    assert run.recipe == "mine"
    assert run.run_dir == "runs/mine"
    assert load([f"recipe={mine}", "data.paths=[a]", "optim=lora"]).optim.lr.depth == 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("recipe=quikstart", "did you mean 'quickstart'"),
        ("recipe=nowhere.yaml", "recipe=nowhere.yaml: no such file"),
        ("steps=3", "no recipe"),
        ("recipe=quickstart stpes=3", "Did you mean: 'steps'"),
        ("recipe=quickstart optim.lr.temporl=1", "Did you mean: 'temporal'"),
        ("recipe=quickstart steps=many", "Value 'many' of type 'str' could not be converted to Integer"),
        ("recipe=quickstart data.mix=[1,2]", "data.mix=[1,2]: "),
        ("recipe=quickstart data.paths=shards", "a list is needed, such as data.paths=[shards]"),
        ("recipe=quickstart data.mix={a:", "not readable as YAML"),
        ("recipe=quickstart model=tinny", "did you mean 'tiny'"),
        ("recipe=quickstart groups.modl=tiny", "did you mean 'model'"),
        ("recipe=quickstart trainer.precision=bf16", "expected one of"),
        ("recipe=mix_real_synth", "data.paths is not set"),
        ("recipe=quickstart data.batch=7", "data.batch=7 is not a multiple"),
        ("recipe=quickstart trainer.devices=3", "cannot be shared by 3 processes"),
        ("recipe=quickstart model.lm.dim=255", "width 255"),
        ("recipe=quickstart steps=0", "steps=0: must be above 0"),
        ("recipe=quickstart optim.warmup_steps=240", "must be below steps"),
        ("recipe=quickstart data.mix.service=0 data.mix.assistant=0 data.mix.fisher=0", "at least one source"),
        ("recipe=quickstart loss.user=-1", "must not be negative"),
        ("recipe=quickstart --fast", "key=value"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(arguments.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_saved_configuration_has_plain_numbers(tmp_path: Path) -> None:
    run = load(["recipe=mix_real_synth", "data.paths=[shards]"])
    (tmp_path / "c.yaml").write_text(run.to_yaml(), "utf-8")
    import yaml  # a bare 2e-6 would come back as a string from a plain YAML reader

    assert yaml.safe_load((tmp_path / "c.yaml").read_text("utf-8"))["optim"]["lr"]["temporal"] == 2e-6
    assert OmegaConf.load(tmp_path / "c.yaml").optim.lr.temporal == 2e-6
