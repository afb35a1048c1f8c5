"""Shards as other people's formats: what comes back through the real libraries is what was stored."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from data_pipelines import verbs
from data_pipelines.execution.executor import Executor
from data_pipelines.execution.jobs import Losses
from data_pipelines.publish.cards import card
from data_pipelines.publish.licences import hub_licence, why_not_public
from data_pipelines.recordings import tars
from data_pipelines.recordings.recording import Recording
from data_pipelines.records.folder import find_dialogues, load_dialogue
from data_pipelines.records.schema import Dialogue
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import ShardReader
from model.errors import Code, UserError
from tests.data_pipelines.kill import kill_everywhere, tree
from tests.data_pipelines.tiny_dialogues import TinyCodec, write_corpus, write_dialogue
from tests.data_pipelines.tiny_recordings import conversation
from tests.hub_server import hub_server
from tests.refusals import refused

Talk = tuple[Dialogue, Path]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five service, three assistant and two two-sided calls."""
    root = tmp_path_factory.mktemp("corpus")
    build_shards(write_corpus(root), TinyCodec(), root / "shards")
    return root / "shards"


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    """Shards of one conversation whose words sound where they are, both sides agents."""
    audio, words = conversation(30.0)
    place = write_dialogue(
        tmp_path / "dialogues", "talk", source="talks", agents=("left", "right"), seconds=30.0, licence="CC BY 4.0",
        words={side: tuple(words[side]) for side in words},
    )  # fmt: skip
    soundfile.write(place / "audio.flac", audio.T, 24000, subtype="PCM_16")
    build_shards([tmp_path / "dialogues"], TinyCodec(), tmp_path / "shards")
    return load_dialogue(place), place


def test_moshi_finetune_finds_what_its_loader_reads(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    verbs.main(["to-moshi", str(shards), "--out", str(out)])
    for split in ("train", "heldout"):
        reader = ShardReader(shards / split)
        lines = [json.loads(line) for line in (out / f"{split}.jsonl").read_text().splitlines()]
        assert len(lines) == len(reader)
        for line in lines:
            info = soundfile.info(out / line["path"])
            assert (info.channels, info.samplerate) == (2, 24000) and info.duration == pytest.approx(line["duration"])
            said = json.loads((out / line["path"]).with_suffix(".json").read_text())["alignments"]
            starts = [start for _, (start, _), _ in said]
            assert starts == sorted(starts)  # it searches them by bisection
            assert all(isinstance(word, str) and a < b for word, (a, b), _ in said)
        for n, row in enumerate(reader.rows):
            audio_CS, _ = reader.audio(n)
            written_SC, _ = soundfile.read(out / f"data_stereo/{row.id}-{row.side}.wav", dtype="float32")
            np.testing.assert_array_equal(written_SC.T, audio_CS if row.side == "left" else audio_CS[::-1])
            said = json.loads((out / f"data_stereo/{row.id}-{row.side}.json").read_text())["alignments"]
            own = [word for word, _, label in said if label == "SPEAKER_MAIN"]
            assert own == [word.text for word in reader.dialogue(n).side(row.side).words]


def test_the_reader_of_moshi_finetune_opens_the_list(shards: Path, tmp_path: Path) -> None:
    sphn = pytest.importorskip("sphn")
    out = tmp_path / "out"
    verbs.main(["to-moshi", str(shards), "--out", str(out)])
    options = {"duration_sec": 10.0, "num_threads": 1, "sample_rate": 24000, "pad_last_segment": True}
    read = list(sphn.dataset_jsonl(str(out / "train.jsonl"), **options).seq())
    assert len(read) == len(ShardReader(shards / "train"))
    for sample in read:
        stored_SC, _ = soundfile.read(sample["path"], dtype="float32")
        assert sample["data"].shape[0] == 2 and sample["unpadded_len"] == len(stored_SC)
        np.testing.assert_allclose(sample["data"][:, : len(stored_SC)], stored_SC.T, atol=1e-4)


def test_a_conversation_survives_the_way_through_moshi_finetune_and_back(talk: Talk, tmp_path: Path) -> None:
    dialogue, _ = talk
    verbs.main(["to-moshi", str(tmp_path / "shards"), "--out", str(tmp_path / "moshi")])
    fields = ["--voice-field", "left=ppx.left.voice", "--role-field", "left=ppx.left.role_prompt"]
    fields += ["--speaker-field", "left=ppx.left.speaker", "right=ppx.right.speaker"]
    argv = ["import", "moshi", str(tmp_path / "moshi"), "--out", str(tmp_path / "back")]
    verbs.main([*argv, "--source", "talks", "--licence", dialogue.licence, *fields])
    found = [(folder, load_dialogue(folder)) for folder in find_dialogues([tmp_path / "back"])]
    assert len(found) == 2
    for folder, back in found:
        agent = "left" if "-left.wav" in back.provenance["recording"] else "right"
        user = {"left": "right", "right": "left"}[agent]
        assert back.left.words == dialogue.side(agent).words and back.right.words == dialogue.side(user).words
        assert back.left.role_prompt == dialogue.side(agent).role_prompt and back.agent_sides == ("left",)
        assert back.left.speaker == f"talks/{dialogue.side(agent).speaker}" and back.seconds == 30.0
        again_SC, _ = soundfile.read(folder / "audio.flac")
        first_SC, _ = soundfile.read(talk[1] / "audio.flac")
        np.testing.assert_array_equal(again_SC, first_SC if agent == "left" else first_SC[:, ::-1])
    build_shards([tmp_path / "back"], TinyCodec(), tmp_path / "shards2")
    verbs.main(["to-moshi", str(tmp_path / "shards2"), "--out", str(tmp_path / "moshi2")])
    first, second = (
        sorted(json.dumps(json.loads(path.read_text())["alignments"]) for path in (root / "data_stereo").glob("*.json"))
        for root in (tmp_path / "moshi", tmp_path / "moshi2")
    )
    assert first == second


def test_licence_and_split_survive_the_way_through_moshi_finetune_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio, words = conversation(30.0)
    terms = {"open": ("train", "CC BY 4.0"), "bought": ("heldout", "LDC User Agreement")}
    for name, (split, licence) in terms.items():
        place = write_dialogue(
            tmp_path / "d", name, split=split, licence=licence, seconds=30.0, words={s: tuple(words[s]) for s in words}
        )
        soundfile.write(place / "audio.flac", audio.T, 24000, subtype="PCM_16")
    build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "shards")
    verbs.main(["to-moshi", str(tmp_path / "shards"), "--out", str(tmp_path / "moshi")])
    argv = ["import", "moshi", str(tmp_path / "moshi"), "--source", "talks", "--licence", "MIT"]
    argv += ["--voice-field", "left=ppx.left.voice"]
    capsys.readouterr()
    verbs.main([*argv, "--out", str(tmp_path / "back")])
    printed = capsys.readouterr().out
    for n, (split, licence) in enumerate(terms.values()):
        assert f"1 dialogues keep the licence that their records state, {licence!r}" in printed, n
        [back] = [d for d in map(load_dialogue, find_dialogues([tmp_path / "back"])) if d.licence == licence]
        assert back.split == split
    verbs.main([*argv, "--out", str(tmp_path / "train"), "--split", "train"])
    [only] = map(load_dialogue, find_dialogues([tmp_path / "train"]))
    assert only.split == "train" and only.licence == "CC BY 4.0"
    report = json.loads((tmp_path / "train/report.json").read_text())
    assert "it is in the split heldout: leave out --split train" in report["rejected"][0]["reason"]


def test_licence_and_split_survive_the_way_through_datasets_and_tars_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasets")
    audio, words = conversation(30.0)
    place = write_dialogue(
        tmp_path / "d", "talk", split="heldout", licence="LDC User Agreement", seconds=30.0,
        words={s: tuple(words[s]) for s in words},
    )  # fmt: skip
    soundfile.write(place / "audio.flac", audio.T, 24000, subtype="PCM_16")
    build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "shards")
    out = export(tmp_path / "shards", tmp_path / "hf", "--allow-licence", "LDC User Agreement")
    argv = ["import", "hf", str(out), "--source", "talks", "--licence", "MIT", "--out", str(tmp_path / "back")]
    argv += ["--audio-field", "audio", "--hf-split", "heldout", "--voice-field", "left=left_voice"]
    verbs.main([*argv, "--text-field", "left=left", "right=right"])
    [back] = map(load_dialogue, find_dialogues([tmp_path / "back"]))
    assert (back.licence, back.split) == ("LDC User Agreement", "heldout")
    printed = capsys.readouterr().out
    assert "1 dialogues keep the licence that their records state, 'LDC User Agreement'" in printed
    assert "licence: 'MIT', by --licence, for 0 dialogues" in printed
    [tar] = tars.find(tmp_path / "shards/heldout", None, {"": "audio.flac"}, {})
    [read] = tar.recordings()
    assert isinstance(read, Recording) and (read.licence, read.split) == ("LDC User Agreement", "heldout")


@pytest.mark.parametrize("stated", [{"licence": 3}, {"licence": " "}, {"split": "dev"}, {"split": ["train"]}])
def test_a_record_that_states_no_licence_or_split_properly_is_rejected(
    talk: Talk, tmp_path: Path, stated: dict[str, Any]
) -> None:
    verbs.main(["to-moshi", str(tmp_path / "shards"), "--out", str(tmp_path / "moshi")])
    for path in (tmp_path / "moshi/data_stereo").glob("*.json"):
        record = json.loads(path.read_text())
        record["ppx"].update(stated)
        path.write_text(json.dumps(record))
    argv = ["import", "moshi", str(tmp_path / "moshi"), "--source", "talks", "--licence", "MIT"]
    with refused("no-data", f"ppx.{next(iter(stated))} is "):
        verbs.main([*argv, "--out", str(tmp_path / "back")])


def export(shards: Path, out: Path, *options: str) -> Path:
    """Runs `to-hf`; returns its folder."""
    verbs.main(["to-hf", str(shards), "--out", str(out), *options])
    return out


def test_datasets_loads_every_dialogue_whole_and_as_a_stream(shards: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = export(shards, tmp_path / "talks")
    whole = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert set(whole) == {"train", "heldout"}
    for split in ("train", "heldout"):
        reader = ShardReader(shards / split)
        stream = {row["id"]: row for row in datasets.load_dataset(str(out), split=split, streaming=True)}
        assert list(whole[split]) == [stream[row["id"]] for row in whole[split]]
        assert set(stream) == {row.id for row in reader.rows}
        for n, sample in enumerate(reader.rows):
            row, dialogue = stream[sample.id], reader.dialogue(n)
            audio_SC, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
            np.testing.assert_array_equal(audio_SC.T, reader.audio(n)[0])
            voice_SC, _ = soundfile.read(io.BytesIO(row[f"{sample.side}_voice"]["bytes"]), dtype="float32")
            np.testing.assert_array_equal(voice_SC, reader.voice_clip(n)[0][0])
            assert json.loads(row["record"]) == json.loads(dialogue.to_json())
            assert [w["text"] for w in row["left"]["words"]] == [w.text for w in dialogue.left.words]
            assert row["left"]["is_agent"] == dialogue.left.is_agent
    fisher = datasets.load_dataset(str(out), "fisher", split="train", streaming=True)
    assert {row["source"] for row in fisher} == {"fisher"}


def test_the_card_states_licence_sizes_and_files(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from huggingface_hub import DatasetCard

    out = export(shards, tmp_path / "talks", "--name", "Talks & more")
    card = DatasetCard.load(out / "README.md")
    data = card.data.to_dict()
    assert data["pretty_name"] == "Talks & more" and data["license"] == "other" and data["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in data["configs"]] == ["default", "assistant", "fisher", "service"]
    files = list((out / "data").rglob("*.parquet"))
    assert data["dataset_size"] == sum(file.stat().st_size for file in files) and len(files) == 5
    assert "| CC0-1.0 | 7 |" in card.text and "| MIT | 3 |" in card.text


def test_large_sources_are_cut_into_files(shards: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = export(shards, tmp_path / "small", "--file-mb", "1", "--name", "x")
    names = sorted(path.name for path in (out / "data/service").glob("train-*"))
    assert len(names) > 1 and names[0].endswith(f"-of-{len(names):05d}.parquet")
    assert len(datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "c"))) == 8


def test_it_comes_back_as_dialogues(talk: Talk, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    out = export(tmp_path / "shards", tmp_path / "hf")
    fields = ["--audio-field", "audio", "--text-field", "left=left", "right=right", "--id-field", "id"]
    fields += ["--voice-field", "left=left_voice", "right=right_voice"]
    fields += ["--role-field", "left=left.role_prompt", "right=right.role_prompt"]
    argv = ["import", "hf", str(out), "--out", str(tmp_path / "back"), "--source", "talks", "--licence", "CC BY 4.0"]
    verbs.main([*argv, "--agent", "both", *fields, "--split", "train"])
    [back] = [load_dialogue(folder) for folder in find_dialogues([tmp_path / "back"])]
    dialogue, _ = talk
    for side in ("left", "right"):
        assert back.side(side).words == dialogue.side(side).words
        assert back.side(side).role_prompt == dialogue.side(side).role_prompt and back.side(side).is_agent


@pytest.mark.parametrize("verb", ["to-moshi", "to-hf"])
def test_an_export_is_finished_once_and_goes_nowhere_else(verb: str, talk: Talk, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    argv = [verb, str(tmp_path / "shards"), "--out", str(tmp_path / "out")]
    verbs.main(argv)
    before = tree(tmp_path / "out")
    verbs.main(argv)
    assert tree(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    with refused("other-settings", tmp_path / "mine", f"`ppx-data {verb}`"):
        verbs.main([*argv[:-1], str(tmp_path / "mine")])


@pytest.mark.parametrize("verb", ["to-moshi", "to-hf"])
def test_an_export_stopped_at_any_moment_resumes_to_the_same_files(verb: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    dialogues = [write_dialogue(tmp_path / "d", f"call-{n}", agents=("left", "right")) for n in range(2)]
    build_shards([dialogues[0].parent], TinyCodec(), tmp_path / "before/shards")
    assert kill_everywhere(tmp_path, [verb, "shards", "--out", "out"]) > 5


def test_what_may_not_be_passed_on_is_refused_unless_its_licence_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write_dialogue(tmp_path / "d", "call", licence="LDC User Agreement")
    build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "shards")
    with refused("licence", "'LDC User Agreement'", "--allow-licence"):
        export(tmp_path / "shards", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(tmp_path / "shards", tmp_path / "out", "--allow-licence", "LDC User Agreement")


@pytest.mark.parametrize(
    ("licence", "reason", "name"),
    [
        ("CC BY-NC 4.0", "commercial", "cc-by-nc-4.0"),
        ("CC-BY-NC-SA-4.0", "commercial", "other"),
        ("for non-commercial use", "commercial", "other"),
        ("Linguistic Data Consortium", "LDC", "other"),
        ("All rights reserved", "not public", "other"),
        ("CC BY 4.0", "", "cc-by-4.0"),
        ("cc-by-sa-4.0", "", "cc-by-sa-4.0"),
        ("CC0-1.0", "", "cc0-1.0"),
        ("MIT", "", "mit"),
        ("Apache-2.0", "", "apache-2.0"),
        ("balance of terms", "", "other"),
    ],
)
def test_licences_are_read_as_people_write_them(licence: str, reason: str, name: str) -> None:
    assert (reason in why_not_public(licence)) if reason else (why_not_public(licence) == "")
    assert hub_licence([licence]) == name and hub_licence([licence, "Other terms"]) == "other"


def test_an_upload_is_private_comes_back_whole_and_replaces_nothing(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasets")
    with hub_server(tmp_path / "hub") as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        monkeypatch.setattr("time.sleep", lambda _: None)
        out = export(tmp_path / "shards", tmp_path / "out", "--push", "org/talks")
        repository = hub.repositories["org/talks"]
        assert repository.private and repository.kind == "dataset" and "uploaded: " in capsys.readouterr().out
        files = repository.tree("main")
        assert files is not None
        sent = {name for name in files if name != ".gitattributes"}
        assert sent == {"README.md", "data/talks/train-00000-of-00001.parquet"}
        for name in sent:
            assert hub.content("org/talks", name) == (out / name).read_bytes()
        export(tmp_path / "shards", out, "--push", "org/talks")  # the same again
        code = (
            "import datasets; rows = datasets.load_dataset('org/talks', split='train', streaming=True);"
            "print([row['id'] for row in rows])"
        )
        environment = hub.environment(tmp_path / "home2") | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1200
        )
        assert done.stdout.strip() == "['talk']", done.stderr[-2000:]
        hub.add("org/mine", {"data/x.parquet": b"mine"}, kind="dataset", private=True)
        refusals: tuple[tuple[list[str], Code | None, str], ...] = (
            (["--push", "org/mine"], None, "data/x.parquet"),
            (["--push", "org/talks", "--public"], None, "--public"),
            (["--push", "talks"], None, "ORG/NAME"),
            (["--push", "stranger/talks"], None, "ann, org"),
            (["--public"], "bad-combination", "--push"),
        )
        for options, wanted, name in refusals:
            with pytest.raises(UserError, match=re.escape(name)) as caught:
                export(tmp_path / "shards", out, *options)
            assert wanted in (None, caught.value.code)
        hub.fail("POST", "commit", status=500, times=-1)
        with pytest.raises(
            UserError, match=r"is whole, so run the same command again, or `hf upload org/new .* --repo-type dataset"
        ):
            export(tmp_path / "shards", out, "--push", "org/new")


def test_an_incomplete_folder_of_shards_is_refused(tmp_path: Path) -> None:
    for verb in ("to-moshi", "to-hf"):
        with refused("not-found", tmp_path / "none"):
            verbs.main([verb, str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    with refused("bad-value", "--file-mb 0"):
        export(tmp_path / "none", tmp_path / "out", "--file-mb", "0")


@pytest.mark.parametrize(
    "verb, wanted", [("to-moshi", "talk-left"), ("to-hf", "data/service/train-00000-of-00001.parquet")]
)
def test_what_kills_its_worker_is_named(
    verb: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dialogue(tmp_path / "in", "talk")
    build_shards([tmp_path / "in"], TinyCodec(), tmp_path / "shards")

    def kill_all(executor: Executor, work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        losses: Losses[Any, Any] = Losses(None)
        yield from (result for job in jobs for result in losses.add(job))
        losses.end()

    monkeypatch.setattr(Executor, "run", kill_all)
    if verb == "to-hf":
        pytest.importorskip("datasets")
    with refused("lost-work", "1 jobs", f"({wanted})"):
        verbs.main([verb, str(tmp_path / "shards"), "--out", str(tmp_path / "out")])


def test_foreign_names_add_no_row_or_heading_to_the_card(tmp_path: Path) -> None:
    evil = "MIT |\n\n# Free\n<img src=x> [a](https://b) `c`"
    write_dialogue(tmp_path / "dialogues", "a", licence=evil)
    manifest = build_shards([tmp_path / "dialogues"], TinyCodec(), tmp_path / "shards")
    manifest = replace(manifest, engines={evil: 1}, recorded=1)
    text = card(evil, manifest, {"data/service/train-00000.parquet": 1}, {})
    tokens = MarkdownIt("commonmark").enable("table").parse(DatasetCard(text).text)
    inline = [child.type for token in tokens for child in token.children or ()]
    assert [token.tag for token in tokens if token.tag in ("h1", "h2", "tr")] == ["h1", "h1", *["tr"] * 8]
    assert not {"link_open", "image", "html_inline"} & set(inline) and "html_block" not in {t.type for t in tokens}
    assert "not masked: 1 dialogues are recorded" in text
