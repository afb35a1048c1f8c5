"""Figures that describe a set of scripts: sizes, variety, behaviours, and how many facts are said."""

from collections import Counter
from collections.abc import Sequence

from data_pipelines.schema import Script
from data_pipelines.writer.wording import estimated_seconds, mentions


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct-n: different word n-grams divided by all of them; 0 without any."""
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.lower().split()
        grams.update(tuple(words[k : k + n]) for k in range(len(words) - n + 1))
    return len(grams) / max(grams.total(), 1)


def fact_is_said(fact: dict[str, str], script: Script) -> bool:
    """True if the fact's text is spoken; a phrase that is a whole sentence counts if half of its long words are."""
    spoken = " ".join(turn.text for turn in script.turns).lower()
    if mentions(spoken, fact["text"]):
        return True
    words = [word for word in fact["text"].lower().split() if len(word) > 3]
    return fact["type"] == "phrase" and bool(words) and sum(word in spoken for word in words) * 2 >= len(words)


def fact_coverage(scripts: Sequence[Script]) -> float:
    """Share of the facts marked as used that are said in their dialogue; 1 if there are none."""
    said = [fact_is_said(fact, script) for script in scripts for fact in script.facts if fact["used"] == "yes"]
    return sum(said) / len(said) if said else 1.0


def summary(scripts: Sequence[Script]) -> str:
    """A few lines for the terminal."""
    splits = Counter(script.split for script in scripts)
    turns = [turn for script in scripts for turn in script.turns]
    texts = [turn.text for turn in turns]
    words = Counter({"agent": 0, "user": 0})
    for turn in turns:
        words[turn.speaker] += len(turn.text.split())
    kinds = Counter(turn.kind for turn in turns)
    seconds = sum(estimated_seconds(script.turns) for script in scripts)
    did = Counter(what for script in scripts for what in script.provenance["behaviours"])
    variety = " / ".join(f"{distinct(texts, n):.3f}" for n in (1, 2, 3))
    lines = [
        f"split: {splits['train']} train, {splits['heldout']} held out, {len({s.scenario for s in scripts})} scenarios",
        f"words: {words['agent']} agent, {words['user']} user; about {seconds / 3600:.2f} h of speech, "
        f"{seconds / len(scripts):.1f} s and {(len(turns) - kinds['backchannel']) / len(scripts):.1f} turns a script",
        f"overlap: {kinds['barge_in']} barge-ins, {kinds['backchannel']} backchannels",
        f"distinct-1/2/3: {variety}",
    ]
    if any(script.facts for script in scripts):
        lines.append(f"fact coverage: {100 * fact_coverage(scripts):.1f} % of the facts used are said")
    lines.append("behaviours: " + ", ".join(f"{what} {count}" for what, count in sorted(did.items())))
    return "\n".join(lines)
