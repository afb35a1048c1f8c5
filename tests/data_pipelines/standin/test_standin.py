"""The stand-in corpus: from sounds in the layout of the Debian packages, and whole through the importer."""

import argparse
import gzip
import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.execution.executor import Executor
from data_pipelines.files import cache_root
from data_pipelines.recordings.fisher.call_tables import read_tables
from data_pipelines.recordings.fisher.found import licence_of
from data_pipelines.recordings.fisher.importer import import_corpus
from data_pipelines.recordings.fisher.job import FisherSettings
from data_pipelines.recordings.fisher.layout import find_corpus
from data_pipelines.recordings.fisher.sphere import decode
from data_pipelines.recordings.fisher.timed_lines import SIDE_OF, read_transcript
from data_pipelines.recordings.fisher.written import key_of
from data_pipelines.recordings.windows import WindowLimits
from data_pipelines.records.folder import find_dialogues, load_dialogue
from data_pipelines.records.schema import SIDES, Dialogue, Word
from data_pipelines.sound.levels import swap_ratio
from data_pipelines.standin.recorded import LICENCE
from data_pipelines.standin.sounds import fetch_sounds, fisher_text
from data_pipelines.standin.standin import add_arguments, make_corpus, make_truth_corpus, run
from data_pipelines.standin.truth import word_errors
from model.errors import UserError
from tests.data_pipelines.kill import tree
from tests.refusals import refused


def burst(path: Path, seconds: float, rate: int) -> None:
    """Noise with silence around it."""
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
    assert licence_of(corpus) == LICENCE and "CC BY-SA 3.0" in (tmp_path / "corpus/README.txt").read_text()
    assert any(LICENCE in line for line in lines)
    for call in corpus.calls:
        audio, rate, _ = decode(corpus.audio[call])
        assert rate == 8000 and audio.shape[1] == 2
        transcript = read_transcript(corpus.transcripts[call], call)
        assert transcript.transcriber == "LDC" and {line.side for line in transcript.lines} == set(SIDES)
        for line in transcript.lines:
            assert line.end <= len(audio) / rate
            heard = audio[int(line.start * rate) : int(line.end * rate), SIDES.index(line.side)]
            assert np.sqrt((heard**2).mean()) > 0.03


def test_a_seed_repeats_the_corpus_and_another_one_changes_it(tmp_path: Path, sounds: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_corpus(tmp_path / name, 2, 40.0, seed, sounds)
    assert tree(tmp_path / "a") == tree(tmp_path / "b") != tree(tmp_path / "c")


def test_bad_settings_and_missing_sounds_are_errors(tmp_path: Path, sounds: Path) -> None:
    with refused("exists", sounds):
        make_corpus(sounds, 2, 60.0, 0, sounds)
    with refused("bad-value", "--calls 0"):
        make_corpus(tmp_path / "out", 0, 60.0, 0, sounds)
    with refused("bad-value", "--seconds 5"):
        make_corpus(tmp_path / "out", 1, 5.0, 0, sounds)
    with refused("not-found", tmp_path / "nothing", "`dpkg-deb -x`"):
        make_corpus(tmp_path / "out", 1, 60.0, 0, tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six synthetic calls of 40 s by espeak."""
    for package in ("espeakng_loader", "desphere_native"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("synthetic") / "corpus"
    lines = make_truth_corpus(out, 6, 40.0, 3, "espeak", -62.0)
    assert "6 calls" in lines[0] and str(out / "truth") in lines[0]
    return out


def test_synthetic_calls_have_the_layout_of_both_parts(synthetic: Path) -> None:
    corpus = find_corpus([synthetic])
    assert corpus.calls == ["00001", "00002", "00003", "05851", "05852", "05853"]
    discs = {call: corpus.audio[call].relative_to(synthetic).parts[0] for call in corpus.calls}
    assert discs["00001"] == "fe_03_p1_sph1" and discs["00002"] == "fisher_eng_tr_sp_d2"
    assert discs["05851"] == "fe_03_p2_sph1"
    assert sorted(corpus.originals) == ["00001", "00002", "05851", "05852"]  # the others are the LDC's
    assert corpus.originals["05851"] == synthetic / "fe_03_p2_tran/data/bbn_orig/058/originals/fe_03_05851.txo"
    assert (synthetic / "fe_03_p1_sph1/filetable.txt").is_file()
    assert (synthetic / "fe_03_p2_sph1/docs/filetable2.txt").is_file()
    tables = read_tables(corpus.tables)
    assert not tables.missing and sorted(tables.calls) == corpus.calls
    speakers = [key for call in corpus.calls for key in tables.call(call).speakers]
    assert len(set(speakers)) < len(speakers) and max(map(speakers.count, speakers)) <= 3
    assert all(tables.call(c).speakers[0] != tables.call(c).speakers[1] for c in corpus.calls)
    assert all(b"embedded-shorten" in path.read_bytes()[:1024] for path in corpus.audio.values())


def test_the_truth_is_what_the_transcripts_say_and_where_the_sound_is(synthetic: Path) -> None:
    corpus = find_corpus([synthetic])
    for call in corpus.calls:
        truth = json.loads((synthetic / f"truth/{call}.json").read_text())
        audio, rate, _ = decode(corpus.audio[call])
        transcript = read_transcript(corpus.transcripts[call], call)
        assert not transcript.num_faulty and not transcript.num_overlapping
        for channel, (letter, side) in enumerate(SIDE_OF.items()):
            words = truth["sides"][letter]["words"]
            keys = [key_of(text) for text, _, _ in words]
            said = [key_of(t.said) for line in transcript.lines if line.side == side for t in line.tokens if t.said]
            partial = [key_of(text) for text, _, _ in truth["sides"][letter]["partials"]]
            assert not Counter(said) - Counter(keys + partial)
            assert len(said) > 0.75 * len(keys)
            starts = [start for _, start, _ in words]
            assert starts == sorted(starts) and words[-1][2] < truth["seconds"]
            times = [*(span[-2:] for span in words), *truth["sides"][letter]["laughter"]]
            inside = [Word(text="", start=start, end=end) for start, end in times]
            assert swap_ratio(audio[:, channel], rate, inside) > 4
        first = truth["sides"]["A"]
        assert {"name", "town", "job", "pet", "pet_name"} <= first["facts"].keys()
        text = " ".join(text for text, _, _ in first["words"])
        assert first["said_facts"] and all(first["facts"][key] in text for key in first["said_facts"] if key == "town")


def test_the_two_sides_answer_each_other(synthetic: Path) -> None:
    questions = answers = 0
    for path in sorted(synthetic.rglob("*.txo")):
        turns = [line.split(":  ", 1) for line in path.read_text("cp1252").splitlines()]
        for (side, text), (other, _) in itertools.pairwise(turns):
            if text.rstrip("[] ?").endswith("?") or text.endswith("?"):
                questions += 1
                answers += side != other
    assert questions >= 15 and answers >= 0.9 * questions


def test_synthetic_calls_are_repeated_by_their_seed(synthetic: Path, tmp_path: Path) -> None:
    make_truth_corpus(tmp_path / "again", 6, 40.0, 3, "espeak", -62.0)
    assert tree(synthetic) == tree(tmp_path / "again")


def test_the_importer_finds_word_times_within_40_ms_and_shows_no_pin(
    synthetic: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pocketsphinx")
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(synthetic, corpus, ignore=shutil.ignore_patterns("truth"))
    damaged = corpus / "fe_03_p1_sph1/audio/000/fe_03_00003.sph"
    damaged.write_bytes(damaged.read_bytes()[:3000])  # This call will be rejected.
    settings = FisherSettings(seed=0, limits=WindowLimits(max_seconds=20.0), voice_seconds=4.0, licence="")
    report = import_corpus([corpus], out, settings, executor=Executor())
    assert [note.id for note in report.rejected] == ["fe_03_00003"] and len(report.dialogues) >= 6
    found = [load_dialogue(path) for path in find_dialogues([out])]
    figures = word_errors(found, synthetic / "truth").figures()
    print(figures)
    assert figures["words"] >= 100 and figures["far %"] <= 2
    assert figures["median ms"] <= 40 and figures["p95 ms"] <= 150 and abs(figures["bias ms"]) <= 25
    assert any(word.text[-1] in ".,?" for d in found for word in d.left.words)  # These are as somebody typed them.
    assert all(d.licence.startswith("synthetic speech") for d in found)
    pins = re.findall(r"^(9\d{5}),", (corpus / "fe_03_p1_tran/doc/fe_03_pindata.tbl").read_text(), re.MULTILINE)
    tables = "".join(path.read_text() for path in corpus.rglob("*_calldata.tbl"))
    phones = re.findall(r'"(\d{10})"', tables)
    assert len(pins) >= 4 and len(phones) == 12
    printed = capfd.readouterr()
    texts = [printed.out, printed.err, *(path.read_text() for path in out.rglob("*") if path.suffix == ".json")]
    texts += [str(path) for path in out.rglob("*")]
    for secret in pins + phones:
        assert not any(re.search(rf"(?<![\d.]){secret}(?!\d)", text) for text in texts)
    tags = b"".join(path.read_bytes()[:400] for path in out.rglob("*.flac"))
    assert not any(secret.encode() in tags for secret in pins + phones)


def test_options_of_the_other_kind_of_speech_are_refused(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = ["--out", str(tmp_path / "out")]
    with refused("bad-combination", "--engine", "--speech synthetic only"):
        run(parser.parse_args([*out, "--engine", "espeak"]))
    with refused("bad-combination", "--sounds", "--speech recorded only"):
        run(parser.parse_args([*out, "--speech", "synthetic", "--sounds", "x"]))
    with refused("bad-value", "--noise-dbfs 0"):
        run(parser.parse_args([*out, "--speech", "recorded", "--sounds", "x", "--noise-dbfs", "0"]))


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
    one.write_text(three_text.replace("fe_03_00003", "fe_03_00001"))
    three.write_text(one_text.replace("fe_03_00001", "fe_03_00003"))
    out = tmp_path / "out"
    settings = FisherSettings(seed=0, limits=WindowLimits(max_seconds=140.0), voice_seconds=5.0, licence="")
    report = import_corpus([tmp_path / "corpus"], out, settings, executor=Executor())
    assert {note.id for note in report.rejected} == {"fe_03_00001", "fe_03_00003"}
    assert all("of its lines fit" in n.reason or "does not match" in n.reason for n in report.rejected)
    found = [Dialogue.from_json(p.read_text(), str(p)) for p in out.glob("*/meta.json")]
    assert {d.split for d in found} == {"train", "heldout"} and {d.licence for d in found} == {LICENCE}
    assert any(len(d.agent_sides) == 2 for d in found)
    assert all(d.gates["aligned_share"] > 0.9 and min(d.gates.values()) > 0.9 for d in found)


def tool(folder: Path, name: str, script: str) -> None:
    """A program in a folder of programs."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_problems_with_apt_name_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with refused("missing-package", "apt-get", "--sounds DIR"):
        fetch_sounds()
    tool(tmp_path / "bin", "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    tool(tmp_path / "bin", "dpkg-deb", "exit 0")
    with refused("program-failed", "Unable to locate package", "`apt-get update`"):
        fetch_sounds()
    tool(tmp_path / "bin", "apt-get", "echo broken > $2_1.6.1-1_all.deb")
    with pytest.raises(UserError, match="asterisk-core-sounds-en_1.6.1-1_all.deb"):  # It is the checksum that fails.
        fetch_sounds()
    assert not (tmp_path / "cache" / "standin-sounds").exists()
