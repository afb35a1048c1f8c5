"""Capitals that rules restore in text without case."""

from data_pipelines.text.cases import ruled


def test_rules_know_places_days_and_the_pronoun() -> None:
    words = "i think i'll see new york's mets on monday in san francisco or may be in a new car from t.v.'s".split()
    expected = "I think I'll see New York's mets on Monday in San Francisco or may be in a new car from T.V.'s".split()
    assert ruled(words) == expected
