"""`ppx-data synth`: the same bytes every time, split by scenario, within the length asked for; options are checked."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.records.schema import Script, read_scripts
from data_pipelines.records.split import members
from data_pipelines.verbs import main
from data_pipelines.writer.service import request_of, scenarios
from data_pipelines.writer.synth import write_scripts
from data_pipelines.writer.wording import estimated_seconds
from model.errors import Code
from tests.data_pipelines.writer.figures import figures_of
from tests.refusals import refused

# Golden: the first 200 scripts of seed 0, made by this code; change them only together with the tables or templates.
GOLDEN = {
    "service": "d3f6ac085b686a83a09d9e24b93dc2e09a0d7393072793de3424489411cceea1",
    "assistant": "113db5d7709ad23d1f17b730bb841216340b92da04ffabe4c5302f2fded95265",
}


@pytest.mark.parametrize("source", sorted(GOLDEN))
def test_the_first_200_scripts_match_the_golden_hash(source: str) -> None:
    lines = "".join(script.to_json() + "\n" for script in write_scripts(source, num=200, seed=0))
    assert hashlib.sha256(lines.encode()).hexdigest() == GOLDEN[source]


@pytest.mark.parametrize("source", sorted(GOLDEN))
def test_fewer_scripts_are_a_prefix_of_more(source: str) -> None:
    assert write_scripts(source, num=5, seed=3) == write_scripts(source, num=12, seed=3)[:5]


def test_another_seed_gives_other_scripts() -> None:
    first, second = (write_scripts("service", num=20, seed=seed) for seed in (1, 2))
    assert not {script.id for script in first} & {script.id for script in second}
    assert not {script.role_prompt for script in first} & {script.role_prompt for script in second}


def test_a_script_survives_its_json(service: list[Script]) -> None:
    assert all(Script.from_json(script.to_json(), "here") == script for script in service[:50])


@pytest.mark.parametrize("source", sorted(GOLDEN))
def test_no_scenario_and_no_company_is_in_both_splits(source: str) -> None:
    sides: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for seed in (1, 2):  # Two files of different seeds must not leak into each other either.
        for script in write_scripts(source, num=300, seed=seed, heldout=0.2):
            names = {script.scenario, *script.provenance.get("topics", ())}
            if source == "service":  # The same request to another business is no new scenario.
                names.add(request_of(script.scenario.removeprefix("service/")))
            sides[script.split] |= names | {script.provenance.get("role", {}).get("company", script.scenario)}
    assert sides["train"] and sides["heldout"] and not sides["train"] & sides["heldout"]


def test_the_heldout_share_is_as_asked(service: list[Script]) -> None:
    assert 0.07 < sum(script.split == "heldout" for script in service) / len(service) < 0.13


@pytest.mark.parametrize("num", [2, 3, 8])
def test_a_small_set_has_both_splits(num: int) -> None:
    assert {script.split for script in write_scripts("service", num=num, seed=5, heldout=0.01)} == {"train", "heldout"}


@pytest.mark.parametrize(("heldout", "split"), [(0.0, "train"), (1.0, "heldout")])
def test_all_or_nothing_can_be_held_out(heldout: float, split: str) -> None:
    assert {script.split for script in write_scripts("assistant", num=9, seed=5, heldout=heldout)} == {split}


def test_a_larger_heldout_share_only_adds_scenarios() -> None:
    small, large = (set(members(scenarios(), share, "heldout")) for share in (0.1, 0.3))
    assert small < large < set(scenarios())


@pytest.mark.parametrize(("source", "limit"), [("service", 20.0), ("service", 30.0), ("assistant", 20.0)])
def test_scripts_keep_to_the_longest_length_asked_for(source: str, limit: float) -> None:
    scripts = write_scripts(source, num=60, seed=2, max_seconds=limit)
    lengths = [estimated_seconds(script.turns) for script in scripts]
    assert max(lengths) <= limit and sum(lengths) / len(lengths) > 0.8 * limit
    assert len({script.scenario for script in scripts}) > 15


def test_the_share_of_leaks_is_that_of_a_plain_count() -> None:
    scripts = write_scripts("service", num=1000, seed=8, heldout=0.3)

    def runs(script: Script) -> set[tuple[str, ...]]:
        found = set()
        for turn in script.turns:
            words = re.findall(r"[a-z0-9$]+(?:['.:,-][a-z0-9]+)*", turn.text.lower())
            found |= {tuple(words[n : n + 13]) for n in range(len(words) - 12)}
        return found

    train = {run for script in scripts if script.split == "train" for run in runs(script)}
    shares = [bool(runs(script) & train) for script in scripts if script.split == "heldout"]
    assert 0 < sum(shares) < len(shares)
    share = figures_of(scripts)["heldout_sharing_13_words_with_train"]
    assert share == pytest.approx(sum(shares) / len(shares), abs=1e-4)


def test_the_verb_writes_once_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "scripts.jsonl"
    words = ["synth", "service", "--num", "6", "--seed", "4", "--out", str(out)]
    main(words)
    first = out.read_bytes()
    printed = capsys.readouterr().out
    assert "6 scripts written" in printed and "distinct-1/2/3" in printed and "fact coverage" in printed
    assert len(read_scripts(out)) == 6 and {path.name for path in out.parent.iterdir()} == {
        "scripts.jsonl",
        "scripts.stats.json",
    }
    main(words)
    assert "unchanged" in capsys.readouterr().out and out.read_bytes() == first
    with refused("other-settings", out, "was made with num 6, not 7", "give another --out"):
        main([*words[:3], "7", *words[4:]])
    assert out.read_bytes() == first
    out.write_bytes(first[:-1])
    with refused("checksum", out):
        main(words)


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        ({"num": 0}, "bad-value", "--num 0"),
        ({"heldout": 1.5}, "bad-value", "--heldout 1.5"),
        ({"max_seconds": 5.0}, "bad-value", "--max-seconds 5.0: a whole dialogue needs at least 15 s"),
        ({"max_seconds": float("nan")}, "bad-value", "--max-seconds nan"),
        ({"max_seconds": float("inf")}, "bad-value", "--max-seconds inf"),
        ({"max_seconds": 19.0}, "bad-value", "--max-seconds 19: a service script needs at least 20 s"),
        ({"source": "poem"}, "unknown-name", "source 'poem': choose one of assistant, service"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], code: Code, named: str) -> None:
    arguments: dict[str, Any] = {"source": "service", "num": 2, "seed": 0} | options
    with refused(code, named):
        write_scripts(arguments.pop("source"), **arguments)


@pytest.mark.parametrize(
    "words", [["--scenarios", "5"], ["--skip-unanswered"], ["--llm-url", "http://x"], ["--api-key-env", "X"]]
)
def test_options_of_another_writer_are_refused(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    with refused("bad-combination", f"{words[0]} has an effect with --writer llm only"):
        main(["synth", "service", "--num", "2", "--out", str(out), *words])
    assert not out.exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("cannot-write", tmp_path / "file"):
        main(["synth", "assistant", "--num", "2", "--out", str(tmp_path / "file" / "scripts.jsonl")])
