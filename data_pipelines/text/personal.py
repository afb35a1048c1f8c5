"""Finds what identifies a person in words with times, by rules: numbers, dates of birth, e-mail, addresses, names.

The rules are for English calls. They look for runs of words of a kind, and for cues before them ("my number is") that
either side may have said. Written and spoken forms are found ("415-555-0134", "four one five, five five five ...").
"""

import re
from collections.abc import Collection, Iterator, Sequence

from data_pipelines.text.personal_lists import (
    AMBIGUOUS,
    BETWEEN,
    BIRTH_CUES,
    DIGITS,
    LOOSE_STREETS,
    MONTHS,
    NO_LOCAL,
    NO_NAMES,
    NUMBER_CUES,
    ORDINALS,
    STREETS,
    TLDS,
    UNITS,
)
from data_pipelines.text.personal_names import asked_names, cued_names, name_words, spelled_names
from data_pipelines.text.personal_words import MARKERS, PersonalRun, SaidWord, as_words, is_cased, plain_word, stem_of

LONG_NUMBER = 5
"""Digits that are personal wherever they stand; prices and years have fewer, and units that show what they are."""
CUED_NUMBER = 3
CUE_SECONDS = 12.0
PAUSE_SECONDS = 6.0
"""Longer pauses of a speaker end a run."""


def personal_runs(
    sides: Sequence[Sequence[SaidWord]], names: Collection[str], known: Collection[str] = ()
) -> list[list[PersonalRun]]:
    """Returns what is personal for each side's words, in order; runs of a side do not overlap.

    names: common names in lower case, which are believed after weak cues ("I'm ..."). known: names of these people,
    which are masked wherever they stand, as are all names that a cue shows anywhere in the call.
    """
    lowered = frozenset(name.lower() for name in names)
    cued = {"number": NUMBER_CUES, "date": BIRTH_CUES, "name": frozenset(("name", "names"))}
    cues = {kind: _cue_times(sides, cue_words) for kind, cue_words in cued.items()}
    found = [
        [
            *_numbers(words, cues),
            *_emails(words),
            *_addresses(words),
            *cued_names(words, lowered),
            *asked_names(words, cues["name"], lowered),
            *spelled_names(words),
        ]
        for words in sides
    ]
    shown = {part for name in known for part in name_words(name, (), whole=True)}
    for words, runs in zip(sides, found, strict=True):
        for run in runs:
            if run.kind == "name":
                shown |= {
                    part for word in words[run.first : run.last + 1] for part in name_words(word.text, (), whole=True)
                }
    for words, runs in zip(sides, found, strict=True):
        runs += [
            PersonalRun(kind="name", first=n, last=n)
            for n in range(len(words))
            if stem_of(words[n].text) in shown and _is_shown(words, n)
        ]
    return [_merged(runs) for runs in found]


def _is_shown(words: Sequence[SaidWord], n: int) -> bool:
    """True if word n, which is one of the call's names, is a name here: "Will, are you" and not "Will you"."""
    if stem_of(words[n].text) not in AMBIGUOUS:
        return True
    opens = n == 0 or words[n - 1].text[-1:] in ".?!"
    return words[n].text[:1].isupper() and (not opens or words[n].text[-1:] in ".,?!")


def masked_text(text: str, names: Collection[str], known: Collection[str] = ()) -> str:
    """Returns a text, such as a role prompt, with markers in place of what is personal; see `personal_runs`."""
    words = as_words(text)
    [runs] = personal_runs([words], names, known)
    return text if not runs else " ".join(word for word, _ in replaced(words, runs))


def replaced(words: Sequence[SaidWord], runs: Sequence[PersonalRun]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields what stands in the place of the words, with the first and the last of the words that it stands for."""
    at = 0
    for run in runs:
        yield from ((words[n].text, (n, n)) for n in range(at, run.first))
        tail = re.search(r"[.,!?;:]*$", words[run.last].text)
        yield MARKERS[run.kind] + (tail[0] if tail else ""), (run.first, run.last)
        at = run.last + 1
    yield from ((words[n].text, (n, n)) for n in range(at, len(words)))


def _cue_times(sides: Sequence[Sequence[SaidWord]], cue_words: Collection[str]) -> list[float]:
    return [
        word.start
        for words in sides
        for word in words
        if stem_of(word.text).rstrip("s") in cue_words or stem_of(word.text) in cue_words
    ]


def _digits_of(text: str) -> int | None:
    """How many digits a word stands for; None if it is no number. "415-555" has 6, "twenty" has 1."""
    word = plain_word(text)
    if re.search(r"[$\u00a3\u20ac%]", text):
        return None  # an amount
    if word in DIGITS:
        return DIGITS[word]
    if word in ORDINALS:
        return 1
    if re.fullmatch(r"(?:[a-z]+-)?#?\(?\d[\d().\- ]*(?:st|nd|rd|th)?", word) or re.fullmatch(
        r"\d+(?:[/-]\d+)+", word.replace(" ", "/")
    ):
        return sum(map(str.isdigit, word))
    parts = word.split("-")
    if len(parts) > 1 and all(part in DIGITS for part in parts):
        return sum(DIGITS[part] for part in parts)
    return sum(map(str.isdigit, word)) if re.fullmatch(r"(?=(?:.*\d){4})[a-z0-9-]+", word) else None


def _numbers(words: Sequence[SaidWord], cues: dict[str, list[float]]) -> Iterator[PersonalRun]:
    """Runs of numbers: long ones, those after a cue, and dates after a word of birth."""
    n = 0
    while n < len(words):
        if _digits_of(words[n].text) is None and stem_of(words[n].text) not in MONTHS:
            n += 1
            continue
        first = last = n
        digits = 0
        has_month = False
        while n < len(words) and words[n].start - words[last].end <= PAUSE_SECONDS:
            count, word = _digits_of(words[n].text), stem_of(words[n].text)
            if count is not None or word in MONTHS:
                digits, last = digits + (count or 0), n
                has_month |= word in MONTHS
            elif not (word in BETWEEN or (len(word) == 1 and word.isalpha() and word not in "ai")) or n - last > 2:
                break
            n += 1
        n = max(n, last + 1)
        unit = stem_of(words[last + 1].text) if last + 1 < len(words) else ""
        raw = " ".join(word.text for word in words[first : last + 1])
        # What is measured or paid is no number of a person.
        is_amount = unit in UNITS or re.search(r"\d:\d", raw) is not None
        start = words[first].start
        if not digits:
            continue  # "May I ..."
        if _is_near(cues["date"], start) and (has_month or (digits >= CUED_NUMBER and not is_amount)):
            yield PersonalRun(kind="date", first=first, last=last)
        elif not is_amount and (digits >= LONG_NUMBER or (digits >= CUED_NUMBER and _is_near(cues["number"], start))):
            yield PersonalRun(kind="number", first=first, last=last)


def _is_near(cues: Sequence[float], start: float) -> bool:
    return any(0 <= start - cue <= CUE_SECONDS for cue in cues)


def _emails(words: Sequence[SaidWord]) -> Iterator[PersonalRun]:
    """Written addresses, and spoken ones: "jane dot doe at mail dot com"."""
    said = [plain_word(word.text) for word in words]
    for n, word in enumerate(said):
        if re.search(r"\w@\w", word):
            yield PersonalRun(kind="email", first=n, last=n)
        elif word == "dot" and n + 1 < len(said) and said[n + 1] in TLDS:
            at = next((k for k in range(n - 1, max(-1, n - 7), -1) if said[k] == "at"), None)
            if at is None or at == 0:
                continue
            first = at
            while first > 0 and at - first < 10 and said[first - 1] not in NO_LOCAL:
                first -= 1
            yield PersonalRun(kind="email", first=first, last=n + 1)
        elif word == "at" and n + 1 < len(said) and re.fullmatch(r"[\w-]+\.(?:com|org|net|edu)", said[n + 1]):
            first = n
            while first > 0 and n - first < 10 and said[first - 1] not in NO_LOCAL:
                first -= 1
            yield PersonalRun(kind="email", first=first, last=n + 1)


def _addresses(words: Sequence[SaidWord]) -> Iterator[PersonalRun]:
    """A number, one to three words and the kind of a street: "42 Elm Street", "twelve oh five north main street"."""
    said, cased = [stem_of(word.text) for word in words], is_cased(words)
    for n, word in enumerate(said):
        if word not in STREETS and word not in LOOSE_STREETS:
            continue
        for gap in (1, 2, 3):
            last_digit = n - gap - 1
            if last_digit < 0 or _digits_of(words[last_digit].text) is None:
                continue
            between = words[last_digit + 1 : n]
            no_street = NO_NAMES | UNITS | LOOSE_STREETS
            if any(stem_of(w.text) in no_street or w.text[-1:] in ".,?!" for w in between):
                break
            if (cased or word in LOOSE_STREETS) and not all(w.text[:1].isupper() for w in between):
                break
            first = last_digit
            while first > 0 and _digits_of(words[first - 1].text) is not None:
                first -= 1
            yield PersonalRun(kind="address", first=first, last=n)
            break


def _merged(runs: Sequence[PersonalRun]) -> list[PersonalRun]:
    """Joins runs that touch and are of one kind, or overlap."""
    merged: list[PersonalRun] = []
    for run in sorted(runs, key=lambda run: (run.first, -run.last)):
        before = merged[-1] if merged else None
        if before and (run.first <= before.last or (run.kind == before.kind and run.first == before.last + 1)):
            merged[-1] = PersonalRun(kind=before.kind, first=before.first, last=max(before.last, run.last))
        else:
            merged.append(run)
    return merged
