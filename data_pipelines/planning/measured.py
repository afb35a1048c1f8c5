"""Measures the rates of this machine: every stage does a little real work, in one process with one thread.

Speeds count CPU seconds, which other programs hardly change. A stage whose package is missing is left out.
"""

# Shapes: C channels, S samples

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from data_pipelines.planning.rates import Rates
from data_pipelines.records.folder import find_dialogues, load_dialogue
from data_pipelines.records.schema import Dialogue, Script
from model.errors import UserError

SCRIPTS, SPOKEN, KOKORO, HEARD = 400, 12, 2, 2
"""How many scripts are written, are spoken by espeak-ng, are spoken by Kokoro, and are listened to."""
CALL_SECONDS, READ_AGAIN = 150, 5
"""The length of the call for the Fisher import, and how often it is read."""
FULL_SECONDS = 8
"""The length of the audio for the codec at full size."""


class _Stopwatch:
    """Holds the CPU seconds of a block after its end."""

    seconds = 0.0


def measure(say: Callable[[str], None] = print) -> Rates:
    """Measures in a minute or two what can be measured here; `say` is called with a line for each stage left out.

    Raises: UserError if espeak-ng is not installed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rates = Rates(machine=f"{_processor()}, {os.cpu_count()} cores, one used, torch {torch.__version__}")
    try:
        with tempfile.TemporaryDirectory(prefix="ppx-plan-") as folder:
            place = Path(folder)
            scripts = _write(rates)
            _speak(rates, scripts[:SPOKEN], "espeak", place / "espeak")
            for name, work in (
                ("speak_kokoro", lambda: _kokoro(rates, scripts[:KOKORO], place / "kokoro")),
                ("fisher", lambda: _fisher(rates, place)),
                ("gate", lambda: _gate(rates, place / "espeak", place / "gate")),
            ):
                try:
                    work()
                except UserError as why:
                    say(f"{name} is not measured: {why}")
            _shard(rates, place / "espeak", place / "shards")
            _full_codec(rates)
    finally:
        torch.set_num_threads(threads)
    return rates


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@contextmanager
def _timed() -> Iterator[_Stopwatch]:
    """Measures the CPU seconds of the block, of this process and of the programs that it runs."""
    stopwatch, before = _Stopwatch(), os.times()
    yield stopwatch
    after = os.times()
    stopwatch.seconds = max(sum(after[:4]) - sum(before[:4]), 1e-3)


def _write(rates: Rates) -> list[Script]:
    from data_pipelines.writer.synth import write_scripts

    write_scripts("service", num=4, seed=1)  # reads the tables, which is not to be measured
    with _timed() as stopwatch:
        scripts = write_scripts("service", num=SCRIPTS, seed=0)
    rates.measured("write_template", SCRIPTS / stopwatch.seconds, f"{SCRIPTS} service scripts")
    size = sum(len(script.to_json().encode()) for script in scripts) / SCRIPTS / 1e3
    rates.measured("script_size", size, f"{SCRIPTS} service scripts")
    return scripts


def _speak(rates: Rates, scripts: Sequence[Script], name: str, out: Path) -> None:
    """Speaks scripts into `out`."""
    from data_pipelines.speech.speak import shared_engine, speak_one
    from data_pipelines.speech.stitch import StitchOptions

    engine = shared_engine(name)
    options = StitchOptions()
    warm, *rest = scripts
    speak_one(warm, engine, 0, options, out)
    with _timed() as stopwatch:
        spoken = [speak_one(script, engine, 0, options, out) for script in rest]
    seconds = sum(one.seconds for one in spoken)
    if not seconds:
        raise UserError(f"{name}: no dialogue was spoken ({spoken[0].reason})", code="no-data")
    rates.measured(f"speak_{name}", seconds / stopwatch.seconds, f"{len(rest)} service dialogues, {seconds:.0f} s")


def _kokoro(rates: Rates, scripts: Sequence[Script], out: Path) -> None:
    from data_pipelines.speech.engines import is_kokoro_fetched

    if not is_kokoro_fetched():
        raise UserError("its weights are not here: run `ppx-data fetch kokoro`", code="missing-engine")
    _speak(rates, scripts, "kokoro", out)


def _fisher(rates: Rates, place: Path) -> None:
    """Imports a call in Fisher's layout, shorten-coded, that espeak-ng speaks."""
    from data_pipelines.listening.align import shared_aligner
    from data_pipelines.recordings.fisher.call import import_call
    from data_pipelines.recordings.fisher.call_tables import read_tables
    from data_pipelines.recordings.fisher.found import calls_of
    from data_pipelines.recordings.fisher.job import FisherSettings
    from data_pipelines.recordings.fisher.layout import find_corpus
    from data_pipelines.recordings.fisher.read_call import read_call, to_24k
    from data_pipelines.recordings.windows import WindowLimits
    from data_pipelines.standin.standin import make_truth_corpus

    make_truth_corpus(place / "corpus", 1, CALL_SECONDS, 0, "espeak")
    corpus, out = find_corpus([place / "corpus"]), place / "dialogues"
    (files,) = calls_of(corpus, read_tables(corpus.tables))
    settings = FisherSettings(seed=0, limits=WindowLimits(max_seconds=140.0), voice_seconds=5.0, licence="none")
    out.mkdir()
    shared_aligner()
    with _timed() as reading:
        for _ in range(READ_AGAIN):
            read = read_call(files, settings.filters)
            to_24k(read.audio_CS, read.rate, settings)
    with _timed() as whole:
        draft = import_call(files, settings, out)
    if draft.rejected:
        raise UserError(f"the call was rejected ({draft.rejected})", code="no-data")
    read_once = reading.seconds / READ_AGAIN
    source = f"a call of {read.seconds:.0f} s, espeak-ng in shorten-coded SPHERE"
    rates.measured("fisher_read", read.seconds / read_once, source)
    rates.measured("fisher_align", read.seconds / max(whole.seconds - read_once, 1e-3), source)
    size = sum(path.stat().st_size for path in out.glob("*/audio.flac"))
    seconds = sum(dialogue.seconds for dialogue in draft.dialogues)
    rates.measured("audio_call", size / 1e6 / seconds * 3600, f"{source}; noisier lines take more")


def _gate(rates: Rates, folder: Path, out: Path) -> None:
    from data_pipelines.quality.measure import Listening, measure_one

    (out / "measured").mkdir(parents=True)
    found = _some(folder)
    for name, listening in (("gate_levels", Listening(asr="none", speaker="none")), ("gate", Listening())):
        measure_one(found[0][0], listening, out)  # opens the recogniser and the embedder
        with _timed() as stopwatch:
            for place, _ in found:
                measure_one(place, listening, out)
        _note(rates, name, found, stopwatch, f"recogniser {listening.asr}, voices {listening.speaker}")


def _shard(rates: Rates, folder: Path, out: Path) -> None:
    """Encodes with the small codec, packs, and measures the sizes on disk."""
    from data_pipelines.shards.codec import SharedCodec
    from data_pipelines.shards.encode import encode_folder
    from data_pipelines.shards.members import clip_name
    from data_pipelines.shards.pack import pack_all, tar_hashes
    from data_pipelines.shards.rows import Index
    from data_pipelines.shards.scan import build_index
    from model.weights.sources import codec_path

    found = [(place, load_dialogue(place)) for place in find_dialogues([folder])]
    codec, work = SharedCodec(codec_path("small")), out / ".work"
    work.mkdir(parents=True)
    codec.encode(torch.zeros(1, 1, 1920))
    with _timed() as stopwatch:
        done = [encode_folder(place, codec=codec, fingerprint="plan", work=work) for place, _ in found]
    _note(rates, "encode_small", found, stopwatch, "`ppx-data shard`, first pass, shipped codec")
    dialogues = [one.summary for one in done if one.summary]
    splits = {dialogue.split for dialogue in dialogues}
    # Packing waits for the disk as much as for the processor, so the clock measures it.
    start = time.perf_counter()
    shards = pack_all(dialogues, out, work, 512_000_000)
    for split in splits:
        build_index(out / split, tar_hashes(shards, split))
    elapsed = time.perf_counter() - start
    megabytes = sum(shard.bytes for shard in shards.values()) / 1e6
    rates.measured("pack", megabytes / elapsed, f"{megabytes:.0f} MB, by the clock, index included")
    hours = sum(dialogue.seconds for _, dialogue in found) / 3600
    sides = sum(len(dialogue.agent_sides) for _, dialogue in found)
    source = f"{len(found)} service dialogues, espeak-ng"
    size = sum((place / "audio.flac").stat().st_size for place, _ in found)
    rates.measured("audio_synthetic", size / 1e6 / hours, source)
    rates.measured("record", sum(len(d.to_json().encode()) for _, d in found) / 1e6 / hours, source)
    clips = sum((place / clip_name(side)).stat().st_size for place, d in found for side in d.agent_sides)
    rates.measured("voice_clip", clips / 1e3 / sides, source)
    columns = [c for split in splits for c in Index.load(out / split).columns.values()]
    rates.measured("index_row", sum(column.nbytes for column in columns) / sides, source)


def _full_codec(rates: Rates) -> None:
    """Encodes with Mimi at full size and random weights, which do not change its speed."""
    from data_pipelines.shards.encode import encode_audio
    from model.mimi.codec import Mimi
    from model.mimi.config import MimiConfig

    codec = Mimi(MimiConfig.full()).eval()
    audio_CS = torch.randn(2, FULL_SECONDS * 24_000).mul(0.1).numpy()
    encode_audio(codec, audio_CS[:, :24_000])
    with _timed() as stopwatch:
        encode_audio(codec, audio_CS)
    source = f"{FULL_SECONDS} s of two channels, random weights; without reading files, 1 % of it"
    rates.measured("encode_full", FULL_SECONDS / stopwatch.seconds, source)


def _some(folder: Path) -> list[tuple[Path, Dialogue]]:
    return [(place, load_dialogue(place)) for place in find_dialogues([folder])[:HEARD]]


def _note(rates: Rates, name: str, found: Sequence[tuple[Path, Dialogue]], stopwatch: _Stopwatch, what: str) -> None:
    seconds = sum(dialogue.seconds for _, dialogue in found)
    rates.measured(name, seconds / stopwatch.seconds, f"{seconds:.0f} s of dialogue: {what}")
