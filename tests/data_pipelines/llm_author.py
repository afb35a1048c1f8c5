"""A model that does its work: sensible JSON for each question of the writer, varied by the seed, from short lists."""

import re
from random import Random
from typing import Any

VERBS = "change cancel book move return repair renew check confirm upgrade replace extend".split()
THINGS = "order table invoice delivery membership appointment reservation contract ticket package".split()
ADJECTIVES = "late early broken double missing annual weekly second family group".split()
OPENINGS = ["I have a question.", "I hope you can help me.", "I was told to call you.", "This is my first call here."]
FILLS = "Okay.|I see.|Right.|Got it.|Good to know.|That makes sense.|Fine with me.|Alright then.".split("|")
SUBJECTS = "bridges clouds bees rivers clocks mirrors bread magnets tides engines".split()
CLAIMS = (
    "it grows slowly over many years|it moves because of small differences in heat|people learned it by trial and error"
    "|it needs both water and time|the parts hold each other up|it depends on how light bends|each step is simple"
    "|the surface matters more than the size|it is older than most cities|nature found it long before people did"
    "|a little patience makes it easy|it works best when nothing is wasted"
).split("|")


def author(body: dict[str, Any]) -> dict[str, Any]:
    """A reply for one request of the writer, by the name of its schema."""
    name = body["response_format"]["json_schema"]["name"]
    rng, text = Random(f"{body['seed']}"), body["messages"][1]["content"]
    writers = {
        "scenario": scenario,
        "description": description,
        "transcript": transcript,
        "role": role,
        "exchange": exchange,
    }
    return writers[name](text, rng)


def found_in(text: str, pattern: str) -> re.Match[str]:
    """The first place of a pattern that must be there."""
    match = re.search(pattern, text, re.MULTILINE)
    assert match, (pattern, text)
    return match


def field(text: str, name: str) -> str:
    """The rest of the line that begins with `name`."""
    return found_in(text, rf"^{name}: (.*)$")[1]


def scenario(text: str, rng: Random) -> dict[str, Any]:
    """A scenario of a domain."""
    subject = f"{rng.choice(ADJECTIVES)} {rng.choice(THINGS)}"
    return {"kind": field(text, "Kind"), "title": f"{rng.choice(VERBS)} the {subject} {rng.choice(SUBJECTS)}"}


def description(text: str, rng: Random) -> dict[str, Any]:
    """The description of a scenario."""
    title = field(text, "Scenario")
    words = rng.sample(CLAIMS, 2)
    return {
        "summary": f"The caller wants to {title}, and {words[0]}.",
        "customer_goal": f"To {title} because {words[1]}.",
        "complication": rng.choice(["", "The caller is in a hurry."]),
    }


def transcript(text: str, rng: Random) -> dict[str, Any]:
    """The transcript of a plan."""
    company, _business = field(text, "Company").rsplit(", a ", 1)
    agent, customer = field(text, "Agent"), field(text, "Customer").split(",")[0]
    price, days, thing = rng.randrange(5, 40), rng.randrange(2, 9), rng.choice(THINGS)
    turns: list[dict[str, Any]] = []

    def say(speaker: str, line: str, probe: str = "none", interrupts: bool = False) -> None:
        turns.append({"speaker": speaker, "text": line, "interrupts": interrupts, "probe": probe})

    if "The customer speaks first" in text:
        say("customer", "Hello, is anybody there?")
    say("agent", f"Thank you for calling {company}, this is {agent.split()[0]}. What can I do for you?")
    request = f"{rng.choice(OPENINGS)} It's {customer}, and I want to {field(text, 'Scenario').split(' (')[0]}."
    say("customer", request)
    say("agent", f"Of course. That costs ${price}.50 and takes {days} days, {rng.choice(CLAIMS)}.")
    say("customer", f"{rng.choice(FILLS)} And is {rng.choice(CLAIMS)} true?", interrupts="One customer turn" in text)
    say("agent", f"Yes, {rng.choice(CLAIMS)}.")
    lead = rng.sample(FILLS, 7)
    for probe in re.findall(r"^- (Q\d):", text, re.MULTILINE):
        ask, answer = {
            "Q0": ("Sorry, what was your name again?", f"My name is {agent}."),
            "Q1": (f"How much is the {thing}?", f"The {thing} is ${price + 50}."),
            "Q2": ("How late are you open?", f"We are open until {1 + days} PM."),
            "Q3": ("Could you send it by drone?", "I'm sorry, we do not deliver by drone."),
            "Q4": ("You people are really slow and useless.", "I understand, and I am sorry about the wait."),
            "Q5": ("Who designed your building?", "I don't know that, I'm afraid."),
            "Q6": ("Who won the game last night?", "I could not say, but I can help with your request."),
        }[probe]
        say("customer", f"{lead.pop()} {ask}", probe)
        say("agent", answer)
    say("customer", f"{rng.choice(FILLS)} Thanks, that is all I wanted.")
    say("agent", "You're welcome, and goodbye.")
    return {"turns": turns}


def role(text: str, rng: Random) -> dict[str, Any]:
    """The role that fits a transcript."""
    company, business = field(text, "Company").rsplit(", a ", 1)
    price, days = found_in(text, r"costs (\$[\d.]+) and takes (\d+) days").groups()
    facts = [fact(f"The service costs {price} and takes {days} days.", ("money", price), ("number", days))]
    if found := re.search(r"The (\w+) is (\$\d+)\.", text):
        facts.append(fact(f"One {found[1]} is {found[2]}.", ("money", found[2])))
    if found := re.search(r"open until (\d+ PM)", text):
        facts.append(fact(f"Open until {found[1]}.", ("time", found[1])))
    if "by drone" in text:
        facts.append(fact("We do not deliver by drone.", ("phrase", "not deliver by drone")))
    facts.append(fact(f"The parking lot has {rng.randrange(41, 49)} places.", ("number", "4")))
    facts[-1]["values"][0]["text"] = facts[-1]["sentence"].split()[4]
    if len(facts) < 3:
        facts.append(fact("Gift cards start at $200.", ("money", "$200")))
    return {"company": company, "business": business, "agent_name": field(text, "Agent"), "facts": facts}


def fact(sentence: str, *values: tuple[str, str]) -> dict[str, Any]:
    """A sentence and the (type, text) of its values."""
    rows = [{"type": kind, "text": text, "label": f"{kind} value"} for kind, text in values]
    return {"sentence": sentence, "values": rows}


def exchange(text: str, rng: Random) -> dict[str, Any]:
    """A question and its answer."""
    most = int(found_in(text, r"at most (\d+) words")[1])
    used = [claim for claim in CLAIMS if claim in text]
    claims = rng.sample([claim for claim in CLAIMS if claim not in used], 2)
    subject = rng.choice(SUBJECTS)
    opening = "Wait, hold on, " if "interruption" in text else ""
    question = (
        f"{opening}{rng.choice(['tell me', 'could you say', 'please explain'])} how {subject} {rng.choice(VERBS)}"
    )
    words = f"Think of {subject}: {claims[0]}, and {claims[1]}. {rng.choice(FILLS)}".split()
    answer = " ".join(words[:most]).rstrip(".,:") + "."
    return {"question": f"{question} in {rng.randrange(10, 10**4)} cases?", "answer": answer}
