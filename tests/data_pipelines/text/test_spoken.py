"""What is said for what is written. The right column is how an American reads the left one aloud."""

import random

import pytest

pytest.importorskip("num2words")

from data_pipelines.text.numerals import number_words, year_words
from data_pipelines.text.spoken import expand

CASES = {
    "$8/month": "eight dollars per month",
    "$9.50": "nine dollars fifty cents",
    "$0.99": "ninety nine cents",
    "$1": "one dollar",
    "$1.01": "one dollar one cent",
    "$1,250": "one thousand two hundred fifty dollars",
    "$65/4 hours": "sixty five dollars per four hours",
    "$1.2 million": "one point two million dollars",
    "$5k": "five thousand dollars",
    "$10-$15": "ten to fifteen dollars",
    "-$20": "minus twenty dollars",
    "12:30": "twelve thirty",
    "9:05": "nine oh five",
    "9:00": "nine o'clock",
    "9:00 PM": "nine P M",
    "9 PM": "nine P M",
    "9pm": "nine P M",
    "9:30am": "nine thirty A M",
    "10 a.m.": "ten A M",
    "7 AM": "seven A M",
    "10:00-11:30": "ten o'clock to eleven thirty",
    "April 12th": "April twelfth",
    "April 12": "April twelfth",
    "Sept. 3": "september third",
    "March 3, 2024": "March third twenty twenty four",
    "3/14/2025": "march fourteenth twenty twenty five",
    "2025-03-14": "march fourteenth twenty twenty five",
    "1990s": "nineteen nineties",
    "in 2019": "in twenty nineteen",
    "1905": "nineteen oh five",
    "2007": "two thousand seven",
    "21st": "twenty first",
    "100th": "one hundredth",
    "2nd-floor": "second floor",
    "5%": "five percent",
    "4.5%": "four point five percent",
    "10-15%": "ten to fifteen percent",
    "1/2 cup": "one half cup",
    "3/4": "three quarters",
    "24/7": "twenty four seven",
    "70\u00b0F": "seventy degrees fahrenheit",
    "5kg": "five kilograms",
    "1 kg": "one kilogram",
    "10 km": "ten kilometers",
    "1,200": "one thousand two hundred",
    "1,234,567": "one million two hundred thirty four thousand five hundred sixty seven",
    "-5": "minus five",
    "0.5": "zero point five",
    "0042": "zero zero four two",
    "555-0142": "five five five zero one four two",
    "555-123-4567": "five five five one two three four five six seven",
    "#5": "number five",
    "#4521": "number four five two one",
    "order 4521": "order four five two one",
    "ending in 4521": "ending in four five two one",
    "No. 5": "number five",
    "No. I can't.": "No I can't",
    "AB-1234": "A B one two three four",
    "A12": "A twelve",
    "SpectraDrone 9": "Spectra Drone nine",
    "PhoenixDrone X": "Phoenix Drone X",
    "CitySan": "City San",
    "McDonald": "McDonald",
    "iPhone": "I Phone",
    "Wi-Fi": "Wi Fi",
    "ATM": "A T M",
    "DVDs": "D V D's",
    "U.S.": "U S",
    "NASA": "nasa",
    "PIN": "pin",
    "I do NOT": "I do not",
    "A cup": "a cup",
    "plan A.": "plan A",
    "I am": "I am",
    "AT&T": "A T and T",
    "bread & butter": "bread and butter",
    "Dr. Smith": "doctor Smith",
    "near St. Mary": "near saint Mary",
    "Main St.": "Main street",
    "e.g. this": "for example this",
    "help@citysan.com": "help at citysan dot com",
    "and/or": "and or",
    "co-op": "co op",
    "uh-huh.": "uh huh",
    "don\u2019t": "don't",
    "customers' items": "customers' items",
    '"Hello," she said': "Hello she said",
    "(poached eggs, $9.50)": "poached eggs nine dollars fifty cents",
    "well -- no": "well no",
}


@pytest.mark.parametrize("written", CASES)
def test_written_text_is_said_as_people_say_it(written: str) -> None:
    assert " ".join(word for part in expand(written) for word in part.spoken) == CASES[written]


def test_every_written_word_keeps_its_spelling_and_order() -> None:
    text = 'It\'s $8/month - "really", AB-1234... \u2014 ok? No. 5 costs $1.2 million, at 9:00 PM!'
    assert [word.written for word in expand(text)] == [
        "It's", "$8/month", '"really",', "AB-1234...", "ok?", "No.", "5", "costs", "$1.2", "million,", "at", "9:00",
        "PM!",
    ]  # fmt: skip


def test_punctuation_shapes_the_tail_and_ends_sentences() -> None:
    words = expand('Well, I see. Right; why? He said: "no." Wait - what\u2026 at 9 a.m.')
    tails = {word.written: word.tail for word in words}
    assert tails["Well,"] == "," and tails["see."] == "." and tails["Right;"] == ";" and tails["why?"] == "?"
    assert tails["said:"] == ":" and tails['"no."'] == "." and tails["Wait"] == "," and tails["what\u2026"] == "."
    assert tails["a.m."] == "."
    assert [word.written for word in words if word.ends_sentence] == ["see.", "why?", '"no."', "what\u2026", "a.m."]


def test_no_digit_or_symbol_is_ever_left_to_the_engine() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        token = "".join(rng.choice("0123456789$%/:-.,#&@ABab'()") for _ in range(rng.randint(1, 8)))
        for word in expand(f"x {token} y"):
            for spoken in word.spoken:
                assert spoken.replace("'", "").isalpha(), (token, word)


def test_text_without_words_says_nothing() -> None:
    assert expand("") == [] and expand("... -- ?!") == []


def test_numbers_and_years_in_words() -> None:
    assert number_words(0) == "zero"
    assert number_words(999_999) == "nine hundred ninety nine thousand nine hundred ninety nine"
    assert [year_words(y) for y in (1066, 1100, 1800, 2000, 2010)] == [
        "ten sixty six", "eleven hundred", "eighteen hundred", "two thousand", "twenty ten",
    ]  # fmt: skip
