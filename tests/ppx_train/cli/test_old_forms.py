"""Command lines of the former ppx-export are refused with the line that does the same now."""

import shlex
from pathlib import Path

import pytest

from ppx_train.cli import export, voice
from ppx_train.cli.old_forms import refuse_old_export
from ppx_train.export.export_settings import ExportSettings
from tests.refusals import refused

FORMS = [
    ("checkpoint=RUN out=DIR", "ppx-export --checkpoint RUN --out DIR"),
    (
        "checkpoint=a out=b layout=nvidia dtype=float32",
        "ppx-export --checkpoint a --out b --layout nvidia --dtype fp32",
    ),
    ("checkpoint=a out=b dtype=bfloat16", "ppx-export --checkpoint a --out b --dtype bf16"),
    (
        "checkpoint=a out=b push_to_hub=o/n public=true",
        "ppx-export --checkpoint a --out b --push o/n --public",
    ),
    ("checkpoint=a out=b push_to_hub=o/n public=false", "ppx-export --checkpoint a --out b --push o/n"),
    (
        "checkpoint=a out=b voices=none max_voices=2 data=d licence=mit base=o/b",
        "ppx-export --checkpoint a --out b --include-voices none --max-voices 2 --data d --licence mit --base o/b",
    ),
    ("'checkpoint=my run' out=b", "ppx-export --checkpoint 'my run' --out b"),
    ("--checkpoint a out=b", "ppx-export --checkpoint a --out b"),
    (
        "voice in=a.pt model=o/m out=a.safetensors revision=v2 licence=mit consent='she agreed'",
        "ppx-voice convert a.pt --model o/m --out a.safetensors --revision v2 --licence mit --consent 'she agreed'",
    ),
    ("voice", "ppx-voice convert"),
    ("voice --help", "ppx-voice convert --help"),
]


@pytest.mark.parametrize(("old", "new"), FORMS)
def test_an_old_command_line_gets_the_new_one(old: str, new: str) -> None:
    with refused("old-form", f"write `{new}`"):
        export.command(shlex.split(old))


@pytest.mark.parametrize("new", [new for _, new in FORMS if "--out" in new])
def test_the_new_line_is_one_that_its_command_understands(new: str) -> None:
    tool, *words = shlex.split(new)
    parser = export.parser() if tool == "ppx-export" else voice.parser()
    given = vars(parser.parse_args(words))
    assert str(given["out"]) in words
    if tool == "ppx-export":
        ExportSettings(**{key: given[key] for key in given.keys() - {"checkpoint", "out", "public"}}).check()


def test_an_unknown_key_is_written_as_the_option_that_it_would_be() -> None:
    with refused("old-form", "`ppx-export --chekpoint a`"):
        export.command(["chekpoint=a"])


def test_values_with_an_equals_sign_are_no_old_form() -> None:
    refuse_old_export(["--checkpoint", "a", "--out", "layout=best", "--licence", "x=y"])
    assert str(export.parser().parse_args(["--checkpoint", "a", "--out", "b=c"]).out) == str(Path("b=c"))
