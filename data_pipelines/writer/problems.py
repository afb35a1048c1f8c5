"""What is wrong with a script: turns that do not alternate, characters that cannot be spoken, and inventions."""

import re
from collections.abc import Sequence
from functools import lru_cache

from data_pipelines.records.schema import Script, Turn
from data_pipelines.text.claims import NUMBER, claims
from data_pipelines.writer.tables import table
from data_pipelines.writer.wording import SPEAKABLE


def problems(script: Script) -> list[str]:
    """Everything that is wrong with a script, in words; [] for a good one."""
    found = alternation_problems(script.turns)
    for n, turn in enumerate(script.turns):
        if not SPEAKABLE.fullmatch(turn.text) or turn.text != " ".join(turn.text.split()):
            found.append(f"turn {n} is not plain speakable text: {turn.text!r}")
    if script.source == "service":
        found += [f"the agent says {word!r} out of nowhere" for word in unsupported(script)]
    return found


def alternation_problems(turns: Sequence[Turn]) -> list[str]:
    """What breaks the order of turns, in words; [] if nothing does.

    Backchannels and barge-ins must follow a normal turn of the other side. Without backchannels the speakers must
    alternate, and nobody may say the same turn twice in a row.
    """
    found = []
    for n, turn in enumerate(turns):
        if turn.kind != "normal" and (n == 0 or turns[n - 1].speaker == turn.speaker or turns[n - 1].kind != "normal"):
            found.append(f"turn {n} ({turn.kind}) does not follow a normal turn of the other side")
    spoken = [turn for turn in turns if turn.kind != "backchannel"]
    for n, turn in enumerate(spoken):
        if n >= 1 and spoken[n - 1].speaker == turn.speaker:
            found.append(f"{turn.speaker} speaks twice in a row: {turn.text!r}")
        if n >= 2 and spoken[n - 2].text == turn.text:
            found.append(f"said twice: {turn.text!r}")
    return found


def unsupported(script: Script) -> list[str]:
    """Numbers and proper nouns that the agent says although neither its prompt nor the user has stated them before."""
    known = script.role_prompt
    missing = []
    for turn in script.turns:
        if turn.speaker == "user":
            known += " " + turn.text
        else:
            plain = known.lower().replace("'s", "")
            words = set(NUMBER.findall(plain)) | set(re.findall(r"[a-z][\w'-]*", plain))
            missing += [term for term in claims(turn.text, people()) if term.lower() not in words]
    return missing


@lru_cache(maxsize=1)
def people() -> frozenset[str]:
    """All first and last names that the writer gives to people."""
    return frozenset(name for row in table("names").values() for name in row.split())
