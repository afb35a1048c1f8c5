"""Small rules that turn filled templates into speakable English, and the estimate of how long it lasts."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from random import Random

from data_pipelines.records.schema import Turn

WORDS_PER_SECOND = 2.6
GAP_SECONDS = 0.25
"""The pace of the estimate, and its silence after each turn."""
# Plain ASCII that every speech engine reads, without markdown and without symbols beyond money and percent.
SPEAKABLE = re.compile(r"[A-Za-z0-9 .,?!'$%:-]+")
BRACKET = re.compile(r"\[([^][]*)\]")
SENTENCE = re.compile(r"(?<=[.?!])\s+")
# Words that open sentences and are no names. Any other capitalised word keeps its capital after a lead-in.
LOWERED = frozenset(
    """
    A About Abroad Access Act Add Adjectives Adults Air All Almost Alright Am An And Animals Ants Any Apples Are
    Aren't As At Bacteria Be Because Bees Before Better Between Bills Birds Blot Books Breakfast Bring Bringing
    Buried Burning But By Cacao Caffeine Can Catching Cats Check-in Child Children Chili Chocolate Claims Close
    Clouds Coins Coming Compound Computers Contracts Control Cook Cool Could Count Cut Cutting Damage Delivery
    Describe Did Do Does Doesn't Dogs Don't Drink Drinks Drivers During Each Eight Electricity Elevators Equipment
    Evening Every Everyone Everything Exactly Express Extra Fake Far Fat Finally Find Fine Fingerprints Fireflies
    Fish Five Fold Food For Four Frankly Friendship From Frozen Full Further Gas Gases Gift Give Go Good
    Goosebumps Gravity Great Groups Guests Hair Half Hardly Has Have He Heating Hello Hey Hi Hiccups Holding Hot
    How Ice Ideas If In Inflation Inside Installation Insurance Introductory Iron Is Isn't It It'll It's Jet Just
    Keep Know Late Learn Let Let's Light Lightning Listen Lockers Look Lots Lower Major Make Many Memories Minus
    Mix Moist Mold More Most Move My New Next Nights No Nobody Nope Normal Not Nothing Of Off Okay On One Only
    Organized Our Over Paint Parking Part Particles Parts Pay Paying Penguins Perfect Phone Pi Pick Pickup Pieces
    Pile Plan Planets Plants Please Plunge Pockets Practice Prepare Prices Private Purring Put Quick Rain
    Raindrops Random Read Rehearse Remind Repeat Replacement Reward Right Rinse Rush Salt Same Save Say See
    Sending Seniors Set Setup Shipping Should Sign Since Sit Sitting Six Sleep Small Sniffing Snow So Soap Some
    Somebody Something Sore Sound Special Spiders Spread Square Standard Stars Start Stay Stick Stress Students
    Sunlight Sure Take Taking Talk Taxes Tell Test That That'll That's The Then There There'll There's These They
    They're This Three Thunder Tides Tie Time To Together Tomatoes Travel Treatment Try Twenty Under Unfortunately
    Until Up Use Using Valves Visits Wait Walk Was Watch Water We We'd We'll We're We've Weekdays Well Were Whales
    What What's When When's Where Where's Which While Who Who's Why Will Wind With Without Would Wouldn't Write
    Yeah Yeast Yes You You'd You'll You're Your Zero
    """.split()
)
WH_QUESTION = re.compile(r"\b(how|what|what's|when|when's|which|who|who's|where|any)\b", re.IGNORECASE)
YES_OPENING = re.compile(r"^(Yes, |Yes\. |We do[.,] |We can[.,] |You can\. |It is\. |No, )")
ARTICLE = re.compile(r"\b([Aa])n? (?=([A-Za-z0-9$]+))")
# The sound of some words differs from their first letter, as in "an hour", "an $8 fee" and "a one-way ticket".
VOWEL_SOUND = re.compile(
    r"(hour|honest|heir|X-ray|\$?8|\$?1[18]$|[aeiouAEIOU](?!ne\b|ni|sed|ser|sual|tility|ropean|\b$))"
)


def with_article(text: str) -> str:
    """Sets each "a" or "an" by the sound of the next word."""
    return ARTICLE.sub(lambda m: m[1] + ("n " if VOWEL_SOUND.match(m[2]) else " "), text)


def fill(template: str, slots: Mapping[str, str]) -> str:
    """Fills {slots}, sets articles, and starts every sentence with a capital."""
    text = with_article(template.format_map(slots).strip())
    return " ".join(part[:1].upper() + part[1:] for part in SENTENCE.split(text))


def joined(lead: str, text: str) -> str:
    """Puts `lead` before `text`, whose first word loses its capital after a comma or a word unless it is a name.

    Before a text that begins with "And" a lead is left out, unless the lead is a sentence of its own.
    """
    if not lead:
        return text
    if re.search(r"\b[Aa]nd$", lead):
        text = text.removeprefix("And ")
    elif text.startswith("And ") and lead[-1] not in ".?!":
        return text
    first = text.split()[0]
    keeps_capital = lead[-1] in ".?!" or not re.fullmatch(r"[A-Z]['a-z-]*[,.?]?", first) or re.match(r"I\b", first)
    return (
        f"{lead} {text}"
        if keeps_capital or first.rstrip(",.?") not in LOWERED
        else f"{lead} {text[0].lower()}{text[1:]}"
    )


def fitting(ask: str, answer: str) -> str:
    """The answer, without its "yes" where the last sentence of `ask` is no yes-or-no question."""
    last = re.split(r"[.!?]\s", ask)[-1]
    if last.endswith("?") and not WH_QUESTION.search(" ".join(last.split()[:4])):
        return answer
    stripped = YES_OPENING.sub("", answer, count=1) or answer
    return stripped[0].upper() + stripped[1:]


def mentions(text: str, value: str) -> bool:
    """True if `value` stands in the text as a whole: "5" is not in "$15" nor in "5:30"."""
    if value.lower() not in text.lower():  # This is the most frequent case, and needs no pattern.
        return False
    pattern = rf"(?<![\w$:.]){re.escape(value)}(?!\w|[.:,]\d)"
    return re.search(pattern, text, re.IGNORECASE) is not None


@lru_cache(maxsize=1 << 12)
def spoken_length(text: str) -> float:
    """Roughly how many words it takes to say `text`: each digit counts as a word, and so does "$"."""
    return sum(max(1.0, sum(c.isdigit() for c in token) + ("$" in token)) for token in text.split())


def estimated_seconds(turns: Iterable[Turn]) -> float:
    """Estimated length in seconds, at 2.6 words a second and 0.25 s between turns.

    Backchannels overlap other turns and take no time.
    """
    timed = [turn for turn in turns if turn.kind != "backchannel"]
    return sum(spoken_length(turn.text) for turn in timed) / WORDS_PER_SECOND + GAP_SECONDS * len(timed)


def pick(rng: Random, options: Sequence[str], brief: bool = False) -> str:
    """One of the options, with a choice made in each of its [brackets]; `brief` picks among the shorter half."""
    if brief:
        options = sorted(options, key=len)[: (len(options) + 1) // 2]
    return chosen(rng, rng.choice(list(options)))


def chosen(rng: Random, text: str) -> str:
    """The text with one of the alternatives in each bracket: "[Sure|Of course], [|just ]a moment."."""
    return " ".join(BRACKET.sub(lambda m: rng.choice(m[1].split("|")), text).split())
