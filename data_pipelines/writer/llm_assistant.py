"""Assistant scripts by a model: questions to a teacher, written one exchange at a time.

The second question is of a drawn kind, and half of the second questions cut into the first answer. The role is always
the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from data_pipelines.llm.answers import Question
from data_pipelines.llm.client import Client, NoAnswer
from data_pipelines.records.schema import Script, Turn
from data_pipelines.writer.assistant import PROMPT
from data_pipelines.writer.conversation import with_backchannels
from data_pipelines.writer.llm_scenarios import Levels, Scenario, question_seed
from data_pipelines.writer.llm_text import object_schema, plain_record, turn_problems
from data_pipelines.writer.wording import WORDS_PER_SECOND, estimated_seconds

LONGEST, ROUND_SECONDS = 90.0, 16.0
"""Seconds: the limit where none is asked for, and the least time for one question with its answer."""
BARGES_IN = 0.5
"""The chance that the second question cuts into the first answer."""
MAX_QUESTION_WORDS, MIN_ANSWER_WORDS, MAX_ANSWER_WORDS = 30, 10, 80
EXCHANGE_SCHEMA = object_schema(question="string", answer="string")
KINDS = {
    "follow_up": "asks for more about something in the answer",
    "topic_change": "leaves the topic and asks about this instead: {other}",
    "clarification": "did not understand and asks for a simpler explanation",
    "check_back": "says in his or her own words what the answer meant and asks whether that is right",
    "example": "asks for an example from everyday life",
    "doubt": "has heard the opposite and asks whether the answer is really true",
    "advice": "asks what to do with it in his or her own life",
}
SUBJECTS = (
    "animals", "art", "astronomy", "baking", "biology", "birds", "books", "budgeting", "careers", "chemistry",
    "child care", "cities", "climate", "clothing", "computers", "cooking", "cycling", "dance", "dogs and cats",
    "economics", "electricity", "engineering", "exercise", "farming", "film", "first aid", "friendship", "gardening",
    "geography", "geology", "grammar and words", "habits", "health", "hiking", "history", "home repair", "houseplants",
    "insects", "inventions", "languages", "law in daily life", "mathematics", "medicine", "memory and learning",
    "music", "nutrition", "oceans", "philosophy", "photography", "physics", "psychology", "public speaking",
    "recycling", "rivers and lakes", "robots", "sleep", "space travel", "sports", "statistics", "study skills",
    "time management", "trains and planes", "travel", "trees", "water", "weather", "woodworking", "writing",
)  # fmt: skip
LEVELS = Levels(
    scenario="""You invent topics that people ask a friendly teacher about. Answer in JSON with kind (in one to four
words) and title (in three to ten words). The title names one clear topic of common knowledge.""",
    description="""You describe what somebody wants to ask a friendly teacher. Answer in JSON with summary (one or two
sentences on what the person wants to know), customer_goal (one sentence on why) and complication (what makes it hard to
understand, in one short sentence; empty if nothing does).""",
    kinds=("how it works", "why it is so", "how to do it", "advice", "comparison", "where it comes from"),
)
SYSTEM = """You write a spoken conversation between somebody and a wise and friendly teacher, one exchange at a time.
Answer in JSON with question and answer.
- Both are said aloud: everyday words, whole sentences, no lists, headings, brackets, quotation marks or symbols.
- The answer is correct, clear and engaging, and says nothing that was said before.
- No telephone numbers, e-mail addresses or web sites."""


@dataclass(kw_only=True, frozen=True)
class Exchange:
    """A question of the user and the agent's answer, as EXCHANGE_SCHEMA asks for them."""

    question: str
    answer: str


@dataclass(kw_only=True, frozen=True)
class AssistantPlan:
    """What is drawn for one script before the model writes it."""

    name: str
    split: str
    topic: Scenario
    kinds: tuple[str, ...]
    """The kinds of the second question and of those after it."""
    barges_in: bool
    limit: float
    """Longest estimated length in seconds."""

    @property
    def changes_topic(self) -> bool:
        """True if a question leaves the topic."""
        return "topic_change" in self.kinds

    @property
    def answer_words(self) -> int:
        """How many words an answer may have, so that all answers fit into the limit."""
        rounds = len(self.kinds) + 1
        words = int(self.limit * WORDS_PER_SECOND / rounds) - 12
        return max(MIN_ANSWER_WORDS + 5, min(MAX_ANSWER_WORDS, words))


def domain_texts() -> dict[str, str]:
    """How the prompts describe each subject, by its name in ids."""
    return {subject.replace(" ", "_"): f"Subject: {subject}" for subject in SUBJECTS}


def draw_plan(name: str, rng: Random, split: str, topic: Scenario, limit: float | None) -> AssistantPlan:
    """The kinds of questions of one script, and whether the second one cuts in."""
    most = LONGEST if limit is None else limit
    rounds = max(2, min(rng.choice((2, 3, 3, 4)), int(most / ROUND_SECONDS)))
    later = [kind for kind in KINDS if kind != "topic_change"]
    kinds = [rng.choice(list(KINDS))]
    kinds += rng.sample([kind for kind in later if kind != kinds[0]], rounds - 2)
    barges_in = rng.random() < BARGES_IN
    return AssistantPlan(name=name, split=split, topic=topic, kinds=tuple(kinds), barges_in=barges_in, limit=most)


def write_assistant(client: Client, plan: AssistantPlan, other: Scenario | None, draw: str, rng: Random) -> Script:
    """The script of a plan; `other` is what a change of topic leads to, and `draw` makes the seeds of this attempt.

    Raises: NoAnswer if no answer of the model keeps the rules.
    """
    turns: list[Turn] = []
    for number in range(len(plan.kinds) + 1):
        question = Question(
            name="exchange",
            system=SYSTEM,
            user=_task(plan, other, turns, number),
            schema=EXCHANGE_SCHEMA,
            seed=question_seed("exchange", draw, number),
            read=plain_record(Exchange),
            check=partial(exchange_problems, plan=plan, before=tuple(turns), number=number),
        )
        turns += _turns(client.ask(question), plan, number)
    if (seconds := estimated_seconds(turns)) > plan.limit:
        raise NoAnswer("too long", f"{seconds:.0f} s > {plan.limit:g} s")
    topics = [plan.topic.id] + ([other.id] if other else [])
    return Script(
        id=plan.name,
        source="assistant",
        split=plan.split,
        scenario=f"assistant/{plan.topic.id}",
        role_prompt=PROMPT,
        turns=tuple(with_backchannels(turns, rng)),
        provenance={
            "generator": "assistant model 1",
            **plan.topic.record(),
            "topics": topics,
            "behaviours": [*plan.kinds, *["barge_in"] * plan.barges_in],
        },
    )


def _task(plan: AssistantPlan, other: Scenario | None, turns: Sequence[Turn], number: int) -> str:
    """What the model is asked for exchange `number`, after these turns."""
    lines = [f"Topic: {plan.topic.title}. {plan.topic.summary}", f"Why it is asked: {plan.topic.goal}"]
    if number:
        lines += ["So far:", *(f"{'Teacher' if t.speaker == 'agent' else 'Person'}: {t.text}" for t in turns)]
        kind = KINDS[plan.kinds[number - 1]].format(other=f"{other.title}. {other.summary}" if other else "")
        cut = " The question cuts into the last answer, and begins like an interruption." * _cuts_in(plan, number)
        lines.append(f"Write the next exchange. The person {kind}.{cut}")
    else:
        lines.append("Write the first exchange.")
    return "\n".join([*lines, f"The answer has at most {plan.answer_words - 5} words."])


def _cuts_in(plan: AssistantPlan, number: int) -> bool:
    return number == 1 and plan.barges_in


def _turns(exchange: Exchange, plan: AssistantPlan, number: int) -> list[Turn]:
    return [
        Turn(speaker="user", text=exchange.question, kind="barge_in" if _cuts_in(plan, number) else "normal"),
        Turn(speaker="agent", text=exchange.answer),
    ]


def exchange_problems(exchange: Exchange, plan: AssistantPlan, before: Sequence[Turn], number: int) -> list[str]:
    """What is wrong with exchange `number` after the turns `before`, in words for the model; [] for a good one."""
    found = turn_problems([*before, *_turns(exchange, plan, number)])
    asked, answered = len(exchange.question.split()), len(exchange.answer.split())
    if not 2 <= asked <= MAX_QUESTION_WORDS:
        found.append(f"the question has {asked} words: write 2 to {MAX_QUESTION_WORDS}")
    if not MIN_ANSWER_WORDS <= answered <= plan.answer_words:
        found.append(f"the answer has {answered} words: write {MIN_ANSWER_WORDS} to {plan.answer_words}")
    return found
