"""Case for transcripts in lower case, by rules that do not guess at names which are common words, too."""

import re
from collections.abc import Sequence

# The names that the rules know. Words that are also common nouns or verbs ("may", "march", "turkey") are left out.
_NAMES = frozenset(
    """monday tuesday wednesday thursday friday saturday sunday january february april june july august september
    october november december christmas thanksgiving halloween easter america american americans english spanish french
    german italian irish chinese japanese korean russian indian mexican canadian british african asian european jewish
    christian catholic muslim alabama alaska arizona arkansas california colorado connecticut delaware florida georgia
    hawaii idaho illinois indiana iowa kansas kentucky louisiana maine maryland massachusetts michigan minnesota
    mississippi missouri montana nebraska nevada ohio oklahoma oregon pennsylvania tennessee texas utah vermont virginia
    washington wisconsin wyoming chicago houston philadelphia phoenix dallas boston atlanta miami seattle denver
    detroit baltimore pittsburgh cleveland minneapolis portland sacramento brooklyn manhattan london paris mexico canada
    england ireland germany france italy spain japan korea china india russia iraq iran afghanistan israel europe africa
    asia internet god""".split()
)
_PAIRS = frozenset(
    "new york, new jersey, new mexico, new hampshire, new england, new orleans, los angeles, las vegas, san francisco, "
    "san diego, san antonio, san jose, north carolina, south carolina, north dakota, south dakota, west virginia, "
    "rhode island, united states, saint louis, kansas city, salt lake, lake city, middle east, saddam hussein, "
    "george bush, osama bin, bin laden, puerto rico".split(", ")
)


def ruled(words: Sequence[str]) -> list[str]:
    """Returns bare lower-case words with the case that rules can restore: I, T.V., days, months, well-known places.

    Shapes: as many words as come in, in the same order.
    """
    forms = []
    stems = ["", *(word.partition("'")[0] for word in words), ""]
    for word, before, stem, after in zip(words, stems, stems[1:], stems[2:], strict=False):
        mark = word[len(stem) :]
        in_pair = f"{before} {stem}" in _PAIRS or f"{stem} {after}" in _PAIRS
        if re.fullmatch(r"i('(m|d|ll|ve|s))?", word):
            word = "I" + word[1:]
        elif re.fullmatch(r"([a-z]\.)+('?s)?", word):  # "t.v." becomes "T.V.", "c.d.s" becomes "C.D.s".
            word = re.sub(r"[a-z]\.", lambda found: found[0].upper(), word)
        elif stem in _NAMES or in_pair:
            word = stem.capitalize() + mark
        forms.append(word)
    return forms
