"""Numbers, money, clock times and dates in words, as an American would say them."""

from functools import lru_cache
from typing import Any

from model.extras import require

CURRENCIES = {"$": ("dollar", "cent"), "\u00a3": ("pound", "pence"), "\u20ac": ("euro", "cent")}
DIGITS = "zero one two three four five six seven eight nine".split()
MONTHS = "january february march april may june july august september october november december".split()


@lru_cache(maxsize=4096)
def number_words(value: int, kind: str = "cardinal") -> str:
    """An integer in words, without hyphens or "and"; `kind` is "cardinal" or "ordinal".

    Raises: UserError if num2words is not installed ("missing-package").
    """
    num2words: Any = require("num2words", extra="tts").num2words
    return str(num2words(value, to=kind)).replace("-", " ").replace(" and ", " ").replace(",", "")


def digit_words(digits: str) -> str:
    """The name of every digit: "0042" is "zero zero four two"."""
    return " ".join(DIGITS[int(digit)] for digit in digits)


def decimal_words(text: str) -> str:
    """A number with optional sign, thousands commas and decimals: "-1,200.5" is "minus one thousand ... point five"."""
    text = text.replace(",", "")
    if text.startswith("-"):
        return "minus " + decimal_words(text[1:])
    whole, _, part = text.partition(".")
    words = number_words(int(whole or 0))
    return f"{words} point {digit_words(part)}" if part else words


def money_words(symbol: str, amount: str) -> str:
    """An amount of money: "$9.50" is "nine dollars fifty cents", "$0.99" is "ninety nine cents"."""
    unit, cent = CURRENCIES[symbol]
    whole, _, part = amount.replace(",", "").partition(".")
    if part and len(part) != 2:
        return f"{decimal_words(amount)} {unit}s"
    units, cents = int(whole or 0), int(part or 0)
    words = [number_words(units), unit if units == 1 else f"{unit}s"] if units or not cents else []
    if cents:
        words += [number_words(cents), cent if cents == 1 or cent == "pence" else f"{cent}s"]
    return " ".join(words)


def clock_words(hour: int, minute: int, *, has_half_day: bool) -> str:
    """A clock time: 9:05 is "nine oh five", 9:00 is "nine o'clock", or only "nine" where AM or PM follows."""
    hours = number_words(hour)
    if minute == 0:
        return hours if has_half_day else f"{hours} o'clock" if 1 <= hour <= 12 else f"{hours} hundred"
    return f"{hours} oh {number_words(minute)}" if minute < 10 else f"{hours} {number_words(minute)}"


def year_words(year: int) -> str:
    """A year: 1999 is "nineteen ninety nine", 1905 "nineteen oh five", 2007 "two thousand seven"."""
    century, rest = divmod(year, 100)
    if 2000 <= year < 2010 or year == 1000:
        return number_words(year)
    if rest == 0:
        return f"{number_words(century)} hundred"
    return f"{number_words(century)} {'oh ' if rest < 10 else ''}{number_words(rest)}"


def date_words(month: str, day: str, year: str | None) -> str | None:
    """A calendar date from its digits: "march fourteenth twenty twenty five"; None if there is no such month or day.

    A year of two digits is one from 2000 on.
    """
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return None
    words = f"{MONTHS[int(month) - 1]} {number_words(int(day), 'ordinal')}"
    if year is None:
        return words
    return f"{words} {year_words(int(year) + (2000 if len(year) == 2 else 0))}"


def plain_number_words(text: str) -> str:
    """Digits alone, read as their shape suggests: a year, a quantity, or a code that is spelled out.

    A code has more than six digits, or begins with a zero.
    """
    if "." in text or "," in text:
        return decimal_words(text)
    if len(text) > 6 or (len(text) > 1 and text[0] == "0"):
        return digit_words(text)
    return year_words(int(text)) if len(text) == 4 and 1100 <= int(text) < 2100 else number_words(int(text))
