"""Does the agent keep to the role in its prompt, without reading the prompt out?"""

import re
from collections.abc import Collection, Iterable, Sequence

from data_pipelines.records.schema import Dialogue, Word
from data_pipelines.records.turns import group_turns
from data_pipelines.text.claims import NUMBER, NUMBER_WORDS, claims
from data_pipelines.text.spoken import expand
from data_pipelines.text.words import normal_words
from data_pipelines.writer.problems import people

ROLE = re.compile(r"You work for (?P<company>.+?) which is .+? and your name is (?P<name>.+?)\.(?:\s|$)")
FACTS = "Information:"
PHRASE_PAUSE_SECONDS = 0.3


def role_values(dialogue: Dialogue) -> dict[str, float]:
    """The longest runs of words read out of the prompt and, for roles with facts, how well the agent keeps to them.

    Where both sides are agents, each value is that of the worse one.
    """
    each = [_role_values(dialogue, side) for side in dialogue.agent_sides if dialogue.side(side).role_prompt]
    names = {name for values in each for name in values}
    worst = {name: min if name == "says_role" else max for name in names}
    return {name: worst[name](values[name] for values in each if name in values) for name in sorted(names)}


def _role_values(dialogue: Dialogue, side: str) -> dict[str, float]:
    agent, user = dialogue.side(side), dialogue.side("right" if side == "left" else "left")
    prompt, said = agent.role_prompt, text_of(agent.words)
    match = ROLE.match(prompt)
    names = normal_words(f"{match['company']} {match['name']}") if match else []
    values: dict[str, float] = {
        "agent_prompt_run": longest_run(agent.words, instructions(prompt), ignored=names),
        "user_prompt_run": longest_run(user.words, [prompt]),
    }
    if match:
        opening = normal_words(f"You work for {match['company']}")
        is_read = _common_run(normal_words(said), opening) == len(opening)
        values["reads_prompt"] = float(is_read or any(word.text == FACTS for word in agent.words))
        values["says_role"] = float(any(_says(said, match[part]) for part in ("company", "name")))
    if FACTS in prompt:
        numbers, proper = unsupported(phrases(agent.words), f"{prompt} {text_of(user.words)}")
        values |= {"unsupported_numbers": len(numbers), "unsupported_names": len(proper)}
    return values


def phrases(words: Sequence[Word]) -> list[str]:
    """The words of one side, cut at pauses, because an interrupted turn ends without a full stop."""
    cuts = [n for n in range(1, len(words)) if words[n].start - words[n - 1].end > PHRASE_PAUSE_SECONDS]
    return [text_of(words[a:b]) for a, b in zip([0, *cuts], [*cuts, len(words)], strict=True)]


def text_of(words: Sequence[Word]) -> str:
    """The words with spaces between them."""
    return " ".join(word.text for word in words)


def instructions(prompt: str) -> list[str]:
    """The sentences of a prompt that address the agent; the facts, which it may say, are left out."""
    sentences = re.split(r"(?<=[.?!])\s+", prompt.partition(FACTS)[0])
    return [sentence for sentence in sentences if re.match(r"You\b|Have a", sentence)]


def longest_run(words: Sequence[Word], texts: Iterable[str], ignored: Collection[str] = ()) -> int:
    """The length of the longest run of words that a turn and one of the texts share, as words are said.

    Words in `ignored` may be in the run, but do not count.
    """
    references = [normal_words(text) for text in texts]
    turns = [normal_words(text_of(turn)) for turn in group_turns(words)]
    return max((_common_run(turn, reference, ignored) for turn in turns for reference in references), default=0)


def _common_run(a: Sequence[str], b: Sequence[str], ignored: Collection[str] = ()) -> int:
    """The length of the longest common substring, without the words that do not count."""
    best, row = 0, [0] * (len(b) + 1)
    for word in a:
        counts = word not in ignored
        row = [0, *(row[m] + counts if word == other else 0 for m, other in enumerate(b))]
        best = max(best, *row)
    return best


def unsupported(said: Sequence[str], known: str) -> tuple[list[str], list[str]]:
    """The numbers and the names in some phrases that `known` holds in no form: "12th" and "twelfth" are the same."""
    plain = known.lower().replace("'s", "")
    have = set(NUMBER.findall(plain)) | set(re.findall(r"[a-z][\w'-]*", plain)) | set(normal_words(known))
    numbers: list[str] = []
    names: list[str] = []
    for term in (term for phrase in said for term in claims(phrase, people())):
        spoken = [part.lower() for word in expand(term) for part in word.spoken]
        if term.lower() not in have and not (spoken and all(word in have for word in spoken)):
            (names if term.isalpha() and term.lower() not in NUMBER_WORDS else numbers).append(term)
    return numbers, names


def _says(said: str, name: str) -> bool:
    """Whether the whole name is said, or its first word if that is no common one such as "The"."""
    spoken, wanted = normal_words(said), normal_words(name)
    return _common_run(spoken, wanted) == len(wanted) or (len(wanted[0]) > 3 and wanted[0] in spoken)
