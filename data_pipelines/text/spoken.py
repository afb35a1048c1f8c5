"""From written words to the words that are said: "$8/month" is spoken "eight dollars per month".

The map back is kept: one written word owns one or more spoken words, so that times found for the
spoken words become times of the written one, which is what the transcript and the text stream hold.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from data_pipelines.text.numerals import (
    CURRENCIES,
    MONTHS,
    clock_words,
    date_words,
    decimal_words,
    digit_words,
    money_words,
    number_words,
    plain_number_words,
    year_words,
)
from data_pipelines.text.personal_words import is_marker


@dataclass(kw_only=True, frozen=True)
class SpokenWord:
    """One written word, punctuation included, and what is said for it."""

    written: str
    spoken: tuple[str, ...]
    """Words of letters and apostrophes; a single capital is the name of that letter."""
    tail: str = ""
    """The punctuation mark after the word that shapes the prosody, one of , . ! ? ; : or ""."""

    @property
    def ends_sentence(self) -> bool:
        """True if a full stop, an exclamation mark or a question mark follows."""
        return self.tail in (".", "!", "?")


UNITS = {
    "kg": "kilograms", "km": "kilometers", "cm": "centimeters", "mm": "millimeters", "ml": "milliliters",
    "lb": "pounds", "lbs": "pounds", "oz": "ounces", "ft": "feet", "mi": "miles", "mph": "miles per hour",
    "gb": "gigabytes", "mb": "megabytes", "tb": "terabytes", "mbps": "megabits per second", "kwh": "kilowatt hours",
    "min": "minutes", "mins": "minutes", "hr": "hours", "hrs": "hours", "sec": "seconds", "k": "thousand",
    "x": "times", "\u00b0f": "degrees fahrenheit", "\u00b0c": "degrees celsius", "\u00b0": "degrees",
    "am": "A M", "pm": "P M", "a.m": "A M", "p.m": "P M",
}  # fmt: skip
ABBREVIATIONS = {
    "mr.": "mister", "mrs.": "missus", "ms.": "miz", "dr.": "doctor", "st.": "street", "ave.": "avenue",
    "blvd.": "boulevard", "rd.": "road", "apt.": "apartment", "dept.": "department", "inc.": "incorporated",
    "ltd.": "limited", "co.": "company", "vs.": "versus", "vs": "versus", "etc.": "et cetera", "e.g.": "for example",
    "i.e.": "that is", "approx.": "approximately", "a.m.": "A M", "p.m.": "P M", "pm": "P M",
    "w/": "with", "w/o": "without", "ok": "okay", "ext.": "extension", "b&b": "B and B", "at&t": "A T and T",
}  # fmt: skip
SHORT_MONTHS = {name[:3]: name for name in MONTHS if name != "may"} | {"sept": "september"}
ABBREVIATIONS |= {f"{short}.": name for short, name in SHORT_MONTHS.items()}
SYMBOLS = {"&": "and", "+": "plus", "@": "at", "=": "equals", "%": "percent", "#": "number"}
SCALES = frozenset(("hundred", "thousand", "million", "billion", "trillion"))
SAID_AS_WORDS = frozenset(
    "PIN SIM NASA NATO RAM ZIP COVID IKEA GIF LASER FICO ROM NOT NO ALL AND OR ANY YES ONLY NEVER MUST FREE NOW NEW "
    "VERY STOP WAIT HELP IS ARE THE DO CAN ONE TWO".split()
)
"""Words in capitals that are not spelled out, as others of 2 to 5 letters are."""
CODE_WORDS = frozenset(
    "number code pin id account order confirmation reference ticket tracking invoice card extension zip in".split()
)
"""Words before a digit string that is read digit by digit ("order 4521", "ending in 4521")."""
MONTH_WORDS = frozenset([*MONTHS, *SHORT_MONTHS])
FRACTIONS = {"1/2": "one half", "1/3": "one third", "2/3": "two thirds", "1/4": "one quarter", "3/4": "three quarters"}

PLAIN_PUNCTUATION = str.maketrans({
    "\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2011": "-",
    "\u2212": "-", "\u2014": ",", "\u2026": ".", "\u00a0": " ",
})  # fmt: skip
NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
AMOUNT = rf"(?:{NUMBER}(?:\.\d+)?|\.\d+)"
MONEY_SIGN = "[" + "".join(CURRENCIES) + "]"
UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))

Match = re.Match[str]


def _money(m: Match) -> str:
    sign = "minus " if m[1] else ""
    if m[4]:  # A scale as in "$5k" or "$2M".
        scale = {"k": "thousand", "m": "million", "b": "billion"}[m[4].lower()]
        return f"{sign}{decimal_words(m[3])} {scale} {CURRENCIES[m[2]][0]}s"
    return sign + money_words(m[2], m[3])


def _clock(m: Match) -> str | None:
    if int(m[1]) > 24 or int(m[2]) > 59:
        return None
    return clock_words(int(m[1]), int(m[2]), has_half_day=bool(m[3])) + (f" {m[3].upper()} M" if m[3] else "")


def _decade(m: Match) -> str:
    words = year_words(int(m[1])) if len(m[1]) == 4 else number_words(int(m[1]))
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


def _unit(m: Match) -> str:
    said = UNITS[m[2].lower()]
    if m[1] == "1" and said.endswith("s"):
        said = said[:-1]
    return f"{decimal_words(m[1])} {said}"


def _range(m: Match) -> str:
    """A range such as "$10-$15" or "10-15%", whose unit is said once, at the end."""
    low = m[1].strip("".join(CURRENCIES) + "%")
    return f"{say(low) if low != m[1] or m[2].endswith('%') else say(m[1])} to {say(m[2])}"


RULES: tuple[tuple[re.Pattern[str], Callable[[Match], str | None]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), speak)
    for pattern, speak in (
        (rf"(-)?({MONEY_SIGN})({AMOUNT})([kmb])?", _money),
        (r"(\d{1,2}):(\d{2})(?:([ap])\.?m\.?)?", _clock),
        (r"(\d{4})-(\d{1,2})-(\d{1,2})", lambda m: date_words(m[2], m[3], m[1])),
        (r"(\d{1,2})/(\d{1,2})/(\d{4}|\d{2})", lambda m: date_words(m[1], m[2], m[3])),
        (r"24/7", lambda m: "twenty four seven"),
        (r"\d/\d", lambda m: FRACTIONS.get(m[0])),
        (r"(\d{1,2})/(\d{1,2})", lambda m: date_words(m[1], m[2], None)),
        (rf"({NUMBER})(?:st|nd|rd|th)", lambda m: number_words(int(m[1].replace(",", "")), "ordinal")),
        (r"(\d0|\d{3}0)'?s", _decade),
        (rf"(-?{AMOUNT})%", lambda m: f"{decimal_words(m[1])} percent"),
        (rf"(-?{AMOUNT})-?({UNIT})\.?", _unit),
        (r"\(?(\d{3})\)?[-.](\d{3})[-.](\d{4})", lambda m: digit_words(m[1] + m[2] + m[3])),
        (r"(\d{3})-(\d{4})", lambda m: digit_words(m[1] + m[2])),
        (r"#(\d{1,2})", lambda m: f"number {number_words(int(m[1]))}"),
        (r"#(\d+)", lambda m: f"number {digit_words(m[1])}"),
        (r"(\d{1,2}:\d{2})-(\d{1,2}:\d{2}(?:[ap]\.?m)?)", _range),
        (rf"({MONEY_SIGN}?{AMOUNT}%?)-({MONEY_SIGN}?{AMOUNT}(?:%|{UNIT})?)", _range),
        (rf"-{AMOUNT}", lambda m: decimal_words(m[0])),
        (AMOUNT, lambda m: plain_number_words(m[0])),
    )
)


def say(token: str) -> str:
    """The spoken words of one written token without outer punctuation, joined by spaces; "" if nothing is said."""
    if token.lower() in ABBREVIATIONS:
        return ABBREVIATIONS[token.lower()]
    if token in SYMBOLS:
        return SYMBOLS[token]
    for pattern, speak in RULES:
        match = pattern.fullmatch(token)
        said = speak(match) if match else None
        if said is not None:
            return said
    if "/" in token and re.search(rf"\d|{MONEY_SIGN}", token):
        return " per ".join(filter(None, map(say, token.split("/"))))  # "$8/month" is "eight dollars per month".
    if re.fullmatch(r"[\w.+-]+@[\w.-]+|[\w-]{2,}(?:\.[\w-]{2,})+", token):
        names = {"@": "at", ".": "dot", "-": "dash", "_": "underscore"}
        return " ".join(names.get(part) or say(part) for part in re.split(r"([@._-])", token) if part)
    if re.fullmatch(r"(?=.*\d)[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*", token) and re.search(r"[A-Z]", token):
        return _identifier(token)
    return " ".join(said for part in re.split(r"([&+])|[-/_.:,]", token) if part for said in [_said_letters(part)])


def _identifier(token: str) -> str:
    """A code of letters and digits: "AB-1234" is "A B one two three four"; one or two digits are a number ("A12")."""
    words = []
    for run in re.findall(r"\d+|[A-Za-z]+", token):
        if run.isdigit():
            words.append(number_words(int(run)) if len(run) < 3 and run[0] != "0" else digit_words(run))
        else:
            words.append(" ".join(run.upper()) if len(run) <= 2 else _said_letters(run))
    return " ".join(words)


def _said_letters(part: str) -> str:
    """One run of letters: capitals are spelled out, CamelCase is cut into its words."""
    if part in SYMBOLS:
        return SYMBOLS[part]
    part = re.sub(r"[^\w']", "", part)
    if any(c.isdigit() for c in part):
        return " ".join(say(run) for run in re.findall(r"\d+(?:st|nd|rd|th)\b|\d+|[^\d]+", part))
    stem, ending = (m[1], m[2]) if (m := re.fullmatch(r"([A-Z]{2,}?)('?s|)", part)) else (part, "")
    if stem.isupper() and len(stem) > 1:
        is_spelled = len(stem) <= 5 and stem not in SAID_AS_WORDS
        return " ".join(stem) + (ending and "'s") if is_spelled else stem.lower() + ending
    # eSpeak reads "CitySan" as one word, so that it is cut; names such as McDonald stay whole.
    pieces = re.findall(r"(?:Mc|Mac|O'|De|Di|La|Le|Van)?[A-Z][a-z']+|[A-Z]+(?![a-z])|[a-z']+", part)
    if len(pieces) < 2 or "".join(pieces) != part:
        return part
    return " ".join(piece.upper() if len(piece) == 1 else _said_letters(piece) for piece in pieces)


def expand(text: str) -> list[SpokenWord]:
    """Splits a text at spaces into written words with what is said for each.

    Punctuation that stands alone joins the word before it, so that something is said for every word that is returned.
    Raises: UserError if numbers occur and num2words is not installed ("missing-package").
    """
    written = text.split()
    plain = [_strip(token.replace("--", "\u2014").translate(PLAIN_PUNCTUATION)) for token in written]
    words: list[SpokenWord] = []
    for n, (core, tail) in enumerate(plain):
        if is_marker(written[n]):
            core = ""  # Nothing is said for what was masked.
        following = plain[n + 1][0] if n + 1 < len(plain) else ""
        if core.lower() == "no" and tail == "." and re.match(r"#?\d", following):
            core, tail = "number", ""  # "No. 5" is "number five".
        elif not following and not tail and core.endswith("."):
            tail = "."  # The full stop of an abbreviation at the end also ends the sentence.
        following = "" if tail else following
        said = _in_context(core, words[-1] if words else None, following)
        spoken = tuple(word for word in said.split() if any(c.isalpha() for c in word))
        if spoken:
            words.append(SpokenWord(written=written[n], spoken=spoken, tail=tail))
        elif words and not words[-1].tail:
            words[-1] = replace(words[-1], tail=tail)
    return words


def _strip(token: str) -> tuple[str, str]:
    """Core and tail of a token, without quotes and brackets; the full stop of an abbreviation stays in the core."""
    if token in ("-", ","):
        return "", ","
    token = re.sub(r"^[\"'(\[{*<,;:!?]+(?!cause$|em$|til$)", "", token)
    body = re.sub(r"[\"')\]}*>]*([,!?;:]*)[\"')\]}*>]*$", "", token)
    if body.lower() in ABBREVIATIONS or re.fullmatch(r"(?:[A-Za-z]\.){2,}", body):
        return body, token[len(body) :].strip("\"')]}*>")[:1]
    core = re.sub(r"[\"')\]}*>.,!?;:]+$", "", token)
    tail = re.sub(r"[^.,!?;:]", "", token[len(core) :])[:1]
    if core.endswith("s") and token[len(core) :].startswith("'"):
        core += "'"  # The apostrophe of "customers'" belongs to the word.
    return re.sub(r"^\.(?!\d)|^-(?![\d$])", "", core), tail


def _in_context(core: str, before: SpokenWord | None, following: str) -> str:
    """`say`, where the words beside the token change its reading."""
    last = before.written if before and not before.tail else ""
    if core == "A":
        return "a" if following[:1].islower() else "A"
    if core.lower() == "am":
        return "A M" if re.search(r"\d$", last) else "am"
    if core.lower() in SHORT_MONTHS and core[0].isupper() and following[:1].isdigit():
        return SHORT_MONTHS[core.lower()]
    if core == "St." and following[:1].isupper() and not last[:1].isupper():
        return "saint"  # It is a street in "Main St.", a saint in "near St. Mary".
    if core[:1] in CURRENCIES and following.lower() in SCALES and re.fullmatch(AMOUNT, core[1:]):
        return decimal_words(core[1:])  # In "$1.2 million" the unit is said after the scale.
    if core.lower() in SCALES and last[:1] in CURRENCIES:
        return f"{core.lower()} {CURRENCIES[last[0]][0]}s"
    if core.lower() in UNITS and re.search(r"\d$", last) and core.lower() not in ("x", "k"):
        return say("1" + core).partition(" ")[2] if last == "1" else UNITS[core.lower()]
    if re.fullmatch(r"\d{1,2}:00", core) and following.lower() in ("am", "pm", "a.m.", "p.m."):
        return number_words(int(core[:-3]))
    if re.fullmatch(r"\d{3,}", core) and last.lower() in CODE_WORDS:
        is_year = last.lower() == "in" and (len(core) != 4 or 1900 <= int(core) < 2100)
        return say(core) if is_year else digit_words(core)
    if last.lower().strip(".") in MONTH_WORDS and last[:1].isupper() and re.fullmatch(r"[12]?\d|3[01]", core):
        return number_words(int(core), "ordinal")
    return say(core)
