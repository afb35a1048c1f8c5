"""Fisher calls in the shapes of the release: speech is bursts of noise, over which a fake aligner spreads the words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipelines.execution.executor import Executor
from data_pipelines.listening.align import Alignment
from data_pipelines.recordings.drafts import ImportReport
from data_pipelines.recordings.fisher.importer import import_corpus
from data_pipelines.recordings.fisher.job import FisherSettings
from data_pipelines.recordings.fisher.sphere import SHORTEN_CODING, write_sphere
from data_pipelines.recordings.windows import WindowLimits
from data_pipelines.records.schema import Dialogue, Word

CALLDATA = """\
CALL_ID,DATE_TIME,TOPICID,SIG_GRADE,CNV_GRADE,APIN,ASX.DL,APHNUM,APHSET,APHTYP,BPIN,BSX.DL,BPHNUM,BPHSET,BPHTYP
00001,20021213_19:36:35,ENG01,3,3,2602,f.a,"5405513275",3,1,1790,m.o,"7039678877",2,1
00002,20021213_19:47:50,ENG02,3.5,NA,4242,m.a,,,,1790,m.o,,,
broken line
00003,20021213_19:47:50,ENG01,3,3,2637,.,,,,2637,m.a,,,
"""
TOPICS = """\
<topic id="ENG01" title="Professional Sports on TV.">
Do either of you have a favorite TV sport? << not counted >>
</topic>
<topic id="ENG02" title="Hypothetical Situations. One Million Dollars to leave the US.">
Would you accept it & go?
</topic>
"""
Line = tuple[float, float, str, str]
"""Start and end in seconds, A or B, and what is said."""


def talk(seconds: float, length: float = 5.0, words: int = 8) -> list[Line]:
    """Utterances of both sides in turn, with half a second between them."""
    lines, start, turn = [], 0.8, 0
    while start + length < seconds - 0.3:
        lines.append((start, start + length, "AB"[turn % 2], " ".join(["alpha bravo charlie delta"] * (words // 4))))
        start += length + 0.5
        turn += 1
    return lines


def write_call(
    root: Path,
    call: str,
    lines: list[Line],
    seconds: float,
    heard: list[Line] | None = None,
    places: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """One call: noise bursts where `heard` (default: the transcript) says, mu-law shorten SPHERE, LDC transcript."""
    rng = np.random.default_rng(int(call))
    audio = rng.normal(0, 0.001, (int(seconds * 8000), 2))
    for start, end, letter, _ in heard if heard is not None else lines:
        first, last = int(start * 8000), min(int(end * 8000), len(audio))
        if last > first:
            audio[first:last, "AB".index(letter)] += rng.normal(0, 0.1, last - first)
    sound = root / places.get("audio", "fe_03_p1_sph1/audio/{n}").format(n=call[:3])
    text = root / places.get("text", "fe_03_p1_tran/data/trans/{n}").format(n=call[:3])
    sound.mkdir(parents=True, exist_ok=True)
    text.mkdir(parents=True, exist_ok=True)
    write_sphere(sound / f"fe_03_{call}.sph", np.clip(audio, -1, 1).astype(np.float32), coding=SHORTEN_CODING)
    body = "".join(f"{start:.2f} {end:.2f} {letter}: {words} \n\n" for start, end, letter, words in lines)
    (text / f"fe_03_{call}.txt").write_text(f"# fe_03_{call}.sph\n# Transcribed at the LDC\n\n{body}")


def write_tables(root: Path) -> None:
    """Tables of three calls in the layout of part 1."""
    doc = root / "fe_03_p1_tran" / "doc"
    doc.mkdir(parents=True, exist_ok=True)
    (doc / "fe_03_p1_calldata.tbl").write_text(CALLDATA)
    (doc / "fe_03_pindata.tbl").write_text("PIN,S,AGE\n2637,F,54,16,English,WA,2,06972_A/m.a;08175_A/f.a\n2602,NA,NA\n")
    (doc / "fe_03_topics.sgm").write_text(TOPICS)
    (root / "filetable.txt").write_text("fe_03_p1_sph1 fe_03_00001.sph fm\n")


class FakeAligner:
    """Spreads words evenly over the audio without its margins; refuses texts that begin with "Reject"."""

    def align(
        self, audio: npt.NDArray[np.float32], rate: int, words: Sequence[str], *, min_score: float | None = None
    ) -> Alignment | None:
        """As the real one."""
        seconds = len(audio) / rate
        if not words or words[0].lower() == "reject" or seconds < 0.5:
            return None
        edges = np.linspace(0.2, seconds - 0.2, len(words) + 1)
        spans = zip(words, edges[:-1], edges[1:], strict=True)
        return Alignment(
            words=tuple(Word(text=w, start=float(a), end=float(b)) for w, a, b in spans), score=-15.0, phone_score=-15.0
        )


def imported(
    roots: Sequence[Path],
    out: Path,
    *,
    limit: int | None = None,
    max_seconds: float = 40.0,
    voice_seconds: float = 5.0,
    **changes: Any,
) -> ImportReport:
    """Imports with the settings of the command, but for these."""
    limits = WindowLimits(max_seconds=max_seconds)
    settings = FisherSettings(**{"seed": 0, "licence": "", **changes}, limits=limits, voice_seconds=voice_seconds)
    return import_corpus(roots, out, settings, executor=Executor(), limit=limit)


def dialogues(out: Path) -> dict[str, Dialogue]:
    """The records of a folder by their ids."""
    return {p.parent.name: Dialogue.from_json(p.read_text(), str(p)) for p in sorted(out.glob("*/meta.json"))}
