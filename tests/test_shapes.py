"""Shape suffixes: one letter has one meaning (docs/shapes.md), and a file that uses letters lists them at its top."""

import re

import pytest

from tests.paths import ROOT

FILES = [
    path
    for folder in ("model", "data_pipelines", "ppx_train", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
SUFFIX = re.compile(r"(?<![A-Za-z0-9_])_?[a-z][a-z0-9]*(?:_[a-z0-9]+)*_([0-9]*[A-Z][A-Za-z0-9]*)(?![A-Za-z0-9_])")
NOT_SHAPES = re.compile(r"lora_[AB]|do_[A-Z]+|fe_03_NNNNN|version_N|\w+_[A-Z][a-z]{2}\w*")
"""Names of adapters' tensors, of HTTP handlers, of files, and of C functions."""


def table(page: str) -> dict[str, str]:
    """Letter -> meaning, from the table of docs/shapes.md."""
    rows = re.findall(r"^\| ([A-Z]) \| ([^|]+?) \| [^|]+ \|$", page, re.MULTILINE)
    assert rows and len({letter for letter, _ in rows}) == len({meaning for _, meaning in rows}) == len(rows)
    return dict(rows)


TABLE = table((ROOT / "docs" / "shapes.md").read_text("utf-8"))


def legend(source: str) -> dict[str, str]:
    """Letter -> what the legend says about it, in the lines before the first import."""
    top = re.split(r"^(?:import|from) ", source, maxsplit=1, flags=re.MULTILINE)[0]
    text = ", ".join(re.findall(r"^# Shapes: (.*)$", top, re.MULTILINE))
    entries = re.findall(r"([^,(]+(?:\([^)]*\))?)(?:, |$)", text)
    assert ", ".join(entries) == text, f"not a list of letters: {text}"
    return dict(entry.split(" ", 1) for entry in entries)


def faults(source: str) -> list[str]:
    """What is wrong with the suffixes of a file and with its legend."""
    names = {match[0]: match[1] for match in SUFFIX.finditer(source) if not NOT_SHAPES.fullmatch(match[0])}
    used = {letter: name for name, suffix in sorted(names.items()) for letter in suffix if not letter.isdigit()}
    listed = legend(source)
    wrong = [f"{name}: {letter} is not in the table" for letter, name in used.items() if letter not in TABLE]
    wrong += [f"{used[letter]}: {letter} is not in the legend" for letter in sorted(used.keys() - listed.keys())]
    for letter, text in listed.items():
        if not re.fullmatch(rf"{re.escape(TABLE.get(letter, 'nothing'))}(?: .*)?", text):
            wrong.append(f"legend: {letter} {text}, but the table says {TABLE.get(letter, 'nothing')}")
    return wrong


def test_suffixes_agree_with_the_legend_and_the_legend_with_the_table() -> None:
    found = {path.relative_to(ROOT).as_posix(): faults(path.read_text("utf-8")) for path in FILES}
    assert len(found) > 100 and not {name: wrong for name, wrong in found.items() if wrong}


LEGEND = "# Shapes: B batch, K streams (17, with text), T frames\n"


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (f"{LEGEND}codes_BKT = cut(codes_BKT)[:, self.first_K1]", None),
        ("lora_A = do_GET(espeak_Synth, ZERO_ID, 'version_N')", None),
        ("codes_BKT = 1", "codes_BKT: B is not in the legend"),
        (f"import torch\n{LEGEND}codes_BKT = 1", "codes_BKT: B is not in the legend"),
        (f"{LEGEND}def f(hidden_BTD): ...", "hidden_BTD: D is not in the legend"),
        (f"{LEGEND}x.y_BY = 1", "y_BY: Y is not in the table"),
        (f"{LEGEND}y = x_BTd", "x_BTd: d is not in the table"),
        (f"{LEGEND}y_1NO = x", "y_1NO: N is not in the legend"),
        ("# Shapes: K depth steps\nloss_K = 0", "legend: K depth steps, but the table says streams"),
        ("# Shapes: Y bytes\nx = 0", "legend: Y bytes, but the table says nothing"),
    ],
)
def test_a_suffix_that_does_not_agree_is_found(source: str, fault: str | None) -> None:
    assert fault in faults(source) if fault else faults(source) == []
