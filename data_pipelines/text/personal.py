"""Finds what identifies a person in words with times, by rules: numbers, dates of birth, e-mail, addresses, names.

The rules are for English calls. They look for runs of words of a kind, and for cues before them ("my number is") that
either side may have said. Written and spoken forms are found ("415-555-0134", "four one five, five five five ...").
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

MARKERS = {kind: f"[{kind}]" for kind in ("number", "date", "email", "address", "name", "speech")}
"""The word that stands for what was masked, by kind. `expand` gives it nothing to say."""
LONG_NUMBER = 5
"""Digits that are personal wherever they stand; prices and years have fewer, and units that show what they are."""
CUED_NUMBER = 3
CUE_SECONDS = 12.0
PAUSE_SECONDS = 6.0
"""Longer pauses of a speaker end a run."""
MAX_NAME_WORDS = 3

_ONES = "zero one two three four five six seven eight nine".split()
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth thirtieth"
).split()
_DIGITS = dict.fromkeys(_ONES, 1) | dict.fromkeys(_TEENS, 2) | dict.fromkeys(_TENS, 1)
_DIGITS |= {"oh": 1, "o": 1, "nought": 1, "hundred": 0, "thousand": 0, "double": 1, "triple": 2}
_MONTHS = (
    "january february march april may june july august september october november december jan feb mar apr jun jul aug "
    "sep sept oct nov dec"
).split()
_BETWEEN = frozenset("and dash hyphen uh um er then slash dot point".split())
_UNITS = frozenset(
    "dollars dollar cents cent bucks percent minutes minute hours hour days day weeks week months month years year "
    "o'clock am pm a.m p.m miles mile feet pounds people times kilograms square points calories degrees gallons".split()
)
_NUMBER_CUES = frozenset(
    "number phone cell mobile telephone fax card account social ssn routing policy member membership confirmation "
    "reference tracking ticket passport licence license extension ending digits pin passcode zip postcode id code "
    "order invoice serial".split()
)
_BIRTH_CUES = frozenset("birth birthday birthdate born dob".split())
_STREETS = frozenset("street st avenue ave road rd boulevard blvd lane ln parkway pkwy terrace".split())
_LOOSE_STREETS = frozenset("drive dr court ct way place pl circle square highway hwy trail apartment apt suite".split())
_TLDS = frozenset("com org net edu gov io co uk us info biz de".split())
_NO_LOCAL = frozenset(
    "is it's its e-mail email mail address to the my at me a you reach send sent write yes yeah okay so and or".split()
)
_NAME_CUES = (
    ("my", "name", "is"), ("my", "name's"), ("your", "name", "is"), ("name", "is"), ("the", "name's"), ("i'm",),
    ("i", "am"), ("this", "is"), ("call", "me"), ("speaking", "with"), ("speaking", "to"), ("mister",), ("mr",),
    ("mrs",), ("missus",), ("ms",), ("miss",), ("named",), ("called",), ("name", "of"), ("first", "name"),
    ("last", "name"), ("last", "name", "is"), ("under",),
)  # fmt: skip
_SURE_NAME_CUES = frozenset({("my", "name", "is"), ("my", "name's"), ("your", "name", "is"), ("last", "name", "is")})
"""After these the next word is a name, whatever it is."""
_NO_NAMES = frozenset(
    "a an the and or but not in on at it is i i'm so just here there going from with for to of calling sorry afraid "
    "sure glad happy looking trying your you my our his her their that this what who how when where why yes no okay ok "
    "well also very really still about on to all one monday tuesday wednesday thursday friday saturday sunday speaker "
    "agent user customer caller left right main other english american spanish mom dad mister "
    "misses miss mr mrs ms doctor dr".split()
)
_AMBIGUOUS = frozenset(
    "will may mark grace rose hope faith bill frank jack rich drew bob sue pat chase dawn summer april june august "
    "joy art page park ray gene cash young long black white green brown king price best case bell cook day field "
    "hunt law love moody moss powers rush short small stone street sweet way weeks wood cross hart holly ivy lily "
    "jade ruby miles cannon power marsh boone banks".split()
)
"""Names that are words as well: these count as names only where they have a capital or stand after a cue."""


@dataclass(frozen=True, kw_only=True)
class SaidWord:
    """A word with its times in seconds and who says it, such as "left"."""

    text: str
    start: float
    end: float
    side: str


@dataclass(frozen=True, kw_only=True)
class PersonalRun:
    """Words `first` to `last`, inclusive, of what one side says; kind: of MARKERS."""

    kind: str
    first: int
    last: int


def personal_runs(
    sides: Sequence[Sequence[SaidWord]], names: Collection[str], known: Collection[str] = ()
) -> list[list[PersonalRun]]:
    """Returns what is personal for each side's words, in order; runs of a side do not overlap.

    names: common names in lower case, which are believed after weak cues ("I'm ..."). known: names of these people,
    which are masked wherever they stand, as are all names that a cue shows anywhere in the call.
    """
    lowered = frozenset(name.lower() for name in names)
    cues = {kind: _cue_times(sides, cue_words) for kind, cue_words in (("number", _NUMBER_CUES), ("date", _BIRTH_CUES))}
    found = [
        [*_numbers(words, cues), *_emails(words), *_addresses(words), *_cued_names(words, lowered)] for words in sides
    ]
    shown = {part for name in known for part in name_words(name, (), whole=True)}
    for words, runs in zip(sides, found, strict=True):
        for run in runs:
            if run.kind == "name":
                shown |= {
                    part for word in words[run.first : run.last + 1] for part in name_words(word.text, (), whole=True)
                }
    for words, runs in zip(sides, found, strict=True):
        cased = _is_cased(words)
        runs += [
            PersonalRun(kind="name", first=n, last=n)
            for n, word in enumerate(words)
            if _stem(word.text) in shown and (word.text[:1].isupper() or not (cased or _stem(word.text) in _AMBIGUOUS))
        ]
    return [_merged(runs) for runs in found]


def name_words(text: str, names: Collection[str], *, whole: bool = False) -> list[str]:
    """Returns the words of names in a text, in lower case: those that cues show, or all if it is a `whole` name."""
    words = as_words(text)
    if not whole:
        lowered = frozenset(name.lower() for name in names)
        words = [word for run in _cued_names(words, lowered) for word in words[run.first : run.last + 1]]
    found = (_stem(part) for word in words for part in re.split(r"[_/.-]", word.text))
    return [part for part in found if part.isalpha() and len(part) > 1 and part not in _NO_NAMES]


def as_words(text: str) -> list[SaidWord]:
    """A text as words of one side, which has no times."""
    return [SaidWord(text=part, start=0.3 * n, end=0.3 * n + 0.3, side="") for n, part in enumerate(text.split())]


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


def is_marker(text: str) -> bool:
    """True for a word that stands for what was masked."""
    return text.rstrip(".,!?;:") in MARKERS.values()


def _plain(text: str) -> str:
    return re.sub(r"[^\w'@. -]", " ", text.replace("\u2019", "'").lower()).strip(" .'-")


def _stem(text: str) -> str:
    """The word in lower case without punctuation and without a genitive s."""
    return re.sub(r"'s$", "", _plain(text))


def _is_cased(words: Sequence[SaidWord]) -> bool:
    """True if names would have capitals: some word that is not "I" has one."""
    return any(word.text[:1].isupper() and not re.fullmatch(r"I('\w+)?", word.text) for word in words)


def _cue_times(sides: Sequence[Sequence[SaidWord]], cue_words: Collection[str]) -> list[float]:
    return [
        word.start
        for words in sides
        for word in words
        if _stem(word.text).rstrip("s") in cue_words or _stem(word.text) in cue_words
    ]


def _digits_of(text: str) -> int | None:
    """How many digits a word stands for; None if it is no number. "415-555" has 6, "twenty" has 1."""
    word = _plain(text)
    if word in _DIGITS:
        return _DIGITS[word]
    if word in _ORDINALS:
        return 1
    if re.fullmatch(r"(?:[a-z]+-)?#?\(?\d[\d().\- ]*(?:st|nd|rd|th)?", word) or re.fullmatch(
        r"\d+(?:[/-]\d+)+", word.replace(" ", "/")
    ):
        return sum(map(str.isdigit, word))
    parts = word.split("-")
    if len(parts) > 1 and all(part in _DIGITS for part in parts):
        return sum(_DIGITS[part] for part in parts)
    return sum(map(str.isdigit, word)) if re.fullmatch(r"(?=(?:.*\d){4})[a-z0-9-]+", word) else None


def _numbers(words: Sequence[SaidWord], cues: dict[str, list[float]]) -> Iterator[PersonalRun]:
    """Runs of numbers: long ones, those after a cue, and dates after a word of birth."""
    n = 0
    while n < len(words):
        if _digits_of(words[n].text) is None and _stem(words[n].text) not in _MONTHS:
            n += 1
            continue
        first = last = n
        digits = 0
        has_month = False
        while n < len(words) and words[n].start - words[last].end <= PAUSE_SECONDS:
            count, word = _digits_of(words[n].text), _stem(words[n].text)
            if count is not None or word in _MONTHS:
                digits, last = digits + (count or 0), n
                has_month |= word in _MONTHS
            elif not (word in _BETWEEN or (len(word) == 1 and word.isalpha() and word not in "ai")) or n - last > 2:
                break
            n += 1
        n = max(n, last + 1)
        unit = _stem(words[last + 1].text) if last + 1 < len(words) else ""
        raw = " ".join(word.text for word in words[first : last + 1])
        # What is measured or paid is no number of a person.
        is_amount = unit in _UNITS or re.search(r"[$\u00a3\u20ac%]|\d:\d", raw) is not None
        start = words[first].start
        if _is_near(cues["date"], start) and (has_month or (digits >= CUED_NUMBER and not is_amount)):
            yield PersonalRun(kind="date", first=first, last=last)
        elif not is_amount and (digits >= LONG_NUMBER or (digits >= CUED_NUMBER and _is_near(cues["number"], start))):
            yield PersonalRun(kind="number", first=first, last=last)


def _is_near(cues: Sequence[float], start: float) -> bool:
    return any(0 <= start - cue <= CUE_SECONDS for cue in cues)


def _emails(words: Sequence[SaidWord]) -> Iterator[PersonalRun]:
    """Written addresses, and spoken ones: "jane dot doe at mail dot com"."""
    said = [_plain(word.text) for word in words]
    for n, word in enumerate(said):
        if re.search(r"\w@\w", word):
            yield PersonalRun(kind="email", first=n, last=n)
        elif word == "dot" and n + 1 < len(said) and said[n + 1] in _TLDS:
            at = next((k for k in range(n - 1, max(-1, n - 7), -1) if said[k] == "at"), None)
            if at is None or at == 0:
                continue
            first = at
            while first > 0 and at - first < 10 and said[first - 1] not in _NO_LOCAL:
                first -= 1
            yield PersonalRun(kind="email", first=first, last=n + 1)
        elif word == "at" and n + 1 < len(said) and re.fullmatch(r"[\w-]+\.(?:com|org|net|edu)", said[n + 1]):
            first = n
            while first > 0 and n - first < 10 and said[first - 1] not in _NO_LOCAL:
                first -= 1
            yield PersonalRun(kind="email", first=first, last=n + 1)


def _addresses(words: Sequence[SaidWord]) -> Iterator[PersonalRun]:
    """A number, one to three words and the kind of a street: "42 Elm Street", "twelve oh five north main street"."""
    said = [_stem(word.text) for word in words]
    for n, word in enumerate(said):
        if word not in _STREETS and word not in _LOOSE_STREETS:
            continue
        for gap in (1, 2, 3):
            last_digit = n - gap - 1
            if last_digit < 0 or _digits_of(words[last_digit].text) is None:
                continue
            between = words[last_digit + 1 : n]
            if any(_stem(w.text) in _NO_NAMES or _stem(w.text) in _UNITS or w.text[-1:] in ".,?!" for w in between):
                break
            if word in _LOOSE_STREETS and not all(w.text[:1].isupper() for w in between):
                break
            first = last_digit
            while first > 0 and _digits_of(words[first - 1].text) is not None:
                first -= 1
            yield PersonalRun(kind="address", first=first, last=n)
            break


def _cued_names(words: Sequence[SaidWord], names: Collection[str]) -> Iterator[PersonalRun]:
    """One to three words after a cue that are names by their capital or by the list; and names that are spelled."""
    said = [_plain(word.text) for word in words]
    cased = _is_cased(words)

    def is_name(n: int, *, sure: bool) -> bool:
        word = _stem(words[n].text)
        if not word.isalpha() or word in _NO_NAMES or word in _DIGITS or len(word) < 2:
            return False
        return (
            sure
            or (word in names and (not cased or words[n].text[:1].isupper()))
            or (cased and words[n].text[:1].isupper())
        )

    for n in range(len(words)):
        for cue in _NAME_CUES:
            first = n + len(cue)
            if tuple(said[n:first]) != cue or first >= len(words):
                continue
            sure = cue in _SURE_NAME_CUES
            # "I'm Late" in a text of capitals is no name: weak cues want a name of the list at first.
            weak = cue in (("i'm",), ("i", "am"), ("this", "is"), ("under",), ("called",))
            if not is_name(first, sure=sure) or (weak and _stem(words[first].text) not in names and not cased):
                continue
            last = first
            while (
                last + 1 < len(words) and last + 1 - first < MAX_NAME_WORDS and words[last].text[-1:] not in ".,?!;:"
                and is_name(last + 1, sure=False)
            ):  # fmt: skip
                last += 1
            yield PersonalRun(kind="name", first=first, last=last)
    run = 0
    for n in range(len(words) + 1):
        letter = n < len(words) and re.fullmatch(r"[a-z]", said[n]) is not None
        if not letter:
            if run >= 3 and any(
                word in ("spell", "spelled", "spelling", "name") for word in said[max(0, n - run - 8) : n - run]
            ):
                yield PersonalRun(kind="name", first=n - run, last=n - 1)
            run = 0
        else:
            run += 1


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
