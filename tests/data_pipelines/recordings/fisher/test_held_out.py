"""The held-out split: no agent's voice is in both splits."""

import random

from data_pipelines.recordings.fisher.held_out import CallSides, in_bucket, plan_split


def test_no_speaker_is_an_agent_in_both_splits() -> None:
    rng = random.Random(0)
    keys = [f"fisher/{n}" for n in range(400)]
    calls = [
        CallSides(call=f"{n:05d}", speakers=(p := (rng.choice(keys), rng.choice(keys))), agents=p) for n in range(2000)
    ]
    plan = plan_split(calls)
    agents: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for call in calls:
        agents[plan.splits[call.call]] |= {s for s in call.agents if plan.may_be_agent(call.call, s)}
    assert not plan.note and agents["heldout"] and not agents["train"] & agents["heldout"]
    assert all(plan.splits[c.call] == "heldout" for c in calls if all(map(in_bucket, c.speakers)))


def test_a_tiny_corpus_has_a_call_in_each_split() -> None:
    calls = [CallSides(call=f"{n:05d}", speakers=(p := ("w", "r" if n else "p")), agents=p) for n in range(6)]
    plan = plan_split(calls)
    assert plan.splits["00000"] == "heldout" and set(plan.splits.values()) == {"train", "heldout"} and plan.note
    assert plan.may_be_agent("00000", "p") and not plan.may_be_agent("00000", "w")
    assert plan_split(calls[:1]).splits == {"00000": "train"}
