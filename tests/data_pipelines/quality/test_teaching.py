"""The measures of `ppx-data audit` against closed forms and counts by hand, and planted faults that they must see."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest

from data_pipelines.quality.limits import load_limits
from data_pipelines.quality.teaching import blind, floor, lesson, manners, stream, wording
from data_pipelines.quality.teaching.lesson import Lesson
from data_pipelines.quality.teaching.measures import FOLDER, MEASURES, AuditLimits, holds
from data_pipelines.records.schema import Dialogue, Event, Fact, Probe, Script, Side, Turn, Word
from model.config import LMConfig
from model.text import text_stream

VALUES = ["$5", "$12", "$30", "$41", "9 AM", "7 PM", "14", "23"]
TYPES = ["money"] * 4 + ["time"] * 2 + ["number"] * 2
ANNA = [Fact(type="name", text="Anna Berg", label="customer")]


def script(
    *turns: tuple[str, str],
    facts: Sequence[Fact] = (),
    probes: Sequence[Probe] = (),
    id: str = "a",
    split: str = "train",
) -> Lesson:
    """A talk of (speaker, text) turns; a speaker with "+" gives a backchannel."""
    made = tuple(
        Turn(
            speaker="agent" if who.startswith("agent") else "user",
            text=text,
            kind="backchannel" if "+" in who else "normal",
        )
        for who, text in turns
    )
    written = Script(
        id=id, source="service", split=split, scenario="service/bank/x", role_prompt="You are Anna.", turns=made,
        facts=tuple(facts), probes=tuple(probes),
    )  # fmt: skip
    return Lesson(script=written, domain="service/bank")


def words(text: str, start: float, step: float = 0.3) -> list[Word]:
    """Words of `step` seconds that touch."""
    times = [start + n * step for n in range(len(text.split()))]
    return [Word(text=word, start=at, end=at + step) for word, at in zip(text.split(), times, strict=True)]


def dialogue(
    agent: Sequence[Word],
    user: Sequence[Word],
    events: Sequence[Event] = (),
    facts: Sequence[Fact] = (),
    seconds: float = 60.0,
) -> Dialogue:
    left = Side(speaker="l", words=tuple(agent), is_agent=True)
    right = Side(speaker="r", words=tuple(user))
    return Dialogue(
        id="x", source="service", split="train", scenario="service/bank/x", seconds=seconds, left=left, right=right,
        licence="x", events=tuple(events), facts=tuple(facts),
    )  # fmt: skip


# ---- blind readers
def lookup(rng: random.Random, id: str, shuffled: bool, rivals: bool = True) -> Lesson:
    """A talk that asks for some of the facts; in the order of the prompt, or in any."""
    chosen = rng.sample(range(8), 5) if rivals else [0, 4, 6]
    facts = [Fact(type=TYPES[n], text=VALUES[n], label=f"f{n}") for n in sorted(chosen)]
    asked = facts[:3]
    if shuffled:
        rng.shuffle(facts)
        asked = rng.sample(facts, 3)
    turns, probes = [], []
    for fact in asked:
        turns += [("user", f"What about {fact.label}?"), ("agent", f"It is {fact.text}.")]
        probes.append(Probe(kind="Q1", question=f"What about {fact.label}?", facts=(str(fact.label),)))
    return script(*turns, facts=facts, probes=probes, id=id)


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_order_rule_is_always_right_on_ordered_facts_and_at_chance_on_shuffled_ones(shuffled: bool) -> None:
    rng, found = random.Random(1), blind.Blind()
    for n in range(300):
        found.add(lookup(rng, f"a{n}", shuffled))
    value = found.values()["order_rule"]
    # Three of five facts are asked for: chance is the mean of 1/5, 1/4 and 1/3, since the others are asked for later.
    assert value.value is not None and value.margin is not None and "900 questions" in value.note
    if shuffled:
        assert abs(value.value) < 2 * value.margin
    else:
        assert value.value == pytest.approx(1 - (1 / 5 + 1 / 4 + 1 / 3) / 3)


def test_the_type_rule_is_right_where_a_fact_has_no_rival_and_half_of_the_time_with_one() -> None:
    a, b, c = (
        Fact(type=kind, text=text, label=text) for kind, text in (("money", "$1"), ("money", "$2"), ("time", "9 AM"))
    )
    assert blind.type_guess([c], [a, b, c]) == (1, 0.5)
    assert blind.type_guess([a], [a, b, c]) == (0.5, 0.5)
    assert blind.type_guess([a], [a, c]) == (1, 0.5)  # its rival was said before
    found = blind.Blind()
    rng = random.Random(2)
    for n in range(40):
        found.add(lookup(rng, f"a{n}", shuffled=True, rivals=False))
    assert found.values()["type_rule"].value == pytest.approx(0.5)


def test_a_question_finds_its_turn_and_what_was_said_before() -> None:
    facts = [Fact(type="money", text=text, label=text) for text in ("$5", "$15")]
    probe = Probe(kind="Q2", question="How much is it?", facts=("$15",))
    one = script(
        ("agent", "It's $5."),
        ("user+", "Yeah."),
        ("user", "Okay, how much is it?"),
        ("agent", "$15."),
        facts=facts,
        probes=[probe],
    )
    assert blind.asking_turn(one, probe) == 1  # backchannels do not count
    assert blind.asked_facts(one, probe) == ([facts[1]], [facts[1]])
    assert blind.asked_facts(one, replace(probe, question="Why?")) is None
    assert blind.asked_facts(one, replace(probe, facts=None)) is None


def test_entropy_of_fair_certain_and_single_questions() -> None:
    fair = [("w", "present"), ("w", "absent")] * 5000
    assert blind.conditional_entropy(fair).value == pytest.approx(1, abs=1e-3)
    four = [(f"w{n % 7}", label) for n in range(7000) for label in blind.CLASSES]
    assert blind.conditional_entropy(four).value == pytest.approx(2, abs=1e-2)
    assert blind.conditional_entropy([("a", "present")] * 50 + [("b", "absent")] * 50).value == 0
    alone = blind.conditional_entropy((f"w{n}", "present") for n in range(100))
    assert alone.value is None and alone.note.startswith("0 of 100")


def test_the_entropy_of_few_questions_is_right_on_average() -> None:
    rng = random.Random(0)
    pairs = [(f"w{n // 6}", rng.choice(["present", "absent"])) for n in range(30_000)]
    corrected = blind.conditional_entropy(pairs).value
    groups = [Counter(label for _, label in pairs[n : n + 6]) for n in range(0, len(pairs), 6)]
    plain = sum(-c / 6 * math.log2(c / 6) for group in groups for c in group.values()) / len(groups)
    assert corrected is not None and abs(corrected - 1) < 0.03 < 1 - plain


def test_naive_bayes_agrees_with_exact_fractions() -> None:
    def features(text: str) -> list[tuple[str, ...]]:
        tokens = ["<", *text.split(), ">"]
        return [(token,) for token in tokens] + list(itertools.pairwise(tokens))

    rng = random.Random(7)

    def drawn(num: int) -> list[tuple[str, str]]:
        return [(" ".join(rng.choices("abcde", k=3)), rng.choice("xxyz")) for _ in range(num)]

    train, test = drawn(40), [text for text, _ in drawn(60)]
    known = {feature for text, _ in train for feature in features(text)}
    counts = {label: Counter(f for text, own in train if own == label for f in features(text)) for label in "xyz"}
    expected = []
    for text in test:
        scores = {}
        for label, count in counts.items():
            scores[label] = Fraction(sum(own == label for _, own in train))
            for feature in features(text):
                if feature in known:
                    scores[label] *= Fraction(count[feature] + 1, count.total() + len(known))
        expected.append(max(sorted(scores), key=lambda label: scores[label]))
    assert blind.naive_bayes(train, test) == expected and len(set(expected)) > 1


@pytest.mark.parametrize("leaks", [False, True])
def test_the_question_rule_sees_a_wording_that_tells_the_class(leaks: bool) -> None:
    rng, found = random.Random(3), blind.Blind()
    for n in range(600):
        kind = rng.choice(["Q1", "Q3"])
        thing = rng.choice(["parking", "wifi", "breakfast"])
        question = f"{'Is there' if kind == 'Q1' or not leaks else 'Could I get'} {thing}?"
        found.add(script(("user", question), probes=[Probe(kind=kind, question=question)], id=f"a{n}"))
    values = found.values()
    rule, entropy = values["question_rule"], values["answer_entropy"]
    assert rule.value is not None and rule.margin is not None and entropy.value is not None
    assert (rule.value > 0.4 and entropy.value < 0.01) if leaks else (abs(rule.value) < 0.1 and entropy.value > 0.95)


def test_values_are_masked_and_a_stated_class_wins() -> None:
    facts = [Fact(type="phrase", text="oil change"), Fact(type="money", text="$9.50")]
    assert blind.masked_question("Is an oil change $9.50 for Tara?", facts) == "is an 0 0 for N"
    assert blind.answer_class(Probe(kind="Q1", other_keys={"answer_class": "changed"})) == "changed"
    assert [blind.answer_class(Probe(kind=f"Q{n}")) for n in range(7)] == [
        None, "present", "present", "denied", None, "absent", None,
    ]  # fmt: skip


def test_the_share_of_questions_left_open_is_that_of_absent_facts() -> None:
    found = blind.Blind()
    kinds = ["Q1", "Q2", "Q3", "Q5", "Q4", "Q6"]  # nothing is known of the last two
    found.add(lesson_of_kinds(kinds))
    assert found.values()["unanswered"].value == 0.25
    found.add(lesson_of_kinds(["Q5"] * 4))
    assert found.values()["unanswered"].value == 5 / 8


def lesson_of_kinds(kinds: Sequence[str]) -> Lesson:
    return script(("user", "Why?"), probes=[Probe(kind=kind, question="Why?") for kind in kinds])


# ---- the floor
def test_clauses_end_by_marks_and_go_on_after_function_words() -> None:
    for word, marked, bare in (
        ("two.", True, True), ("for?", True, True), ("two", False, None), ("for", False, False),
        ("well,", False, False), ("so...", False, False), ("um.", False, False), ("the", False, False),
    ):  # fmt: skip
        assert floor.is_complete(word, True) is marked, word
        assert floor.is_complete(word, False) is bare, word


def test_silences_as_counted_by_hand() -> None:
    user = [*words("a table for", 0), *words("two please.", 1.5), *words("And when?", 6.0), *words("Bye.", 9.0)]
    agent = [*words("Mm-hm.", 1.0), *words("Of course it is.", 2.4), *words("At nine nine nine", 6.4)]
    hum = Event(kind="backchannel", side="left", start=1.0, end=1.3)
    found = floor.silences(dialogue(agent, user, [hum]), "left")
    # The hum neither takes the floor nor ends the silence; at 6.6 the agent speaks, and after "Bye." nobody does.
    assert [(round(s.seconds, 3), s.is_taken, s.is_complete) for s in found] == [(0.6, False, False), (0.3, True, True)]
    assert floor.silences(dialogue(agent, user), "left")[0].is_taken  # without the event it is speech


@pytest.mark.parametrize("resumes, takes", [(1.0, 1.0), (0.5, 2.0)])
def test_the_hazard_of_two_exponential_clocks_is_the_share_of_their_rates(resumes: float, takes: float) -> None:
    rng, found = random.Random(5), []
    for _ in range(4000):
        a, b = rng.expovariate(resumes), rng.expovariate(takes)
        found.append(floor.Silence(min(a, b), b < a, None))
    for seconds in (0.2, 0.5):
        value = floor.hazard(found, seconds)
        assert value.value is not None and value.margin is not None
        assert abs(value.value - takes / (resumes + takes)) < 2 * value.margin
    assert floor.hazard(found[:5], 0.2).value is None


def test_a_user_who_never_pauses_makes_every_silence_the_agents() -> None:
    user, agent, kept = [], [], []
    for n in range(30):
        user += words("How much is it?", 4.0 * n)
        agent += words("It is nine.", 4.0 * n + 1.8)
        kept += [*words("How much is the", 4.0 * n), *words("table?", 4.0 * n + 2.0)]
    full, paused = floor.Floor(), floor.Floor()
    full.add(talk_of(dialogue(agent, user, seconds=130)))
    late = [replace(word, start=word.start + 1, end=word.end + 1) for word in agent]
    paused.add(talk_of(dialogue(late, kept, seconds=130)))
    assert full.values()["takeover_all_0_5"].value == 1
    assert full.values()["takeover_incomplete_0_5"].value is None
    assert paused.values()["takeover_all_0_5"].value == pytest.approx(0.5, abs=0.01)
    assert paused.values()["takeover_incomplete_0_5"].value == 0


def talk_of(one: Dialogue) -> Lesson:
    return Lesson(script=script(("agent", "x")).script, domain="x", dialogue=one)


def test_a_barge_in_contests_a_value_only_if_it_was_heard_before() -> None:
    facts = [Fact(type="money", text="$45", label="p"), Fact(type="phrase", text="bath", label="s")]
    agent = words("It costs $45, plus tax and", 0)  # $45 ends at 0.9 s
    heard = Event(kind="barge_in", side="right", start=1.0, end=1.6, stop=1.5)
    early = replace(heard, start=0.7)
    asks = words("$45, yes?", 1.0)
    assert floor.contested(dialogue(agent, asks, [heard], facts)) == [False]
    assert floor.contested(dialogue(agent, words("$45, yes?", 0.7), [early], facts)) == [True]
    assert floor.contested(dialogue(agent, words("A bath?", 1.0), [heard], facts)) == []


def test_words_and_sound_of_a_cut_turn_end_together_or_not() -> None:
    event = Event(kind="barge_in", side="right", start=0.5, end=2, stop=1.2)
    assert floor.cut_gaps(dialogue(words("It costs that much", 0), words("Stop.", 0.5), [event])) == pytest.approx([0])
    assert floor.cut_gaps(dialogue(words("It costs that", 0), words("Stop.", 0.5), [event])) == pytest.approx([0.3])
    assert floor.cut_gaps(dialogue(words("It costs that.", 0), words("Stop.", 0.5), [event])) == []


def test_backchannels_come_from_events_or_are_found_in_recorded_calls() -> None:
    agent, user = words("Mm-hm.", 1.0), words("one two three four five six seven eight", 0)
    event = Event(kind="backchannel", side="left", start=1.0, end=1.3)
    assert lesson.listening(dialogue(agent, user), "left") == []
    assert lesson.listening(dialogue(agent, user, [event]), "left") == [(1.0, 1.3, "left")]
    recorded = replace(dialogue(agent, user), provenance={"recorded": True})
    assert lesson.listening(recorded, "left") == [(1.0, 1.3, "left")]
    assert lesson.without_backchannels(recorded).left.words == ()
    one = floor.Floor()
    one.add(talk_of(dialogue(agent, user, [event], seconds=30)))
    values = one.values()
    assert (values["backchannels_agent"].value, values["backchannels_user"].value, values["backchannels"].value) == (
        2,
        0,
        2,
    )


# ---- the text stream
class Pieces:
    """A tokenizer with one piece a letter."""

    card = 200

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def test_lags_and_shares_of_a_stream_as_counted_by_hand() -> None:
    # Frames are 80 ms: "abcd" takes frames 2 to 5, so that "ef" of frame 4 comes at 6 and 7; "g" at 11 has an EPAD.
    said = [
        Word(text=text, start=frame * 0.08, end=frame * 0.08 + 0.1)
        for text, frame in (("abcd", 2), ("ef", 4), ("g", 11))
    ]
    assert text_stream(said, 20, Pieces(), LMConfig(text_card=200)).lag_frames == [0, 2, 0]
    found = stream.Stream(Pieces())  # type: ignore[arg-type]
    found.add(talk_of(dialogue(said, [], seconds=1.6)))
    values = {name: value.value for name, value in found.values().items()}
    assert values == pytest.approx(
        {
            "lag_mean": 2 / 3,
            "lag_95": 1.8,
            "lag_longest": 2,
            "word_end_padding": 2 / 20,
            "pieces": 7 / 20,
            "overflow": 1 / 3,
        }
    )
    untimed, dumb = stream.Stream(Pieces()), stream.Stream()  # type: ignore[arg-type]
    untimed.add(script(("agent", "x")))
    dumb.add(talk_of(dialogue(said, [], seconds=1.6)))
    assert "no timing" in untimed.values()["pieces"].note and "--tokenizer" in dumb.values()["pieces"].note


# ---- manners
@pytest.mark.parametrize("question, answer, declined", [
    ("Here you are. Would you like a bag?", "Um, no thanks.", True),
    ("Would you like a bag?", "Yes, please.", False),
    ("Shall I put one aside?", "I'd rather not.", True),
    ("Does Monday work?", "Nope.", None),
    ("Does that work for you?", "Not really.", True),
    ("What would you like?", "No idea.", None),
    ("Would you like anything else?", "No, thanks.", None),
    ("Would you like a bag.", "No.", None),
])  # fmt: skip
def test_offers_and_what_declines_them(question: str, answer: str, declined: bool | None) -> None:
    assert manners.offers(script(("agent", question), ("user", answer))) == ([] if declined is None else [declined])


@pytest.mark.parametrize("question, answer, mismatches", [
    ("May I have your name?", "Sure, Anna Berg.", [False]),
    ("May I have your name?", "It's Berg.", [False]),
    ("May I have your name?", "It's Carla Stone.", [True]),
    ("May I have your name?", "Why do you ask?", []),
    ("How are you?", "This is Carla Stone.", []),
])  # fmt: skip
def test_names_that_are_not_the_prompts(question: str, answer: str, mismatches: list[bool]) -> None:
    assert manners.verifications(script(("agent", question), ("user", answer), facts=ANNA)) == mismatches


def test_ids_that_are_not_the_prompts() -> None:
    facts = [Fact(type="id", text="R-4711", label="order")]
    for answer, found in (("It's R-4711.", [False]), ("R-4712, I think.", [True]), ("I lost it.", [])):
        one = script(("agent", "What's the order number?"), ("user", answer), facts=facts)
        assert manners.verifications(one) == found
    few = manners.Manners()
    few.add(script(("agent", "Would you like a bag?"), ("user", "No.")))
    assert few.values()["declined"].value is None and few.values()["declined"].note == "1 offers"


# ---- wording
def test_shares_of_repeated_and_known_sentences() -> None:
    assert wording.repeated_share({"a": 11, "b": 10, "c": 1}) == pytest.approx(11 / 22)
    assert wording.known_share(["a", "a", "b"], ["a", "c"]) == pytest.approx(2 / 3)
    assert wording.masked_sentences("Thank you. It costs $5 a day.", []) == ["it costs 0 a day"]
    assert wording.hesitations("Um, well, uh, umbrella or hum") == 2


def test_what_scripts_hold_as_counted_by_hand() -> None:
    found = wording.Wording()
    probe = Probe(kind="Q1", question="How much is it then?")
    first = script(
        ("user", "Uh how much is it then?"),
        ("agent", "It costs five dollars a day."),
        ("user+", "Okay."),
        probes=[probe, probe],
        facts=ANNA,
    )
    second = script(
        ("user", "How much is it then?"),
        ("agent", "It costs too much for you."),
        probes=[probe],
        id="b",
        split="heldout",
    )
    second = replace(second, script=replace(second.script, role_prompt="You are Anna and you help all people."))
    for one in (first, second):
        found.add(one)
    values = {name: value.value for name, value in found.values().items()}
    assert (values["q1"], values["q2"]) == (1, 0)
    assert (values["turn_words_user"], values["longest_turn_user"]) == (5.5, 6)
    assert values["hesitations_user"] == pytest.approx(100 / 11) and values["hesitations_agent"] == 0
    assert (values["prompt_shortest"], values["prompt_median"], values["prompt_longest"]) == (3, 5.5, 8)
    assert values["facts"] == 0.5 and values["repeated"] == 0
    known = [values[f"known_{name}"] for name in wording.HELDOUT]
    assert known == [1, 0, None, 1]


# ---- limits
def test_limits_hold_inclusively_and_every_limited_measure_names_a_remedy() -> None:
    for value, held in ((0.9, False), (1.0, True), (2.0, True), (2.1, False)):
        assert holds(value, [1.0, 2.0]) is held
    assert holds(9, None) and holds(9, [None, None]) and not holds(9, [None, 8])
    for path in FOLDER.glob("*.yaml"):
        limits = load_limits(path.stem, [], AuditLimits, FOLDER)
        assert [name for name in MEASURES if getattr(limits, name) and not MEASURES[name].remedy] == [], path
