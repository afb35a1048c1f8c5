"""Calls of two people who say a little about themselves, and a model that finds it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.records.schema import Word
from tests.data_pipelines.llm_server import Body
from tests.data_pipelines.tiny_dialogues import write_dialogue

LEFT = "so i live in boston and i have two dogs what about you | yeah i was a baker for twenty one years"
RIGHT = "oh i grew up in texas | you live in boston and my wife works for delta i don't like meetings"


def call(
    folder: Path,
    id: str,
    left: str = LEFT,
    right: str = RIGHT,
    *,
    title: str = "Eating at Home.",
    agents: Sequence[str] = ("left", "right"),
) -> Path:
    """A dialogue folder in which both sides speak in turns of one second, cut at "|"."""
    words: dict[str, tuple[Word, ...]] = {}
    for side, said, offset in (("left", left, 0.0), ("right", right, 1.0)):
        parts = [part.split() for part in said.split("|")]
        words[side] = tuple(
            Word(text=word, start=(start := offset + 2 * n + k / len(part)), end=start + 0.9 / len(part))
            for n, part in enumerate(parts)
            for k, word in enumerate(part)
        )
    place = write_dialogue(folder, id, source="fisher", seconds=8.0, agents=tuple(agents), words=words)
    meta = json.loads((place / "meta.json").read_text("utf-8"))
    meta["provenance"]["topic"] = title
    for side in agents:
        meta[side] |= {"role_prompt": f"You enjoy having a good conversation. Importer, {side}.", "prompt_level": "b"}
    (place / "meta.json").write_text(json.dumps(meta), "utf-8")
    return place


def listener(body: Body) -> dict[str, Any]:
    """A model that does its work: it reads the topic and what ME says of himself."""
    lines = body["messages"][1]["content"].splitlines()
    mine = " ".join(line.removeprefix("ME: ") for line in lines if line.startswith("ME:"))
    topic = lines[0].partition(": ")[2] if lines[0].startswith("The callers") else "this and that"
    facts = {
        r"i live in (boston)": "You live in Boston.",
        r"i was a baker for twenty one years": "You were a baker for 21 years.",
        r"i grew up in (texas)": "You grew up in Texas.",
        r"i don't like meetings": "You dislike meetings.",
    }
    found = [
        {"sentence": text, "evidence": [match[0]]} for said, text in facts.items() if (match := re.search(said, mine))
    ]
    tone = "casual" if "dogs" in mine else "lively"
    return {"topic": topic, "tone": tone, "form": "discussion", "facts": found}
