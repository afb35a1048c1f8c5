"""Configuration: every shipped file loads, and mistakes are one line that names the value and the fix."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from model.errors import Code, UserError
from ppx_train.config.codec import CodecRun
from ppx_train.config.load import layers_of, load, load_saved, merge
from ppx_train.config.run import Run
from ppx_train.help import marked_yaml, setting_words, settings
from ppx_train.recipes import GROUPS, group_names, read_group, recipe_names, recipe_summary
from ppx_train.roots import CONFIGS
from tests.refusals import refused


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_saving(name: str, tmp_path: Path) -> None:
    run = merge(layers_of([f"recipe={name}", "data.paths=[shards]"]))
    (tmp_path / "config.yaml").write_text(run.to_yaml(), "utf-8")
    assert load_saved(tmp_path / "config.yaml", type(run)) == run
    assert recipe_summary(name)


def test_the_asked_for_recipes_and_groups_exist() -> None:
    assert set(recipe_names()) >= {
        "mix_real_synth", "service_only", "fisher_only", "lora_voice", "overfit_one", "quickstart",
    }  # fmt: skip
    of_the_data = {"audit", "augment", "gates", "pipelines", "rates"}  # read by ppx-data, not by ppx-train
    assert {path.name for path in CONFIGS.iterdir()} == {*GROUPS, *of_the_data}
    for group in GROUPS:
        for name in group_names(group):
            assert read_group(group, name).origin == f"configs/{group}/{name}.yaml"


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
    "case",
    [
        ("recipe=quikstart", "unknown-name", "did you mean 'quickstart'?"),
        ("recipe=nowhere.yaml", "not-found", "recipe=nowhere.yaml"),
        ("steps=3", "missing-option", "recipe=NAME"),
        ("recipe=quickstart stpes=3", "unknown-name", "Did you mean: 'steps'"),
        ("recipe=quickstart optim.lr.temporl=1", "unknown-name", "Did you mean: 'temporal'"),
        ("recipe=quickstart steps=many", "bad-value", "steps=many"),
        ("recipe=quickstart data.mix=[1,2]", "bad-value", "data.mix=[1,2]: "),
        ("recipe=quickstart data.paths=shards", "bad-value", "such as data.paths=[shards]"),
        ("recipe=quickstart data.mix={a:", "unreadable", "data.mix={a:"),
        ("recipe=quickstart model=tinny", "unknown-name", "model=tinny: no such config, did you mean 'tiny'?"),
        ("recipe=quickstart model=../model/tiny", "unknown-name", "model=../model/tiny: no such config"),
        (f"recipe=quickstart model={'x' * 5000}", "unknown-name", "model=xxx"),
        (f"recipe={'x' * 5000}", "unknown-name", "recipe=xxx"),
        ("recipe=quickstart groups.modl=tiny", "unknown-name", "did you mean 'model'?"),
        ("recipe=quickstart groups=[a]", "bad-value", "groups=[a]"),
        ("recipe=quickstart trainer.precision=bf16", "bad-value", "expected one of"),
        ("recipe=mix_real_synth", "missing-option", "data.paths is not set"),
        ("recipe=quickstart data.batch=7", "bad-combination", "data.batch=7 sequences cannot be shared by 2 processes"),
        (
            "recipe=quickstart data.micro_batch=4",
            "bad-combination",
            "data.micro_frames=1024 and data.micro_batch=4: give",
        ),
        ("recipe=quickstart data.micro_frames=null", "bad-combination", "give one of them"),
        ("recipe=quickstart data.micro_frames=0", "bad-value", "data.micro_frames=0"),
        (
            "recipe=quickstart data.micro_frames=511",
            "bad-combination",
            "does not hold a sequence of data.max_frames=512",
        ),
        (
            "recipe=quickstart data.micro_frames=null data.micro_batch=4 data.batch=7",
            "bad-combination",
            "data.batch=7 is not a multiple of data.micro_batch=4",
        ),
        (
            "recipe=quickstart data.micro_frames=null data.micro_batch=8",
            "bad-combination",
            "1 micro-batches a step (data.batch=8 / data.micro_batch=8) cannot be shared by 2 processes",
        ),
        ("recipe=quickstart data.batch=0", "bad-value", "data.batch=0"),
        ("recipe=quickstart data.paths=[]", "missing-option", "data.paths is empty"),
        ("recipe=quickstart data.limit=0", "bad-value", "data.limit=0"),
        ("recipe=quickstart trainer.devices=3", "bad-combination", "cannot be shared by 3 processes"),
        ("recipe=quickstart model.lm.dim=255", "bad-combination", "width 255"),
        ("recipe=quickstart steps=0", "bad-value", "steps=0"),
        ("recipe=quickstart optim.warmup_steps=240", "bad-combination", "optim.warmup_steps=240"),
        ("recipe=quickstart optim.betas=[0.9]", "bad-value", "optim.betas=[0.9]"),
        ("recipe=quickstart optim.clip_norm=0", "bad-value", "optim.clip_norm=0"),
        ("recipe=quickstart optim.final_lr_ratio=2", "bad-value", "optim.final_lr_ratio=2"),
        ("recipe=quickstart data.mix.service=0 data.mix.assistant=0 data.mix.fisher=0", "bad-value", "data.mix"),
        ("recipe=quickstart loss.user=-1", "bad-value", "loss.user=-1"),
        ("recipe=quickstart loss.text=.nan", "bad-value", "loss.text=nan"),
        ("recipe=quickstart groups=3", "bad-value", "groups=3"),
        ("recipe=quickstart optim.lr=1e38", "bad-value", "optim.lr=1e38"),
        ("recipe=quickstart optim.lr.depth=1e38", "bad-value", "optim.lr.depth=1e+38"),
        ("recipe=quickstart optim.lr.temporal=-1e-3", "bad-value", "optim.lr.temporal=-0.001"),
        ("recipe=quickstart optim.lr.temporal=.nan", "bad-value", "optim.lr.temporal=nan"),
        ("recipe=quickstart optim.weight_decay=.inf", "bad-value", "optim.weight_decay=inf"),
        ("recipe=quickstart model.lora.scaling=.nan", "bad-value", "model.lora.scaling=nan"),
        ("recipe=quickstart trainer.threads=0", "bad-value", "trainer.threads=0"),
        ("recipe=quickstart trainer.keep_checkpoints=-1", "bad-value", "trainer.keep_checkpoints=-1"),
        ("recipe=quickstart data.heldout_samples=-1", "bad-value", "data.heldout_samples=-1"),
        (f"recipe=quickstart seed={2**64}", "bad-value", f"seed={2**64}"),
        ("recipe=quickstart run_dir=${oc.env:HOME}", "unsafe", "command line: ", "${oc.env:HOME}"),
        ("recipe=${oc.env:HOME}", "unsafe", "command line: ", "${oc.env:HOME}"),
        (r'recipe=quickstart run_dir="\u0024{oc.env:HOME}"', "unsafe", "command line: ", "${oc.env:HOME}"),
        ("recipe=quickstart logging.project=${oc.${seed}:HOME}", "unsafe", "command line: "),
        ("recipe=quickstart groups=${oc.env:HOME}", "unsafe", "command line: "),
        ("recipe=quickstart model.lora.rank=-1", "bad-value", "model.lora.rank=-1"),
        ("recipe=quickstart model.lora.base=nf4", "bad-combination", "model.lora.base=nf4"),
        ("recipe=quickstart --fast", "bad-value", "key=value"),
    ],
)
def test_a_mistake_is_one_line(case: tuple[str, Code, str]) -> None:
    arguments, code, *named = case
    with refused(code, *named):
        load(arguments.split())


@pytest.mark.parametrize(
    "case",
    [
        ("trainer.precision=32-true loss.fp32_from=0.9", "loss.fp32_from=0.9 has no effect with trainer.precision=32-"),
        ("loss.adversary=0 loss.adversary_from=9000", "loss.adversary_from=9000 has no effect with loss.adversary=0"),
        ("data.heldout=[] data.heldout_crops=8", "data.heldout_crops=8 has no effect with data.heldout=[]"),
    ],
)
def test_a_codec_setting_of_the_command_line_without_effect_is_refused(case: tuple[str, str]) -> None:
    arguments, named = case
    with refused("bad-combination", named):
        load_job(f"recipe=codec_small {arguments}")


def test_what_recipe_and_defaults_say_beside_a_term_that_is_switched_off_is_accepted(tmp_path: Path) -> None:
    load_job("recipe=codec_small loss.fp32_from=1 trainer.precision=32-true")
    line = "recipe=codec_small loss.adversary=0 data.heldout=[] trainer.precision=32-true"
    layers = layers_of(line.split())
    run = merge(layers)
    assert isinstance(run, CodecRun) and run.loss.fp32_from == 0.95
    (tmp_path / "config.yaml").write_text(run.to_yaml())
    assert load_saved(tmp_path / "config.yaml", CodecRun) == run
    (tmp_path / "mine.yaml").write_text(marked_yaml(run, layers))
    assert load_job(f"recipe={tmp_path / 'mine.yaml'}").loss == run.loss


def load_job(line: str) -> CodecRun:
    run = merge(layers_of(line.split()))
    assert isinstance(run, CodecRun)
    return run


SECRET = "hf_secret"


@pytest.mark.parametrize(
    "text",
    [
        "run_dir: ${oc.env:HF_TOKEN}\n",
        "groups: ${oc.env:HF_TOKEN}\n",
        "data: {paths: ['${oc.env:HF_TOKEN}']}\n",
        "data: {mix: {'${oc.env:HF_TOKEN}': 1}}\n",
        'run_dir: "\\x24{oc.env:HF_TOKEN}"\n',
        "run_dir: 'a ${ oc.env : HF_TOKEN } b'\n",
        "run_dir: ${oc.decode:${oc.env:HF_TOKEN}}\n",
        "run_dir: ${${recipe}:HF_TOKEN}\n",
        "run_dir: ${logging.project}{oc.env:HF_TOKEN}\nlogging: {project: $}\n",  # becomes a call when it is saved
    ],
)
def test_no_file_reads_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load([f"recipe={tmp_path / 'mine.yaml'}", "model=tiny", "model.tokenizer=t", "data=service", "data.paths=[a]",
              "steps=300", "optim=scratch"])  # fmt: skip
    assert caught.value.code == "unsafe" and SECRET not in str(caught.value) and "\n" not in str(caught.value)
    whole = load(["recipe=quickstart", "run_dir=here"]).to_yaml()
    (tmp_path / "config.yaml").write_text(whole.replace("run_dir: here", text.splitlines()[0]))
    with pytest.raises(UserError) as caught:
        load_saved(tmp_path / "config.yaml", Run)
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


def torchrun(monkeypatch: pytest.MonkeyPatch, processes: int, nodes: int = 1) -> None:
    """The variables that torchrun gives its processes."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("WORLD_SIZE", str(processes * nodes))


def test_under_torchrun_devices_and_nodes_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, 2, nodes=2)
    run = load(["recipe=quickstart"])
    assert (run.trainer.devices, run.trainer.num_nodes, run.processes) == (2, 2, 4)
    assert load(["recipe=quickstart", "trainer.devices=2", "trainer.num_nodes=2"]) == run
    layers = layers_of(["recipe=quickstart"])
    assert "devices: 2  # torchrun" in marked_yaml(merge(layers), layers)


@pytest.mark.parametrize(
    ("more", "names"),
    [
        (["trainer.devices=1"], ["command line: trainer.devices=1", "torchrun started 2"]),
        (["trainer.devices=2", "trainer.num_nodes=3"], ["command line: trainer.num_nodes=3", "torchrun started 1"]),
        ([], ["configs/trainer/gpu8.yaml: trainer.devices=8", "torchrun started 2"]),
        (["trainer.devices=2", "trainer.num_nodes=2"], ["command line: trainer.num_nodes=2"]),
    ],
)
def test_settings_that_contradict_torchrun_are_refused(
    monkeypatch: pytest.MonkeyPatch, more: list[str], names: list[str]
) -> None:
    torchrun(monkeypatch, 2)
    with refused("bad-combination", *names):
        load(["recipe=service_only", "data.paths=[shards]", "trainer=gpu8", *more])


def test_settings_may_name_others_and_a_saved_run_names_none(tmp_path: Path) -> None:
    run = load(["recipe=quickstart", "run_dir=runs/${recipe}-${seed}", "seed=3"])
    assert run.run_dir == "runs/quickstart-3"
    assert "${" not in run.to_yaml() and yaml.safe_load(run.to_yaml())["run_dir"] == "runs/quickstart-3"


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("groups: [a]\n", "bad-value", "groups"),
        ("groups: 3\n", "bad-value", "groups is 3"),
        ("groups: text\n", "bad-value", "groups is 'text'"),
        ("optim: {lr: 1e38}\n", "bad-value", "mine.yaml"),
        ("- a\n", "bad-record", "mine.yaml: must be a mapping"),
        ("steps: {\n", "unreadable", "mine.yaml"),
        ("steps: 3\nstpes: 4\n", "unknown-name", "stpes"),
        ("optim: [1]\n", "bad-value", "mine.yaml"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, text: str, code: Code, named: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with refused(code, named):
        load([f"recipe={tmp_path / 'mine.yaml'}"])


MARKED = ["recipe=lora_voice", "optim=scratch", "data.paths=[shards,'more,of it']", "data.mix={service: 2}", "seed=0"]


def test_printing_marks_what_differs_from_the_defaults_with_its_place() -> None:
    layers = layers_of(MARKED)
    lines = [line.strip() for line in marked_yaml(merge(layers), layers).splitlines()]
    for line in (
        "recipe: lora_voice  # command line",
        "run_dir: runs/lora_voice  # name of the recipe",
        "seed: 0",  # given, but equal to the default
        "steps: 2000  # recipes/lora_voice.yaml",
        "optim: scratch  # command line",
        "paths:  # command line",
        "service: 2  # command line",
        "init: nvidia/personaplex-7b-v1  # configs/model/personaplex_7b.yaml",
        "temporal: 0.0015  # configs/optim/scratch.yaml",
        "clip_norm: 1.0",
    ):
        assert line in lines, line


@pytest.mark.parametrize("name", recipe_names())
def test_what_is_printed_is_a_recipe_that_gives_the_same_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    long = "runs/" + "a folder with a long name: " * 8 + "end"  # longer than a line of YAML, so it is folded
    more = ["loss.quantize_from=0"] if name == "codec_small" else []
    layers = layers_of([f"recipe={name}", "data.paths=[shards,'a#b']", f"run_dir='{long}'", "model.init='a #b'", *more])
    run = merge(layers)
    text = marked_yaml(run, layers)
    (tmp_path / f"{name}.yaml").write_text(text)
    assert merge(layers_of([f"recipe={name}.yaml"])) == run
    own = layers_of([f"recipe=./{name}.yaml"])
    assert f"steps: {run.steps}  # {name}.yaml" in marked_yaml(merge(own), own)


def test_every_setting_has_a_help_text() -> None:
    for owner in (Run, CodecRun):
        assert [setting.key for setting in settings("", owner) if not setting.note] == []


def test_the_words_that_a_shell_completes_are_words_of_the_command() -> None:
    words = setting_words()
    assert {
        "recipe=quickstart",
        "optim=lora",
        "data.mix=",
        "resume=true",
        "resume=auto",
        "trainer.precision=32-true",
    } <= set(words)
    needed = {"trainer.strategy=hybrid": "trainer.num_nodes=2"}
    needed |= {"trainer.offload=true": "trainer.strategy=zero2"}
    for word in words:
        if word.startswith(("trainer.", "resume=", "logging.")) and not word.endswith("="):
            load(["recipe=quickstart", *needed.get(word, "").split(), word])


def test_a_saved_configuration_has_plain_numbers(tmp_path: Path) -> None:
    run = load(["recipe=mix_real_synth", "data.paths=[shards]"])
    (tmp_path / "c.yaml").write_text(run.to_yaml(), "utf-8")
    # A bare 2e-6 would come back as a string from a plain YAML reader.
    assert yaml.safe_load((tmp_path / "c.yaml").read_text("utf-8"))["optim"]["lr"]["temporal"] == 2e-6
    assert OmegaConf.load(tmp_path / "c.yaml").optim.lr.temporal == 2e-6


def test_a_group_that_stands_for_a_setting_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("groups: {data: '${nothing}', model: tiny}\nsteps: 5\n", "utf-8")
    with refused("bad-value", "groups", "nothing"):
        load([f"recipe={tmp_path / 'own.yaml'}"])


def test_draws_that_are_no_numbers_are_refused() -> None:
    with refused("bad-value", "data.mix.service"):
        load(["recipe=service_only", "data.paths=[shards]", "data.mix={service: {more: 1}}"])
