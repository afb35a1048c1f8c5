"""Makes calls of two invented people whose word times are known: small talk of a speech engine, sent by telephone.

The truth is written beside the layout, as truth/CALL.json: words, broken-off words, laughter and signs of listening of
both sides with times in the audio, and the facts of both speakers.
"""

# Shapes: C channels, S samples

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines.files import write_json
from data_pipelines.speech.protocols import Engine
from data_pipelines.standin.release import PART_2_BEGINS, CalldataRow, Person, write_call, write_notices, write_tables
from data_pipelines.standin.smalltalk import Persona, grammar, invent_facts
from data_pipelines.standin.spoken_talk import RATE_HZ, Sounded, SpokenUtterance, talk

LEVEL_DBFS = -24.0
ECHO_DBFS, ECHO_SECONDS = -46.0, 0.03
"""Each side leaks into the other's channel, this much softer and later."""
CALLS_A_PERSON = 3
UNCERTAIN_SHARE = 0.10
"""How many lines have a mark `((`; no count of the release is public."""


def make_synthetic(
    corpus: Path, num_calls: int, seconds: float, seed: int, engine: Engine, noise_dbfs: float, first_call: int
) -> tuple[float, int]:
    """Writes a corpus of synthetic calls in both parts' layout; returns seconds of audio and number of speakers.

    The calls of part 1 are numbered from `first_call`, those of part 2 from as far behind its beginning.
    """
    people = invent_people(num_calls, engine, seed)
    pairs = pair_up(people, num_calls, random.Random(f"{seed}/pairs"))
    topics = {f"ENG{n:02d}": topic for n, topic in enumerate(grammar()["topics"], 1)}
    rows, total = [], 0.0
    for number, sides in enumerate(tqdm(pairs, unit="call", desc="standin")):
        row = _row(number, num_calls, first_call, sides, sorted(topics), random.Random(f"{seed}/{number}/row"))
        rng = random.Random(f"{seed}/{int(row.call) - first_call + 1:05d}")  # The numbers change no talk.
        said = talk(topics[row.topic], sides, seconds, engine, rng)
        audio_SC = telephone_line(said, noise_dbfs, sides, rng)
        lines, original = transcribe(said, row.transcriber, rng)
        write_call(corpus, row, audio_SC, lines, original)
        total += len(audio_SC) / RATE_HZ
        (corpus / "truth").mkdir(exist_ok=True)
        write_json(corpus / "truth" / f"{row.call}.json", truth(row, said, sides, engine, len(audio_SC) / RATE_HZ))
        rows.append(row)
    titles = {key: topic["title"] for key, topic in topics.items()}
    write_tables(corpus, rows, [_person(persona) for persona in people], titles)
    licence = engine.identity()["output_licence"]
    write_notices(
        corpus,
        f"synthetic speech ({engine.identity()['version']}): {licence}",
        "Telephone calls in the layout of Fisher English between people who do not exist, spoken by a speech engine.\n"
        "Not Fisher data. truth/ holds the true times of all words; it is not part of the layout.\n",
    )
    return total, len({persona.pin for pair in pairs for persona in pair})


def invent_people(num_calls: int, engine: Engine, seed: int) -> list[Persona]:
    """Returns enough speakers for the calls, each with a voice, pace and level of their own."""
    rng = random.Random(f"{seed}/people")
    voices = [voice for voice in engine.voices() if not voice.held_out]
    rng.shuffle(voices)
    num = max(2, -(-2 * num_calls // (CALLS_A_PERSON - 1)))
    pins = rng.sample(range(900_000, 999_999), num)
    people = []
    for n, pin in enumerate(pins):
        voice = voices[n % len(voices)]
        sex = "f" if voice.sex == "female" else "m"
        people.append(
            Persona(
                pin=str(pin),
                sex=sex,
                dialect="a" if voice.accent == "us" else "o",
                voice=voice.key,
                speed=round(rng.uniform(0.9, 1.15), 2),
                level_db=round(rng.uniform(-4, 4), 1),
                facts=invent_facts(sex, rng),
            )
        )
    return people


def pair_up(people: Sequence[Persona], num_calls: int, rng: random.Random) -> list[tuple[Persona, Persona]]:
    """Returns two different people for each call, each in at most three calls while that is possible."""
    left = {persona.pin: CALLS_A_PERSON for persona in people}
    by_pin = {persona.pin: persona for persona in people}
    pairs = []
    for _ in range(num_calls):
        order = sorted(left, key=lambda pin: (left[pin] <= 0, rng.random()))
        for pin in order[:2]:
            left[pin] -= 1
        pairs.append((by_pin[order[0]], by_pin[order[1]]))
    return pairs


def _row(
    number: int,
    num_calls: int,
    first_call: int,
    sides: tuple[Persona, Persona],
    topics: Sequence[str],
    rng: random.Random,
) -> CalldataRow:
    """Returns the row of a call. The first half is in part 1, on two discs in turn; the LDC wrote each third call."""
    in_part_1 = number < (num_calls + 1) // 2
    call = first_call + (number if in_part_1 else PART_2_BEGINS - 1 + number - (num_calls + 1) // 2)
    disc = ("fe_03_p1_sph1", "fisher_eng_tr_sp_d2")[number % 2] if in_part_1 else "fe_03_p2_sph1"
    grades = (f"{rng.choice((2, 2.5, 3, 3.5, 4)):g}", rng.choice(("2.5", "3", "3.5", "4", "NA")))
    phones = (f'"{rng.randrange(10**9, 10**10)}"', f'"{rng.randrange(10**9, 10**10)}"')
    return CalldataRow(
        call=f"{call:05d}",
        disc=disc,
        topic=topics[number % len(topics)],
        sides=(_person(sides[0]), _person(sides[1])),
        grades=grades,
        phones=phones,
        transcriber="LDC" if number % 3 == 2 else "BBN",
    )


def _person(persona: Persona) -> Person:
    language = "English" if persona.dialect == "a" else "NA"
    return Person(pin=persona.pin, sex=persona.sex, dialect=persona.dialect, language=language)


def telephone_line(
    said: Sequence[SpokenUtterance], noise_dbfs: float, sides: tuple[Persona, Persona], rng: random.Random
) -> np.ndarray:
    """Returns both channels, float [samples, 2] at 8 kHz: speech at each one's level, echo of the other, and hiss."""
    length = int((max(utterance.end for utterance in said) + 0.8) * RATE_HZ)
    voices = np.zeros((length, 2))
    for utterance in said:
        audio, first = utterance.audio_S, round(utterance.start * RATE_HZ)
        level = LEVEL_DBFS + sides[utterance.speaker].level_db
        gain = 10 ** (level / 20) / max(float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))), 1e-6)
        voices[first : first + len(audio), utterance.speaker] += gain * audio
    delay, leak = round(ECHO_SECONDS * RATE_HZ), 10 ** ((ECHO_DBFS - LEVEL_DBFS) / 20)
    echo = np.pad(voices[:-delay, ::-1], ((delay, 0), (0, 0))) * leak
    hiss = np.random.default_rng(rng.getrandbits(64)).normal(0, 10 ** (noise_dbfs / 20), (length, 2))
    return np.clip(voices + echo + hiss, -1, 1)


def transcribe(said: Sequence[SpokenUtterance], transcriber: str, rng: random.Random) -> tuple[list[str], list[str]]:
    """Returns the timed lines as the LDC or BBN wrote them, and for BBN the lines of the typist."""
    lines: list[str] = []
    typed: dict[tuple[int, int], list[str]] = {}
    for utterance in said:
        start = max(0.0, utterance.start - rng.uniform(0, 0.12))
        text = _line(utterance.sounded, transcriber, rng)
        lines.append(f"{start:.2f} {utterance.end + rng.uniform(0, 0.12):.2f} {'AB'[utterance.speaker]}: {text}")
        typed.setdefault((utterance.turn, utterance.speaker), []).append(_typed(utterance.sounded, rng))
    if transcriber == "LDC":
        return lines, []
    return lines, [f"{'LR'[speaker]}:  {'  '.join(parts)}" for (_, speaker), parts in typed.items()]


def _line(sounded: Sequence[Sounded], transcriber: str, rng: random.Random) -> str:
    """Returns the text of a timed line; a tenth of the lines is uncertain, as the two transcribers mark them.

    BBN's are whole lines, whose text is right. The LDC's have a guess, or nothing, for what was not understood.
    """
    words = [_bare(word) for word in sounded]
    draw = rng.random()
    if draw < UNCERTAIN_SHARE and transcriber == "BBN":
        return f"(( {' '.join(words)} ))"
    if draw < UNCERTAIN_SHARE and len(words) > 3:
        guess = words[-2:] if draw < 0.6 * UNCERTAIN_SHARE else []
        return " ".join([*words[:-2], "((", *guess, "))"])
    if draw < 0.2 * UNCERTAIN_SHARE:
        return "(( ))"
    if draw > 0.96:
        words.insert(0, rng.choice(("[noise]", "[lipsmack]", "[breath]", "[mn]")))
    return " ".join(words)


def _bare(word: Sounded) -> str:
    """Returns a word as transcripts have it: lower case, no punctuation, t._v., word-."""
    if word.kind == "laugh":
        return "[laughter]"
    if word.kind == "partial":
        return f"{word.text}-"
    letters = re.fullmatch(r"((?:[A-Z]\.)+)[,?!]?", word.text)
    return letters[1].lower().replace(".", "._")[:-1] if letters else re.sub(r"[^a-z'-]", "", word.text.lower())


def _typed(sounded: Sequence[Sounded], rng: random.Random) -> str:
    """Returns an utterance as typed: [LAUGH], broken-off words with a dash, [?] where the typist guessed."""
    forms = {"laugh": "[LAUGH]"}
    words = [forms.get(word.kind, f"{word.text}-" if word.kind == "partial" else word.text) for word in sounded]
    if rng.random() < 0.02 and sounded[-1].kind == "word":
        words[-1] += "[?]"
    return " ".join(words)


def truth(
    row: CalldataRow, said: Sequence[SpokenUtterance], sides: tuple[Persona, Persona], engine: Engine, seconds: float
) -> dict[str, Any]:
    """Returns what is known of a call, for truth/CALL.json, without PINs."""
    found: dict[str, Any] = {"call": row.call, "seconds": round(seconds, 4), "engine": engine.identity(), "sides": {}}
    for side, letter in enumerate("AB"):
        own = [utterance for utterance in said if utterance.speaker == side]
        words = [word for utterance in own for word in utterance.sounded]
        found["sides"][letter] = {
            "voice": sides[side].voice,
            "facts": sides[side].facts,
            "said_facts": _said_facts(sides[side].facts, words),
            "words": [[word.text, word.start, word.end] for word in words if word.kind == "word"],
            "partials": [[word.text, word.start, word.end] for word in words if word.kind == "partial"],
            "laughter": [[word.start, word.end] for word in words if word.kind == "laugh"],
            "backchannels": [[u.sounded[0].start, u.sounded[-1].end] for u in own if u.is_backchannel],
        }
    return found


def _said_facts(facts: dict[str, str], words: Sequence[Sounded]) -> list[str]:
    """Returns the facts that a side's words state."""
    text = " ".join(re.sub(r"[^a-z' ]", "", word.text.lower()) for word in words if word.kind == "word")
    return [key for key, value in facts.items() if f" {value.lower()} " in f" {text} "]
