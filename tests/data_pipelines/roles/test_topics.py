"""Role prompts of recorded calls from the titles of their topics."""

import random

from data_pipelines.roles.topics import BARE, role_prompts, spoken_topic


def test_titles_read_inside_a_sentence() -> None:
    assert spoken_topic("Professional Sports on TV.") == "professional sports on TV"
    assert (
        spoken_topic("Hypothetical Situations. One Million Dollars to leave the US.")
        == "a hypothetical situation: one million dollars to leave the US"
    )
    assert spoken_topic("Arms Inspections in Iraq") == "arms inspections in Iraq"


def test_the_sides_of_a_call_never_share_a_prompt_and_a_seed_repeats_it() -> None:
    levels = set()
    for seed in range(60):
        a, b = role_prompts("Pets", random.Random(seed))
        assert a[0] != b[0] and (a, b) == role_prompts("Pets", random.Random(seed))
        for text, level in (a, b):
            assert (
                (text == BARE) if level == "a" else text.startswith(BARE + " Have a ") and text.endswith(" about pets.")
            )
        levels.add(a[1] + b[1])
    assert levels == {"ab", "ba", "bb"}
    assert role_prompts("", random.Random(0)) == ((BARE, "a"), (BARE, "a"))
