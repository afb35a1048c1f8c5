"""Finds the names of people by the words around them."""

import re
from collections.abc import Collection, Iterator, Sequence

from data_pipelines.text.personal_lists import AMBIGUOUS, DIGITS, NAME_CUES, NO_NAMES, SURE_NAME_CUES
from data_pipelines.text.personal_words import PersonalRun, SaidWord, as_words, is_cased, is_marker, plain_word, stem_of

ASKED_SECONDS, SENTENCE_SECONDS = 5.0, 0.6
"""How soon after "your name?" a bare name counts, and the pause that ends a sentence without a full stop."""
NAME_PAUSE_SECONDS = 0.3
MAX_NAME_WORDS = 3


def name_words(text: str, names: Collection[str], *, whole: bool = False) -> list[str]:
    """Returns the words of names in a text, in lower case: those that cues show, or all if it is a `whole` name."""
    words = as_words(text)
    if not whole:
        lowered = frozenset(name.lower() for name in names)
        words = [word for run in cued_names(words, lowered) for word in words[run.first : run.last + 1]]
    found = (stem_of(part) for word in words for part in re.split(r"[_/.-]", word.text))
    return [part for part in found if part.isalpha() and len(part) > 1 and part not in NO_NAMES]


def cued_names(words: Sequence[SaidWord], names: Collection[str]) -> Iterator[PersonalRun]:
    """One to three words after a cue that are names by their capital or by the list."""
    said = [plain_word(word.text) for word in words]
    cased = is_cased(words)

    def is_name(n: int, *, sure: bool) -> bool:
        word = stem_of(words[n].text)
        if is_marker(words[n].text) or not word.isalpha() or word in NO_NAMES or word in DIGITS or len(word) < 2:
            return False
        return (
            sure
            or (word in names and (word not in AMBIGUOUS or words[n].text[:1].isupper()))
            or (cased and words[n].text[:1].isupper())
        )

    def ends(n: int) -> bool:
        return n + 1 >= len(words) or words[n + 1].start - words[n].end >= NAME_PAUSE_SECONDS

    for n in range(len(words)):
        for cue in NAME_CUES:
            first = n + len(cue)
            if tuple(said[n:first]) != cue or first >= len(words):
                continue
            if words[first - 1].text[-1:] in ".?!" or not is_name(first, sure=cue in SURE_NAME_CUES or not cased):
                continue
            # Without capitals only the list tells that "I'm late" names nobody: its first word, or the one after it.
            near = [stem_of(word.text) for word in words[first : first + 2]]
            if not cased and cue not in SURE_NAME_CUES and near[0] not in names and not (
                near[-1] in names and near[-1] not in AMBIGUOUS
            ):  # fmt: skip
                continue
            # Where names have no capitals, what stands between a sure name and a pause belongs to it.
            sure = cue in SURE_NAME_CUES and not words[first].text[:1].isupper()
            last = first
            while (
                last + 1 < len(words) and last + 1 - first < MAX_NAME_WORDS and words[last].text[-1:] not in ".,?!;:"
                and is_name(last + 1, sure=sure and ends(last + 1))
            ):  # fmt: skip
                last += 1
            yield PersonalRun(kind="name", first=first, last=last)


def asked_names(words: Sequence[SaidWord], asked: Sequence[float], names: Collection[str]) -> Iterator[PersonalRun]:
    """A sentence of one or two words soon after somebody says "name", as in "Your name?", "Ximena."."""
    first = 0
    for n, word in enumerate(words):
        if word.text[-1:] not in ".?!" and n + 1 < len(words) and words[n + 1].start - word.end < SENTENCE_SECONDS:
            continue
        said = words[first : n + 1]
        stems = [stem_of(one.text) for one in said]
        is_asked = any(0 <= said[0].start - time <= ASKED_SECONDS for time in asked)
        are_names = all(
            stem.isalpha() and len(stem) > 1 and stem not in NO_NAMES and stem not in DIGITS
            and (one.text[:1].isupper() or stem in names)
            for stem, one in zip(stems, said, strict=True)
        )  # fmt: skip
        if is_asked and are_names and len(said) <= 2:
            yield PersonalRun(kind="name", first=first, last=n)
        first = n + 1


def spelled_names(words: Sequence[SaidWord]) -> Iterator[PersonalRun]:
    """Three or more letters said one by one after "spell" or "name"."""
    said = [plain_word(word.text) for word in words]
    run = 0
    for n in range(len(words) + 1):
        if n < len(words) and re.fullmatch(r"[a-z]", said[n]):
            run += 1
            continue
        if run >= 3 and {"spell", "spelled", "spelling", "name"} & set(said[max(0, n - run - 8) : n - run]):
            yield PersonalRun(kind="name", first=n - run, last=n - 1)
        run = 0
