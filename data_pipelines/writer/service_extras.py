"""What may happen in a service call besides its request, in random order, as long as there is time.

    Q0 recall (name of agent or company), Q1 and Q2 details of the facts, Q3 a request that cannot be met,
    Q4 a rude user, Q5 a question in the domain that the facts leave open, Q6 an unrelated question,
    barge_in: the user checks a value, asks the next question, or stops an offer

The seven kinds from Q0 to Q6 are probes, which an evaluation can ask again.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from data_pipelines.writer.conversation import TurnList
from data_pipelines.writer.service_call import Asked, NothingLeft, ServiceCall
from data_pipelines.writer.slots import slots_of
from data_pipelines.writer.wording import fill, joined, mentions

Extra = Callable[[ServiceCall, TurnList], Asked | None]
"""Adds an exchange to the turns; returns what it asked if that is a probe. Raises: NothingLeft."""

BARGES_IN = 0.35
"""The chance that a barge-in is considered."""
SHARES = {"Q0": 0.25, "Q3": 0.5, "Q4": 0.15, "Q5": 0.35, "Q6": 0.15}
"""The chance that each behaviour is considered; the target length decides how many of them fit."""
BAD_NEWS = re.compile(
    r"\b(sorry|afraid|apologize|unfortunately|cancelled|don't|can't|isn't|understand|wrong|outside|only help)\b",
    re.IGNORECASE,
)
SHORT_WORDS = 6
"""An answer of fewer words ("Perfect, Tara.") holds nothing that the user could find helpful."""
ANSWERS_AT_ONCE = re.compile(r"(Yes|No|Sorry|I'm|Unfortunately|We do|We can|You can)\b")
# An answer that opens like this needs its question and cannot be offered unasked.
NEEDS_QUESTION = re.compile(
    r"(Yes|No|We do|We can|You can|It|That|Sure|From|Any|Up|Weekdays|Just|Plan|About|Bring|Please|Unfortunately|I'm"
    r"|Sorry)\b"
)


def extras(call: ServiceCall) -> Iterator[tuple[str, Extra]]:
    """Exchanges with the names of their behaviours, in the order in which they are tried."""
    rng = call.rng
    chosen = [tag for tag, share in SHARES.items() if rng.random() < share]
    chosen += ["Q1", "Q2"]
    rng.shuffle(chosen)
    if "Q4" in chosen:  # People are rude early, while they still have something to be angry about.
        chosen.remove("Q4")
        chosen.insert(0, "Q4")
    barge = rng.choice([_clarified, _interrupted, _offered])
    if rng.random() < BARGES_IN and "barge_in" not in call.behaviours:
        yield "barge_in", barge
    for tag in chosen:
        yield tag, PROBES[tag]


def clarify(call: ServiceCall, talk: TurnList, value: str) -> None:
    """The user cuts in to make sure of a value just heard."""
    call.slots["value"] = value
    row = call.rng.choice(call.phrases["clarify"])
    talk.user(call.line(row["ask"]), barges_in=True)
    talk.agent(call.line(row["answer"]))


def _exchange(call: ServiceCall, talk: TurnList, ask: str, answer: str) -> None:
    """The user asks, after a word on what was said before, and the agent answers."""
    last = talk.turns[-1]
    kind = "user_next_short" if len(last.text.split()) < SHORT_WORDS else "user_next"
    if call.is_curt() or BAD_NEWS.search(last.text):
        kind = "user_next_plain"
    talk.user(joined(call.lead(kind) if last.speaker == "agent" else "", ask))
    talk.agent(answer)


def _recall(call: ServiceCall, talk: TurnList) -> Asked:
    row = call.rng.choice(call.phrases["recall"])
    ask, answer = call.line(row["ask"]), call.line(row["answer"])
    talk.user(ask)
    talk.agent(answer)
    return Asked(question=ask, answer=answer, facts=tuple(row["facts"]))


def _detail(call: ServiceCall, talk: TurnList) -> Asked:
    row = call.fact()
    ask, answer = call.question(row)
    _exchange(call, talk, ask, joined("" if ANSWERS_AT_ONCE.match(answer) else call.lead("agent_lead"), answer))
    return Asked(question=ask, answer=answer, facts=tuple(slots_of(row["prompt"]) or [call.used[-1]]))


def _refusal(call: ServiceCall, talk: TurnList) -> Asked:
    kind = call.scenario.split("/")[2]
    names = [name for name, row in call.facts.items() if "not_offered" in name and kind not in row.get("not_in", ())]
    if not names:
        raise NothingLeft
    name = call.rng.choice(names)
    call.used.append(name)
    row = call.facts[name]
    ask, answer = call.line(row["ask"]), call.line(row["answer"])
    _exchange(call, talk, ask, answer)
    return Asked(question=ask, answer=answer, facts=tuple(slots_of(row["prompt"]) or [name]))


def _rude(call: ServiceCall, talk: TurnList) -> Asked:
    ask, answer = call.line(call.phrases["rude"]), call.line(call.phrases["rude_answer"])
    talk.user(ask)
    talk.agent(answer)
    return Asked(question=ask, answer=answer)


def _open_question(call: ServiceCall, talk: TurnList) -> Asked:
    row = call.rng.choice(call.domain["unspecified"])
    topic = fill(row["topic"], call.slots)
    call.slots["topic"] = topic[:1].lower() + topic[1:]
    ask, answer = call.line(row["ask"]), call.line(call.phrases["unspecified_answer"])
    _exchange(call, talk, ask, answer)
    talk.user(call.line(call.phrases["user_accepts"]))
    return Asked(question=ask, answer=answer)


def _unrelated(call: ServiceCall, talk: TurnList) -> Asked:
    row = call.rng.choice(call.phrases["unrelated"])
    call.slots["topic"] = row["topic"]
    ask = joined(call.line(call.phrases["aside"]), call.line([row["ask"]]))
    answer = call.line(call.phrases["unrelated_answer"])
    talk.user(ask)
    talk.agent(answer)
    return Asked(question=ask, answer=answer)


PROBES: dict[str, Extra] = {
    "Q0": _recall, "Q1": _detail, "Q2": _detail, "Q3": _refusal, "Q4": _rude, "Q5": _open_question, "Q6": _unrelated,
}  # fmt: skip


def _long_answer(call: ServiceCall, talk: TurnList, row: dict[str, Any]) -> None:
    ask, answer = call.question(row)
    _exchange(call, talk, ask, f"{answer.rstrip('.')}, {call.lead('tails')}.")


def _clarified(call: ServiceCall, talk: TurnList) -> None:
    """The user cuts in to check a value just heard."""
    row = call.fact()
    _long_answer(call, talk, row)
    stated = [call.slots[slot] for slot in slots_of(row["prompt"])]
    values = [text for text in stated if mentions(talk.turns[-1].text, text)]
    if not values:
        raise NothingLeft
    clarify(call, talk, values[-1])


def _interrupted(call: ServiceCall, talk: TurnList) -> None:
    """The user cuts in with the next question."""
    _long_answer(call, talk, call.fact())
    ask, answer = call.question(call.fact())
    talk.user(joined(call.lead("interrupt"), ask), barges_in=True)
    talk.agent(answer)


def _offered(call: ServiceCall, talk: TurnList) -> None:
    """The agent offers what nobody asked for, and the user stops it."""
    row = call.fact()
    texts = [text for text in row["answer"] if not NEEDS_QUESTION.match(text)]
    if not texts:
        raise NothingLeft
    talk.agent(joined(call.lead("offer_lead"), call.line(texts)))
    talk.user(call.line(call.phrases["offer_stop"]), barges_in=True)
    talk.agent(call.line(call.phrases["offer_ok"]))
