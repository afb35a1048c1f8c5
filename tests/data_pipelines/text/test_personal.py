"""How much of what is personal is found, on calls whose truth is known by construction, and what is masked in vain."""

import random
import re
from collections import Counter

import pytest

from data_pipelines import verbs
from data_pipelines.records.schema import Script, read_scripts
from data_pipelines.text.personal import masked_text, personal_runs
from data_pipelines.text.personal_words import SaidWord, is_marker
from data_pipelines.text.spoken import expand
from data_pipelines.text.words import normal_words
from data_pipelines.writer.tables import table

DIGITS = "zero one two three four five six seven eight nine".split()
MONTHS = "January February March April May June July August September October November December".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
RARE = "Thandiwe Yevgeny Ximena Oluwaseun Bronagh Tadhg Nguyet Kwabena Siobhan Ingeborg".split()
"""First names that no table of the project holds."""


def names() -> frozenset[str]:
    found = table("names")
    return frozenset(f"{found['first']} {found['last']}".lower().split())


def spelled(digits: str) -> str:
    return " ".join(DIGITS[int(d)] for d in digits)


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


def exchange(kind: str, rng: random.Random) -> tuple[str, str]:
    """A question and an answer whose personal words stand in braces."""
    spoken = rng.random() < 0.5
    if kind == "phone":
        number = digits(rng, 10)
        groups = (number[:3], number[3:6], number[6:])
        shown = ", ".join(map(spelled, groups)) if spoken else "-".join(groups)
        return rng.choice(["What number can I reach you at?", "And your phone number?"]), rng.choice(
            [f"It's {{{shown}}}.", f"Sure, {{{shown}}}, that's my cell.", f"You can call me at {{{shown}}}."]
        )
    if kind == "card":
        number = digits(rng, 16)
        shown = (
            ", ".join(spelled(number[n : n + 4]) for n in range(0, 16, 4))
            if spoken
            else " ".join(number[n : n + 4] for n in range(0, 16, 4))
        )
        return "Go ahead with the card number.", f"Okay, {{{shown}}}."
    if kind == "social":
        number = digits(rng, 9 if rng.random() < 0.5 else 4)
        return rng.choice(["Your social, please?", "The last four of your social security number?"]), (
            f"That would be {{{spelled(number) if spoken else number}}}."
        )
    if kind == "birth":
        day, year = rng.randint(1, 12), rng.randint(1940, 2005)
        shown = (
            f"{rng.choice(MONTHS)} {ORDINALS[day - 1]}, nineteen eighty {DIGITS[year % 9 + 1]}"
            if spoken
            else f"{rng.randint(1, 12)}/{day}/{year}"
        )
        return rng.choice(["What's your date of birth?", "When were you born?"]), f"{{{shown}}}."
    if kind == "email":
        user, host = rng.choice(["jdoe", "tanya88", "rivera"]), rng.choice(["gmail", "fastmail", "acme"])
        shown = f"{user} at {host} dot com" if spoken else f"{user}@{host}.com"
        return "Which e-mail should I send it to?", f"Send it to {{{shown}}} please."
    if kind == "address":
        number, street = rng.choice(["forty two", "1205", "seventeen"]), rng.choice(["Elm", "North Harbor", "Oak Hill"])
        return "And where do you live?", f"I live at {{{number} {street} {rng.choice(['Street', 'Avenue', 'Road'])}}}."
    first = rng.choice(RARE if rng.random() < 0.5 else table("names")["first"].split())
    last = rng.choice(table("names")["last"].split())
    return "May I have your name?", rng.choice(
        [f"My name is {{{first} {last}}}.", f"Hi, this is {{{first} {last}}}.", f"I'm {{{first}}}.", f"{{{first}.}}"]
    )


KINDS = ("phone", "card", "social", "birth", "email", "address", "name")
Marked = list[tuple[str, str]]
"""Words with the kind of what they give away, or ""."""


def marked(text: str, kind: str) -> Marked:
    words: Marked = []
    inside = False
    for part in text.split():
        inside = inside or "{" in part
        words.append((part.replace("{", "").replace("}", ""), kind if inside else ""))
        inside = inside and "}" not in part
    return words


def call(script: Script, rng: random.Random, lower: bool) -> list[list[tuple[SaidWord, str]]]:
    """A script with a few exchanges put in; truth of the script itself is the names and ids of its people."""
    turns = [(turn.speaker, marked(turn.text, "")) for turn in script.turns]
    for kind in rng.sample(KINDS, 3):
        at = rng.randrange(1, len(turns))
        question, answer = exchange(kind, rng)
        turns[at:at] = [("agent", marked(question, "")), ("user", marked(answer, kind))]
    sides: dict[str, list[tuple[SaidWord, str]]] = {"agent": [], "user": []}
    at_seconds = 0.5
    for speaker, words in turns:
        for text, kind in words:
            if lower:
                text = text.lower().strip(".,?!")
            word = SaidWord(text=text, start=at_seconds, end=at_seconds + 0.25, side=speaker)
            sides[speaker].append((word, kind))
            at_seconds += 0.35
        at_seconds += 0.4
    return list(sides.values())


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> list[Script]:
    path = tmp_path_factory.mktemp("scripts") / "scripts.jsonl"
    verbs.main(["synth", "service", "--num", "150", "--seed", "7", "--out", str(path)])
    return read_scripts(path)


def own_truth(script: Script) -> set[str]:
    """Words that are names or codes in the script itself, which may be masked and count neither way."""
    people = names()
    texts = [script.role_prompt, *(turn.text for turn in script.turns)]
    words = (word.strip(".,?!'").removesuffix("'s") for text in texts for word in text.split())
    return {word.lower() for word in words if word.lower() in people or re.search(r"-\d", word)}


@pytest.mark.parametrize(("lower", "floor"), [(False, 0.93), (True, 0.85)])
def test_recall_and_false_positives_on_the_role_scripts(scripts: list[Script], lower: bool, floor: float) -> None:
    """The figures are printed, and stand in docs/how-to/import.md."""
    rng = random.Random(3)
    there: Counter[str] = Counter()
    hidden: Counter[str] = Counter()
    others = vain = 0
    for script in scripts:
        sides = call(script, rng, lower)
        own = own_truth(script)
        found = personal_runs([[word for word, _ in words] for words in sides], names())
        for words, runs in zip(sides, found, strict=True):
            masked = {n for run in runs for n in range(run.first, run.last + 1)}
            for n, (word, kind) in enumerate(words):
                if kind:
                    there[kind] += 1
                    hidden[kind] += n in masked
                elif word.text.strip(".,?!'").removesuffix("'s").lower() not in own:
                    others += 1
                    vain += n in masked
    print({kind: f"{hidden[kind] / there[kind]:.3f}" for kind in KINDS}, f"in vain {vain / others:.5f} of {others}")
    assert sum(hidden.values()) / sum(there.values()) >= floor
    assert min(hidden[kind] / there[kind] for kind in KINDS if kind != "name") >= 0.9
    assert vain / others <= 0.008


@pytest.mark.parametrize(
    "text",
    [
        "It costs $350 and the deposit is $1,250.50.",
        "We open at 9:30 AM on August 2nd.",
        "That was in nineteen eighty four, twenty five years ago.",
        "About two hundred and fifty thousand dollars.",
        "I'm sorry, this is not a one way street.",
        "I will call you on Monday at ten thirty.",
    ],
)
def test_prices_times_and_years_stay(text: str) -> None:
    assert masked_text(text, names()) == text


def test_markers_are_words_for_which_nothing_is_said() -> None:
    masked = masked_text("My name is Oluwaseun. Call 415-555-0134, please.", names())
    assert masked == "My name is [name]. Call [number], please."
    assert [word.written for word in expand(masked)] == ["My", "name", "is", "Call", "please."]
    assert normal_words(masked) == ["my", "name", "is", "call", "please"]
    assert is_marker("[name].") and not is_marker("name") and not is_marker("[laughter]")


def test_what_was_masked_before_is_no_find() -> None:
    masked = "This is [name]. What is your name, and can I have your number? It's [number]."
    assert masked_text(masked, names()) == masked


def test_a_name_that_is_a_word_is_masked_as_a_name_only() -> None:
    masked = masked_text("My name is Will Grace. Will you wait? We will see, Will.", names())
    assert masked.startswith("My name is [name].") and "Will you" in masked and masked.endswith("We will see, [name].")
    low = masked_text("my name is will and we will see", names())
    assert low == "my name is [name] and we will see"
