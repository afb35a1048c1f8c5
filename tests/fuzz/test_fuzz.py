"""Damaged files of every format that comes from elsewhere end in one line, are skipped, or are read.

PPX_FUZZ=10000 pytest tests/fuzz                   more cases of each format than the 300 of the suite
PPX_FUZZ_SEED=2 pytest tests/fuzz                  other cases
PPX_FUZZ_CASE=17 pytest tests/fuzz -k manifest     one case again
"""

from collections.abc import Callable

import pytest

from tests.fuzz.conftest import KIND
from tests.fuzz.engine import Target, outcome, run
from tests.fuzz.targets import targets

NAMES = (
    "shard-in-place", "shard-tar", "index", "index-header", "manifest", "checkpoint", "saved-config", "recipe",
    "recipe-values", "personaplex-json", "config-json", "weights", "scripts", "meta", "roles", "gates", "llm-body",
    "transcript-json", "transcript-srt", "transcript-fisher", "sphere", "sound", "voice", "voice-pickled",
    "voices-yaml", "voices-values", "codec", "tokenizer",
)  # fmt: skip


@pytest.fixture(scope="module")
def by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """The targets, made once."""
    return {target.name: target for target in targets(tmp_path_factory.mktemp("fuzz"))}


def test_every_target_is_run(by_name: dict[str, Target]) -> None:
    assert tuple(by_name) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_one_line(
    name: str, by_name: dict[str, Target], record_property: Callable[[str, object], None]
) -> None:
    found, failures = run(by_name[name])
    total = sum(found.values()) + len(failures)
    record_property(KIND, (name, total, found["taken"], found["skipped"], found["refused"], len(failures)))
    shown = "\n".join(failures[:10])
    assert not failures, f"{name}: {len(failures)} of {total} cases\n{shown}"


@pytest.mark.parametrize("name", NAMES)
def test_whole_files_are_taken(name: str, by_name: dict[str, Target]) -> None:
    target = by_name[name]
    assert [outcome(target, data) for data in target.files] == ["taken"] * len(target.files)
