"""How a service call goes: greeting, request, the steps of its kind, further exchanges while there is time, goodbye."""

import re

from data_pipelines.writer.conversation import TurnList
from data_pipelines.writer.service_call import MAX_USED, NothingLeft, ServiceCall, asked_at
from data_pipelines.writer.service_extras import BAD_NEWS, clarify, extras
from data_pipelines.writer.slots import slots_of
from data_pipelines.writer.wording import fill, fitting, mentions, pick

MAX_TURNS = 11
AGENT_GREETS, CHECKS, DROPS_NAME = 0.88, 0.15, 0.4
HELLO = re.compile(r"(Yeah, )?(hi|hello), ", re.IGNORECASE)
WISH = re.compile(r"\b(have a|wish|enjoy|take care|all the best)\b", re.IGNORECASE)
CLOSING_WORDS = frozenset("call thank enjoy here".split())
"""The agent's last sentences share none of these words, to avoid "Call us any time. Call again any time"."""


def transcript(call: ServiceCall) -> TurnList:
    """The turns of a call, without backchannels; `call` notes what happens in it."""
    talk = TurnList()
    _open(call, talk)
    _check_value(call, talk)
    dropped = _dropped_steps(call)
    call.used += [name for name in call.kind["needs"] if name not in dropped]
    for name in call.kind["steps"]:
        if name not in dropped:
            step = call.steps[name]
            talk.agent(call.line(step["ask"]))
            talk.user(call.line(step["give"]))
            talk.agent(call.line(step["ack"]))
    for tag, extra in extras(call):
        longer, used, leads = talk.copy(), list(call.used), list(call.leads)
        try:
            asked = extra(call, longer)
            fits = longer.seconds + (4.0 if call.brief else 5.5) <= call.target
        except NothingLeft:
            fits = False
        if fits and len(longer.turns) <= MAX_TURNS and len(call.used) <= MAX_USED:
            talk = longer
            call.behaviours.append(tag)
            if asked:
                call.probes.append((tag, asked_at(talk, asked.question), asked))
        else:
            call.used, call.leads = used, leads
    _close(call, talk)
    return talk


def _open(call: ServiceCall, talk: TurnList) -> None:
    phrases, rng = call.phrases, call.rng
    slots = call.slots | {"agent": rng.choice([call.slots["agent"], call.slots["agent_first"]])}
    request = call.line(call.kind["open"])
    if rng.random() < AGENT_GREETS:
        talk.agent(fill(pick(rng, phrases["greet"], call.brief), slots))
    else:
        talk.user(call.line(phrases["hello"]))
        talk.agent(fill(pick(rng, phrases["greet_back"], call.brief), slots))
        request = HELLO.sub("", request, count=1)  # They have greeted each other already.
        request = request[0].upper() + request[1:]
    talk.user(request)
    talk.agent(fitting(request, call.line(call.kind["reply"])))


def _check_value(call: ServiceCall, talk: TurnList) -> None:
    """In some calls the user cuts into the first answer to make sure of a value in it."""
    values = [
        call.slots[slot]
        for name in call.kind["needs"]
        for slot in slots_of(call.facts[name]["prompt"])
        if mentions(talk.turns[-1].text, call.slots[slot]) and call.slots.types[slot] not in ("phrase", "name")
    ]
    if values and call.rng.random() < CHECKS:
        call.behaviours.append("barge_in")
        clarify(call, talk, values[0])


def _dropped_steps(call: ServiceCall) -> set[str]:
    """The steps that are left out: not every agent asks for a name, and a short call has no time for it."""
    drops = call.brief or call.rng.random() < DROPS_NAME
    dropped = {"name", "verify"} if call.brief else {"name"} if drops else set()
    call.knows_name = bool(({"name", "verify"} - dropped) & set(call.kind["steps"]))
    return dropped


def _close(call: ServiceCall, talk: TurnList) -> None:
    phrases, rng = call.phrases, call.rng
    ends_on_wrap = call.brief and len(talk.turns) >= 5 and rng.random() < 0.6
    if rng.random() < 0.5 and not call.brief:
        talk.agent(call.line(phrases["anything_else"]))
        talk.user(call.line(phrases["user_done"]))
    elif not ends_on_wrap:
        is_plain = call.is_curt() or BAD_NEWS.search(talk.turns[-1].text)
        talk.user(call.line(phrases["user_thanks_plain" if is_plain else "user_thanks"]))
    if not ends_on_wrap:
        talk.agent(call.line(phrases["welcome"]))
    said = " ".join(turn.text for turn in talk.turns)
    wraps = [text for text in call.kind["wrap"] if call.knows_name or "{customer" not in text]
    wrap = call.line([text for text in wraps if fill(text, call.slots) not in said] or wraps)
    talk.agent(wrap)
    if not call.brief:
        talk.agent(_goodbye(call, wrap, said))
    if rng.random() < 0.4 and not call.brief:
        back = phrases["user_bye_back"] if WISH.search(talk.turns[-1].text) else []
        talk.user(call.line(phrases["user_bye"] + back))


def _goodbye(call: ServiceCall, wrap: str, said: str) -> str:
    """Last words of the agent that repeat neither what was said nor words of `wrap`."""
    while True:
        goodbye = call.line(call.phrases["goodbye"])
        if goodbye.split(".")[0] not in said and not _words(goodbye) & _words(wrap) & CLOSING_WORDS:
            return goodbye


def _words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z]+", text.lower())}
