"""The stand-in corpus: from sounds in the layout of the Debian packages, and whole through the importer."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.executor import Executor
from data_pipelines.fisher.importer import import_corpus
from data_pipelines.fisher.layout import find_corpus
from data_pipelines.fisher.sphere import read_sphere
from data_pipelines.fisher.standin import LICENCE, fetch_sounds, fisher_text, make_corpus
from data_pipelines.fisher.tables import read_tables
from data_pipelines.fisher.transcript import read_transcript
from data_pipelines.schema import Dialogue
from data_pipelines.speech.engines import cache_root
from model.errors import UserError


def burst(path: Path, seconds: float, rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = np.random.default_rng(len(path.name)).normal(0, 0.1, int(seconds * rate))
    soundfile.write(path, np.pad(audio, rate // 4), rate, subtype="PCM_16")


@pytest.fixture()
def sounds(tmp_path: Path) -> Path:
    """Noise in the layout of the unpacked packages."""
    share = tmp_path / "sounds" / "usr" / "share"
    lines = ["; Core Sounds"]
    for number in range(30):
        burst(share / f"asterisk/sounds/en_US_f_Allison/prompt{number}.wav", 2 + number % 4, 8000)
        lines.append(f"prompt{number}: Please press {number % 10}, then pound.")
    burst(share / "asterisk/sounds/en_US_f_Allison/digits/oh.wav", 0.4, 8000)
    lines += ["digits/oh: oh", "tone: [a simple tone]"]
    doc = share / "doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    doc.parent.mkdir(parents=True)
    doc.write_bytes(gzip.compress("\n".join(lines).encode()))
    for name, listing, count in (("librivox", "transcription", 5), ("cards", "cards.transcription", 5)):
        folder = share / "pocketsphinx/test/data" / name
        for number in range(count):
            burst(folder / f"{name}-{number}.wav", 2.0 + number, 16000)
        text = "".join(f"<s> he was not an ill disposed young man  </s> ({name}-{n})\n" for n in range(count))
        (folder / listing).write_text(text)
    return tmp_path / "sounds"


def test_texts_are_written_as_fisher_writes_them() -> None:
    assert fisher_text("Press 1 to listen, or 2 to go on.") == "press one to listen or two to go on"
    assert fisher_text("I am sorry, that's not valid!") == "i am sorry that's not valid"
    for text in ("[beep]", "M I S D N", "H.323", "extension 42", "dollar [$]", "the PBX", ""):
        assert fisher_text(text) is None


def test_the_corpus_has_fishers_layout_tables_and_transcripts(tmp_path: Path, sounds: Path) -> None:
    pytest.importorskip("desphere_native")
    lines = make_corpus(tmp_path / "corpus", 6, 60.0, 0, sounds)
    corpus = find_corpus([tmp_path / "corpus"])
    assert corpus.calls == [f"{n:05d}" for n in range(1, 7)]
    assert corpus.audio["00001"] == tmp_path / "corpus/fe_03_p1_sph1/audio/000/fe_03_00001.sph"
    assert corpus.transcripts["00001"] == tmp_path / "corpus/fe_03_p1_tran/data/trans/000/fe_03_00001.txt"
    assert b"sample_coding -s27 ulaw,embedded-shorten-v2.00" in corpus.audio["00001"].read_bytes()[:1024]
    tables = read_tables(corpus.tables)
    assert not tables.missing and sorted(tables.calls) == corpus.calls
    odd, even = tables.call("00001"), tables.call("00002")
    assert odd.speakers == even.speakers[::-1] and odd.sexes == ("f", "") and tables.topics[odd.topic]
    assert (
        corpus.licences[0].read_text().strip() == LICENCE
        and "CC BY-SA 3.0" in (tmp_path / "corpus/README.txt").read_text()
    )
    assert any(LICENCE in line for line in lines)
    for call in corpus.calls:
        audio, rate = read_sphere(corpus.audio[call])
        assert rate == 8000 and audio.shape[1] == 2
        transcript = read_transcript(corpus.transcripts[call], call)
        assert transcript.transcriber == "LDC" and {u.letter for u in transcript.utterances} == {"A", "B"}
        for utterance in transcript.utterances:
            assert utterance.end <= len(audio) / rate
            heard = audio[int(utterance.start * rate) : int(utterance.end * rate), "AB".index(utterance.letter)]
            assert np.sqrt((heard**2).mean()) > 0.03


def test_a_seed_repeats_the_corpus_and_another_one_changes_it(tmp_path: Path, sounds: Path) -> None:
    def files(name: str, seed: int) -> dict[str, bytes]:
        make_corpus(tmp_path / name, 2, 40.0, seed, sounds)
        return {
            str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()
        }

    first = files("a", 0)
    assert first == files("b", 0) != files("c", 1)


def test_bad_settings_and_missing_sounds_are_errors(tmp_path: Path, sounds: Path) -> None:
    with pytest.raises(UserError, match="exists: give another --out"):
        make_corpus(sounds, 2, 60.0, 0, sounds)
    with pytest.raises(UserError, match="--calls 0"):
        make_corpus(tmp_path / "out", 0, 60.0, 0, sounds)
    with pytest.raises(UserError, match="--seconds 5"):
        make_corpus(tmp_path / "out", 1, 5.0, 0, sounds)
    with pytest.raises(UserError, match="unpack the Debian packages"):
        make_corpus(tmp_path / "out", 1, 60.0, 0, tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_real_speech_goes_through_the_importer_and_wrong_transcripts_do_not(tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("desphere_native")
    if not (cache_root() / "standin-sounds").is_dir():
        pytest.skip("no sounds in the cache: run `ppx-data standin` once")
    make_corpus(tmp_path / "corpus", 6, 60.0, 0, cache_root() / "standin-sounds")
    folder = tmp_path / "corpus/fe_03_p1_tran/data/trans/000"
    one, three = (folder / f"fe_03_0000{n}.txt" for n in (1, 3))
    one_text, three_text = one.read_text(), three.read_text()
    one.write_text(three_text)
    three.write_text(one_text)
    out = tmp_path / "out"
    report = import_corpus(
        [tmp_path / "corpus"], out, seed=0, executor=Executor(), max_seconds=150.0, voice_seconds=5.0
    )
    assert {item["id"] for item in report["rejected"]} == {"fe_03_00001", "fe_03_00003"}
    found = [Dialogue.from_json(p.read_text(), str(p)) for p in out.glob("*/meta.json")]
    assert {d.split for d in found} == {"train", "heldout"} and {d.licence for d in found} == {LICENCE}
    assert any(len(d.agent_sides) == 2 for d in found)
    assert all(d.gates["aligned_share"] > 0.9 and min(d.gates.values()) > 0.9 for d in found)


def tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_problems_with_apt_are_told_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="apt-get is missing.*--sounds DIR"):
        fetch_sounds()
    tool(tmp_path / "bin", "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    tool(tmp_path / "bin", "dpkg-deb", "exit 0")
    with pytest.raises(UserError, match="Unable to locate package.*apt-get update"):
        fetch_sounds()
    tool(tmp_path / "bin", "apt-get", "echo broken > $2_1.6.1-1_all.deb")
    with pytest.raises(UserError, match="asterisk-core-sounds-en_1.6.1-1_all.deb"):
        fetch_sounds()
    assert not (tmp_path / "cache" / "standin-sounds").exists()
