"""The stand-in corpus as lhotse's Fisher recipe reads it, whose audio goes through sph2pipe."""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.recordings.fisher import sphere
from data_pipelines.recordings.fisher.layout import find_corpus
from data_pipelines.recordings.fisher.timed_lines import read_transcript
from data_pipelines.standin.standin import make_truth_corpus

needs_sph2pipe = pytest.mark.skipif(not shutil.which("sph2pipe"), reason="sph2pipe is not on the PATH: build it")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("espeakng_loader", "desphere_native"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("synthetic") / "corpus"
    make_truth_corpus(out, 6, 40.0, 3, "espeak", -62.0)
    return out


@needs_sph2pipe
def test_sph2pipe_decodes_the_discs_bit_for_bit(corpus: Path) -> None:
    for path in find_corpus([corpus]).audio.values():
        done = subprocess.run(["sph2pipe", "-f", "wav", "-p", str(path)], check=True, capture_output=True)
        heard_SC, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32", always_2d=True)
        ours_SC, our_rate, decoder = sphere.decode(path)
        assert rate == our_rate and decoder != "sph2pipe"
        np.testing.assert_array_equal(heard_SC, ours_SC)


@needs_sph2pipe
def test_lhotse_finds_the_segments_and_the_sound_that_the_importer_finds(corpus: Path, tmp_path: Path) -> None:
    fisher_english = pytest.importorskip(
        "lhotse.recipes.fisher_english", reason="lhotse is not installed: pip install lhotse"
    )
    found = find_corpus([corpus])
    audio, text = [], []  # The recipe expects a folder for each disc set and each part, of any name.
    for part in (1, 2):
        for folder in sorted({found.audio[call].parents[2] for call in found.calls if (call < "05851") == (part == 1)}):
            link = tmp_path / f"audio{part}" / folder.name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(folder)
        audio.append(f"audio{part}")
        text.append(f"text{part}")
        (tmp_path / f"text{part}").symlink_to(corpus / f"fe_03_p{part}_tran")
    made = fisher_english.prepare_fisher_english(tmp_path, tmp_path / "out", audio, text, absolute_paths=True)
    segments, ours = set(), set()
    for segment in made["supervisions"]:
        words = tuple(segment.text.split())
        segments.add((segment.recording_id, segment.channel, segment.start, round(segment.end, 2), words))
    for call in found.calls:
        lines = read_transcript(found.transcripts[call], call).lines
        raw = found.transcripts[call].read_bytes().decode("cp1252").splitlines()
        texts = {tuple(line.split()[:3]): tuple(line.split()[3:]) for line in raw[3:] if line.strip()}
        for line in lines:
            side = "AB"["left right".split().index(line.side)]
            words = texts[f"{line.start:.2f}", f"{line.end:.2f}", f"{side}:"]
            ours.add((f"fe_03_{call}", "AB".index(side), line.start, line.end, words))
    assert segments == ours and len(ours) > 20
    assert len(list(made["recordings"])) == len(found.calls)
    for recording in made["recordings"]:
        expected_SC, _, _ = sphere.decode(found.audio[recording.id.removeprefix("fe_03_")])
        np.testing.assert_array_equal(recording.load_audio(), expected_SC.T)
