"""Checkpoints written by hand in the trainer's format -> exported folders, read back by our loader and plain code."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file

from model.duplex import DuplexLM
from model.errors import Code, UserError
from model.mimi.codec import Mimi
from model.mimi.config import PatchConfig
from model.mimi.files import load_mimi, save_mimi
from model.streaming.sample import Sampling
from model.weights.checkpoint import native_state_dict
from ppx_train import __version__
from ppx_train.cli import export
from ppx_train.export.export_settings import ExportSettings
from ppx_train.export.folder import export_checkpoint, find_checkpoint
from ppx_train.export.voices import voices_of_shards
from ppx_train.inference.loading import find_voice, load_release
from ppx_train.inference.offline import chat
from ppx_train.inference.sidecar import read_sidecar
from ppx_train.training.checkpoint import SUMS, sum_lines
from ppx_train.training.origin import project_commit
from ppx_train.training.saved_tensors import file_name
from ppx_train.voices.folder import save_voice
from ppx_train.voices.voice_file import VoiceFile
from tests.ppx_train.fixtures import greedy_tokens, make_shards, spread, write_checkpoint
from tests.refusals import refused

# The stock loader takes these keys out or hands them to its constructor; any other is a crash there.
STOCK_KEYS = set(
    """
moshi_name mimi_name mimi_config_name tokenizer_name lora_name model_type lm_gen_config tts_config stt_config model_id
dim text_card existing_text_padding_id n_q dep_q card num_heads num_layers hidden_scale causal layer_scale context
max_period gating norm positional_embedding depformer_dim depformer_dim_feedforward depformer_num_heads
depformer_num_layers depformer_layer_scale depformer_multi_linear depformer_context depformer_max_period
depformer_gating depformer_pos_emb depformer_weights_per_step delays
""".split()
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codec, tokenizer and shards; the held-out split has a synthetic and a recorded speaker."""
    folder = tmp_path_factory.mktemp("data")
    make_shards(folder, dialogues=6)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DuplexLM]:
    run_dir = tmp_path_factory.mktemp("run")
    write_checkpoint(data, run_dir, 3)
    return run_dir, write_checkpoint(data, run_dir, 6)[1]


@pytest.fixture(scope="module")
def exported(run: tuple[Path, DuplexLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(run[0], tmp_path_factory.mktemp("out") / "my-model", dtype="fp32")


def make(checkpoint: Path, out: Path, **settings: Any) -> Path:
    return export_checkpoint(checkpoint, out, ExportSettings(**settings))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_newest_checkpoint_comes_back_with_eight_depth_steps_and_equal_tokens(
    run: tuple[Path, DuplexLM], exported: Path
) -> None:
    release = load_release(exported)
    assert release.lm.config.dep_q == 8 and run[1].config.dep_q == 16
    assert torch.equal(greedy_tokens(release.lm), greedy_tokens(run[1]))


def test_the_config_holds_only_keys_of_the_stock_loader_and_its_files_exist(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert set(config) <= STOCK_KEYS
    assert config["dep_q"] == 8 and config["n_q"] == 16 and config["card"] == 64 and len(config["delays"]) == 17
    for key in ("moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name"):
        assert (exported / config[key]).is_file()
    mimi = json.loads((exported / config["mimi_config_name"]).read_text())
    assert mimi["quantizer"]["bins"] == 64


def test_a_codec_that_stock_moshi_does_not_know_is_not_offered_to_it(
    run: tuple[Path, DuplexLM], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = load_mimi(data / "codec.safetensors")
    patched = Mimi(replace(codec.config, patch=PatchConfig(width=16, layers=1, hidden=32)))
    shared = {name: tensor for name, tensor in codec.state_dict().items() if not name.startswith("decoder.")}
    patched.load_state_dict(shared, strict=False)
    file = save_mimi(patched, tmp_path / "codec")
    monkeypatch.setattr("ppx_train.export.folder.codec_path", lambda _: file)
    out = make(run[0], tmp_path / "out", dtype="fp32", voices="none")
    assert set(json.loads((out / "config.json").read_text())) == {"model_type", "version"}
    assert not (out / "mimi_config.json").exists()
    card = (out / "README.md").read_text()
    assert "no public runtime knows" in card and "python -m moshi.server" not in card
    assert load_release(out).codec.config.patch is not None


def test_the_weights_are_the_native_ones_of_the_first_eight_steps(run: tuple[Path, DuplexLM], exported: Path) -> None:
    written, own = load_file(exported / "model.safetensors"), native_state_dict(run[1])
    assert set(own) - set(written) == {
        name
        for name in own
        if name.startswith(tuple(f"{part}.{k}." for part in ("depformer_in", "linears") for k in range(8, 16)))
        or any(f".gating.{k}." in name for k in range(8, 16))
        or name in {f"depformer_emb.{k}.weight" for k in range(7, 15)}
    }
    for name, tensor in written.items():
        assert torch.equal(tensor, own[name][: tensor.shape[0]]), name
    fused = "depformer.layers.0.self_attn.in_proj_weight"
    assert written[fused].shape == (8 * 3 * 16, 16) and own[fused].shape == (16 * 3 * 16, 16)


def test_the_sidecar_says_how_to_prompt(data: Path, exported: Path) -> None:
    prompt = json.loads((exported / "personaplex.json").read_text())["prompt"]
    silence, sine = load_mimi(data / "codec.safetensors").constants()
    assert (prompt["silence_codes"], prompt["sine_codes"]) == (list(silence), list(sine))
    assert (prompt["pause_frames"], prompt["voice_lufs"], prompt["system_tag"]) == (6, -24.0, "<system>")


def test_every_file_is_in_the_sums_and_codec_and_tokenizer_are_copied_byte_for_byte(data: Path, exported: Path) -> None:
    lines = (exported / "SHA256SUMS").read_text().splitlines()
    sums = {name: value for value, name in (line.split("  ") for line in lines)}
    files = {p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert set(sums) == files
    assert all(digest(exported / name) == value for name, value in sums.items())
    assert sums["mimi.safetensors"] == digest(data / "codec.safetensors")
    assert sums["tokenizer.model"] == digest(data / "tokenizer.model")


def test_others_may_read_what_was_exported(exported: Path) -> None:
    for path in [exported, *exported.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_held_out_synthetic_voices_are_included_and_recorded_people_are_not(data: Path, exported: Path) -> None:
    facts = json.loads((exported / "voices" / "voices.json").read_text())
    assert [(fact["id"], fact["licence"], fact["seconds"]) for fact in facts] == [("espeak-a", "CC0-1.0", 38 * 0.08)]
    with safe_open(exported / "voices" / "espeak-a.safetensors", "pt") as file:
        assert file.metadata()["consent"].startswith("synthetic")
        codes = file.get_tensor("codes")
    assert codes.dtype == torch.int32 and codes.shape == (8, 38)
    fingerprint = load_mimi(data / "codec.safetensors").fingerprint()
    speakers = {voice.label for voice in voices_of_shards([data / "shards"], 8, fingerprint)}
    assert speakers == {"espeak/a"}  # "a" and "b" speak in recorded calls


def test_the_card_says_recipe_data_licences_figures_and_voices(exported: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    assert (card.data.license, card.data.pipeline_tag, card.data.library_name) == ("other", "audio-to-audio", "moshi")
    assert card.data.base_model is None and "full-duplex" in card.data.tags
    for part in (
        "`quickstart`, step 6", "| train | service | 2 |", "CC0-1.0", "| loss | 2.5000 |", "| espeak-a | espeak/a |",
        "ppx-chat", "parameters in float32;",
    ):  # fmt: skip
        assert part in card.text, part
    assert "9.0" not in card.text  # logged after the exported step
    assert str(exported.parent) not in card.content


def test_the_card_and_the_record_say_which_commit_trained_and_exported(exported: Path) -> None:
    card, commit = (exported / "README.md").read_text(), project_commit()
    engine = f"ppx-train {__version__}" + (f", commit {commit}" if commit else "")
    for part in (f"| trained with | {engine} |", f"| exported with | {engine} |"):
        assert part in card, part
    sidecar = read_sidecar(exported)
    assert sidecar is not None and (sidecar.origin.commit or "") == commit


def test_licences_go_on_through_start_weights_that_were_exported_here(
    data: Path, exported: Path, tmp_path: Path
) -> None:
    folder, _ = write_checkpoint(data, tmp_path / "run", 2, f"model.init={exported}", f"model.codec={exported}")
    (exported / "README.md").rename(tmp_path / "README.md")  # The card is for people: nothing is read from it.
    try:
        second = make(folder, tmp_path / "second", voices="none", licence="mit")
    finally:
        (tmp_path / "README.md").rename(exported / "README.md")
    own, before = read_sidecar(second), read_sidecar(exported)
    assert own is not None and own.ingredients is not None and before is not None and before.ingredients
    start, codec, trained = own.ingredients
    assert (start.part, start.name, start.ingredients) == ("start weights", "my-model", before.ingredients)
    assert (codec.part, codec.name, trained.part) == ("codec", "my-model", "training data")
    card = (second / "README.md").read_text()
    assert "- start weights `my-model` under its own licence, itself derived from training data under CC0-1.0 (" in card
    assert str(exported.parent) not in card and str(exported.parent) not in (second / "personaplex.json").read_text()

    folder, _ = write_checkpoint(data, tmp_path / "again", 2, f"model.init={second}")
    third = ModelCard.load(make(folder, tmp_path / "third", voices="none") / "README.md")
    assert third.data.license == "mit"
    assert "start weights `second` under mit, itself derived from start weights `my-model` under its own" in third.text


def test_a_start_whose_record_is_damaged_is_refused(data: Path, exported: Path, tmp_path: Path) -> None:
    start = Path(shutil.copytree(exported, tmp_path / "start"))
    folder, _ = write_checkpoint(data, tmp_path / "run", 2, f"model.init={start}")
    record = json.loads((start / "personaplex.json").read_text())
    record["ingredients"][0]["licence"] = 3
    (start / "personaplex.json").write_text(json.dumps(record))
    with refused("bad-record", start / "personaplex.json", "ingredients[0].licence is 3"):
        make(folder, tmp_path / "out", voices="none")
    assert not (tmp_path / "out").exists()


def test_an_exported_model_talks_in_its_voice(exported: Path) -> None:
    release = load_release(exported)
    prompt = release.prompt(find_voice(release, "espeak-a"), "You work for CitySan.")
    user = 0.1 * np.random.default_rng(0).standard_normal(24000).astype(np.float32)
    conversation = chat(release, user, prompt_KP=prompt, sampling=Sampling(), seed=1)
    assert conversation.codes_AT.shape == (9, 13) and int(conversation.codes_AT.min()) >= 0
    assert np.isfinite(conversation.agent_S).all()


def test_bfloat16_is_the_default_and_halves_the_weights(
    run: tuple[Path, DuplexLM], exported: Path, tmp_path: Path
) -> None:
    small = make(run[0], tmp_path / "small", voices="none")
    assert {t.dtype for t in load_file(small / "model.safetensors").values()} == {torch.bfloat16}
    assert not (small / "voices").exists() and "None included" in (small / "README.md").read_text()


def test_the_nvidia_layout_keeps_sixteen_steps_and_hides_its_shape_from_stock_moshi(
    run: tuple[Path, DuplexLM], tmp_path: Path
) -> None:
    out = make(run[0], tmp_path / "out", layout="nvidia", dtype="fp32")
    own = native_state_dict(run[1])
    written = load_file(out / "model.safetensors")
    assert set(written) == set(own) and all(torch.equal(written[name], own[name]) for name in own)
    assert set(json.loads((out / "config.json").read_text())) == {"model_type", "version"}
    assert (out / "tokenizer-e351c8d8-checkpoint125.safetensors").is_file()
    assert (out / "tokenizer_spm_32k_3.model").is_file()
    release = load_release(out)
    assert release.lm.config.dep_q == 16
    assert torch.equal(greedy_tokens(release.lm), greedy_tokens(run[1]))


def test_adapters_are_merged_and_the_checkpoint_is_left_as_it_was(data: Path, tmp_path: Path) -> None:
    lora = ["model.lora.rank=3", "model.lora.patterns=['.*']"]
    folder, lm = write_checkpoint(data, tmp_path / "run", 4, *lora)
    before = digest(folder / "checkpoint.ckpt")
    release = load_release(make(folder, tmp_path / "out", dtype="fp32"))
    assert digest(folder / "checkpoint.ckpt") == before
    codes = torch.randint(64, (1, 17, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        adapted, merged = lm.logits(codes), release.lm.logits(codes)
        for module in lm.modules():
            if hasattr(module, "scaling"):
                setattr(module, "scaling", 0.0)  # noqa: B010
        plain = lm.logits(codes)
    torch.testing.assert_close(merged.text_BTV, adapted.text_BTV, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged.audio_BQTV, adapted.audio_BQTV[:, :8], rtol=1e-4, atol=1e-4)
    assert (plain.text_BTV - adapted.text_BTV).abs().max() > 0.1


def test_voices_of_a_folder_need_their_terms(run: tuple[Path, DuplexLM], data: Path, tmp_path: Path) -> None:
    voices, codec = tmp_path / "voices", load_mimi(data / "codec.safetensors")
    voices.mkdir()
    with refused("no-data", "--include-voices", voices):
        make(run[0], tmp_path / "out", voices=voices)
    anna = VoiceFile(
        id="anna-b", label="Anna", licence="CC-BY-4.0", consent="agreed", codec=codec.fingerprint(),
        codes_QP=torch.randint(64, (8, 38)),
    )  # fmt: skip
    for lacking, voice in (("licence", replace(anna, licence=None)), ("consent", replace(anna, consent=None))):
        save_voice(voices, voice, overwrite=True)
        with refused("licence", "anna-b", f"no {lacking}", f"--{lacking}"):
            make(run[0], tmp_path / "out", voices=voices)
    save_voice(voices, replace(anna, codec="ab" * 32), overwrite=True)
    with refused("bad-combination", "anna-b", "another codec"):
        make(run[0], tmp_path / "out", voices=voices)
    path = save_voice(voices, anna, overwrite=True)
    (voices / "bo.wav").write_bytes(b"")
    with refused("old-form", "bo.wav", "ppx-voice add"):
        make(run[0], tmp_path / "out", voices=voices)
    (voices / "bo.wav").unlink()
    out = make(run[0], tmp_path / "out", voices=voices)
    assert (out / "voices" / "anna-b.safetensors").read_bytes() == path.read_bytes()
    assert "| anna-b | Anna | CC-BY-4.0 | agreed |" in (out / "README.md").read_text()


def test_an_existing_folder_is_never_touched(run: tuple[Path, DuplexLM], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with refused("exists", f"--out {tmp_path / 'out'}"):
        make(run[0], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_export_leaves_nothing_behind(
    run: tuple[Path, DuplexLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("ppx_train.export.folder.write_sums", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make(run[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rank", [0, 3])
def test_the_files_of_many_ranks_are_exported_as_one_file_is(data: Path, tmp_path: Path, rank: int) -> None:
    folder, _ = write_checkpoint(data, tmp_path / "run", 4, f"model.lora.rank={rank}")
    one = make(folder, tmp_path / "one", voices="none")
    spread(folder, 3)
    assert len(list(folder.glob("tensors-*-of-00003.safetensors"))) == 3
    many = make(folder, tmp_path / "many", voices="none")
    assert digest(one / "model.safetensors") == digest(many / "model.safetensors")
    lost = folder / file_name(1, 3)
    lost.unlink()
    with refused("bad-checkpoint", lost, "is missing"):
        make(folder, tmp_path / "again", voices="none")


def test_a_damaged_checkpoint_is_one_line(data: Path, tmp_path: Path) -> None:
    folder, _ = write_checkpoint(data, tmp_path / "run", 4)
    file = folder / "checkpoint.ckpt"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(UserError, match="checkpoint.ckpt is damaged") as why:
        make(folder, tmp_path / "out")
    assert "\n" not in str(why.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rank", "value"),
    [(0, float("nan")), (3, float("nan")), (0, float("inf")), (0, 3.4e38)],  # the last is too large for bf16 alone
)
def test_weights_that_are_no_numbers_are_refused(data: Path, tmp_path: Path, rank: int, value: float) -> None:
    folder, _ = write_checkpoint(data, tmp_path / "run", 4, f"model.lora.rank={rank}")
    state = torch.load(folder / "checkpoint.ckpt", weights_only=True)
    name = next(name for name in state["state_dict"] if name.startswith("lm.temporal.layers.1"))
    state["state_dict"][name].view(-1)[5] = value
    torch.save(state, folder / "checkpoint.ckpt")
    with refused("bad-weights", "temporal.layers.1", "bfloat16"):
        make(folder, tmp_path / "out", voices="none")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_as_it_was_saved_is_refused(data: Path, tmp_path: Path) -> None:
    folder, _ = write_checkpoint(data, tmp_path / "run", 4)
    sums = {name: digest(folder / name) for name in ("checkpoint.ckpt", "config.yaml")}
    (folder / SUMS).write_bytes(sum_lines(sums))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("seed: 0", "seed: 1"))
    with refused("bad-checkpoint", folder / "config.yaml"):
        make(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_architecture_is_one_line(data: Path, tmp_path: Path) -> None:
    folder, _ = write_checkpoint(data, tmp_path / "run", 4)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("num_layers: 2\n    hidden", "num_layers: 3\n    hidden"))
    assert (folder / "config.yaml").read_text() != config
    with pytest.raises(UserError, match=r"not of the model in config.yaml.* missing") as why:
        make(folder, tmp_path / "out")
    assert "\n" not in str(why.value)


def test_a_folder_without_checkpoint_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with refused("not-found", f"--checkpoint {path}"):
            find_checkpoint(path)


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ("--checkpoint a", "missing-option", "ppx-export: --out must be given"),
        ("--checkpoint a --out b --layuot nvidia", "unknown-name", "no option --layuot, did you mean '--layout'?"),
        ("--checkpoint a --out b --layout onnx", "bad-value", "ppx-export --layout: invalid choice 'onnx'"),
        ("--checkpoint a --out b --dtype int8", "bad-value", "ppx-export --dtype: invalid choice 'int8'"),
        ("--checkpoint a --out b --max-voices many", "bad-value", "ppx-export --max-voices: invalid int value 'many'"),
        ("--checkpoint a --out b --max-voices -1", "bad-value", "--max-voices -1"),
        ("--checkpoint a --out b --public", "bad-combination", "--public has no effect without --push ORG/NAME"),
    ],
)
def test_the_command_refuses_wrong_words(words: str, code: Code, named: str) -> None:
    with refused(code, named):
        export.command(words.split())


def test_settings_from_python_are_checked_as_those_of_the_command(tmp_path: Path) -> None:
    for settings in ({"layout": "onnx"}, {"dtype": "float32"}):
        with refused("bad-value", *settings.values()):
            make(tmp_path, tmp_path / "out", **settings)


def test_the_command_exports_and_says_how_to_go_on(
    run: tuple[Path, DuplexLM], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.command(["--checkpoint", str(run[0]), "--out", str(tmp_path / "out"), "--include-voices", "none"])
    assert f"ppx-chat --model {tmp_path / 'out'}" in capsys.readouterr().out
