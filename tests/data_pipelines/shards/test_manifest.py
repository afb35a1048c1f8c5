"""What the manifest says, and how other libraries read the shards."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.manifest import VoiceCounts, read_manifest
from tests.data_pipelines.tiny_dialogues import TinyCodec, write_corpus, write_dialogue
from tests.refusals import refused

SOURCE = {"dialogues": 1, "samples": 1, "hours": 1.0, "agent_words": 1}
SHARD = {"bytes": 1, "sha256": "0" * 64, "dialogues": 1}
CODEC = {"fingerprint": "f", "card": 64, "num_codebooks": 8, "silence_codes": [1] * 8, "sine_codes": [1] * 8}


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    """Five service, three assistant and two two-sided calls."""
    return write_corpus(tmp_path / "dialogues")


def test_the_manifest_names_voices_engines_gates_and_packages(tmp_path: Path) -> None:
    for n, (id, split) in enumerate([("a", "train"), ("b", "train"), ("c", "heldout")]):
        meta = write_dialogue(tmp_path / "d", id, split=split, agents=("left", "right") if id == "b" else ("left",))
        record = json.loads((meta / "meta.json").read_text())
        record["provenance"] = {
            "engine": {"name": "tone", "version": "1.2", "model_sha256": "0123456789abcdef"},
            "word_times": "ruler 3",
            "script": {"seed": n, "llm": {"name": "openai", "model": "big-llm"}},
        }
        (meta / "meta.json").write_text(json.dumps(record))
    engines = {"asr": {"name": "ear", "version": "7"}}
    gates = {"format": 1, "values": {"wer": 0.1}, "rejected": [], "limits": {"wer": 0.15}, "engines": engines}
    (tmp_path / "d" / "a" / "gates.json").write_text(json.dumps(gates))
    manifest = build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "out")
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest.voices == {
        "train": VoiceCounts(agent={"tiny/left": 2, "tiny/right": 1}, user={"tiny/right": 1}),
        "heldout": VoiceCounts(agent={"tiny/left": 1}, user={"tiny/right": 1}),
    }
    assert manifest.engines == {
        "engine: tone 1.2 0123456789ab": 3, "word_times: ruler 3": 3, "llm: openai big-llm": 3, "asr: ear 7": 1
    }  # fmt: skip
    assert manifest.gates == {'{"wer": 0.15}': 1}
    # pip does not know the name of the build, such as +cu128, of every wheel
    assert manifest.packages["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize("key", ["codec", "content", "shards", "inputs"])
def test_a_manifest_without_a_key_is_refused(corpus: list[Path], tmp_path: Path, key: str) -> None:
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in facts.items() if name != key}))
    with refused("bad-shards", path, f"{key} is missing"):
        read_manifest(tmp_path / "out")
    path.write_text(json.dumps(facts | {"format": 1}))
    with refused("bad-shards", path, "format 1"):
        read_manifest(tmp_path / "out")
    for broken in ("{", "[" * 100_000):
        path.write_text(broken)
        with refused("unreadable", path):
            read_manifest(tmp_path / "out")
    path.write_text(json.dumps(facts | {"content": {"train": {"fisher": 3}}}))
    with refused("bad-shards", path, "content.train.fisher is 3"):
        read_manifest(tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"content": {"../x": {}}}, "'../x' is no split"),
        ({"content": {"train": {"../../x": SOURCE}}}, "'../../x' is no name of a source"),
        ({"voices": {"dev": {"agent": {}, "user": {}}}}, "'dev' is no split"),
        ({"index": {"dev": "0" * 64}}, "'dev' is no split"),
        ({"index": {"train": "short"}}, "'short' is no SHA-256"),
        ({"index": {"train": 3}}, "index.train is 3"),
        ({"shards": {"../../etc/passwd": SHARD}}, "'../../etc/passwd' is no name of a tar"),
        ({"shards": {"train/../x-00000.tar": SHARD}}, "is no name of a tar"),
        ({"shards": {"train/x-00000.tar": SHARD | {"bytes": 0}}}, "has 0 bytes"),
        ({"shards": {"train/x-00000.tar": SHARD | {"bytes": None}}}, "is None"),
        ({"shards": {"train/x-00000.tar": SHARD | {"sha256": "x"}}}, "'x' is no SHA-256"),
        ({"codec": CODEC | {"sine_codes": [1] * 7 + [64]}}, "codec.sine_codes"),
        ({"codec": CODEC | {"silence_codes": [1]}}, "codec.silence_codes"),
        ({"codec": CODEC | {"silence_codes": [-1] * 8}}, "codec.silence_codes"),
    ],
)
def test_a_manifest_from_elsewhere_names_nothing_outside_of_its_folder(
    corpus: list[Path], tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with refused("bad-shards", path, named):
        read_manifest(tmp_path / "out")


def test_a_manifest_of_an_early_version_has_no_hash_of_its_indexes(corpus: list[Path], tmp_path: Path) -> None:
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    facts = json.loads(path.read_text())
    del facts["index"]
    path.write_text(json.dumps(facts))
    assert read_manifest(tmp_path / "out").index == {}


def test_plain_webdataset_reads_the_shards(corpus: list[Path], tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    tars = [str(path) for path in sorted((tmp_path / "out" / "train").glob("*.tar"))]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == [f"qa-{n}" for n in range(2)] + [f"call-{n}" for n in range(2)] + [
        f"service-{n}" for n in range(4)
    ]
    assert samples[0]["codes.npy"].shape == (16, 50) and samples[0]["codes.npy"].dtype == np.int16
    assert samples[3]["meta.json"]["id"] == "call-1" and "right.voice.npy" in samples[3]


HF = """
import sys
from datasets import Features, Json, List, Value, load_dataset
codes = List(List(Value("int16")))
features = Features({
    "__key__": Value("string"), "__url__": Value("string"), "meta.json": Json(), "codes.npy": codes,
    "audio.flac": Value("binary"),
    "left.voice.flac": Value("binary"), "left.voice.npy": codes, "left.text.json": Json(),
    "right.voice.flac": Value("binary"), "right.voice.npy": codes, "right.text.json": Json()})
for streaming in (False, True):
    data = load_dataset("webdataset", data_files=sys.argv[1] + "/*.tar", features=features, split="train",
                        streaming=streaming, cache_dir=sys.argv[2])
    rows = list(data)
    print(*(row["__key__"] for row in rows))
    assert all(len(row["codes.npy"]) == 16 and row["meta.json"]["id"] == row["__key__"] for row in rows)
"""


def test_hugging_face_datasets_read_the_shards(corpus: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    args = [str(tmp_path / "out" / "train"), str(tmp_path / "cache")]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", HF, *args], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    expected = "qa-0 qa-1 call-0 call-1 service-0 service-1 service-2 service-3"
    assert done.stdout.splitlines() == [expected, expected]
