"""Foreign text on a terminal and in a card."""

import io

import pytest
from markdown_it import MarkdownIt

from model.text_safety import VisibleOutput, code, markdown, plain

HOSTILE = (
    "a | b | c",
    "x\n\n# Licence: MIT\n",
    "<script>alert(1)</script>",
    "[free](https://evil.example/x)",
    "![x](https://evil.example/x.png)",
    "**bold** `code` ~~gone~~ _it_",
    "https://evil.example and www.evil.example and me@evil.example",
    "- item",
    "1. item",
    "> quote",
    "&lt;b&gt;",
    "\\| \\",
    "---",
    "\x1b[2Jx\x07\u202ey",
)
NAMES = ("CC-BY-4.0", "kokoro/af_heart", "CC BY-SA 3.0 (core sounds, A. Smith) and BSD-2-Clause", "espeak-ng 1.52.0")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_one_cell_of_a_table_that_shows_it(text: str) -> None:
    """Another program's parser of Markdown is the truth: the cell holds text and nothing else."""
    rendered = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .parse(f"| a | b |\n|---|---|\n| {markdown(text)} | 1 |\n")
    )
    cells = [token for token in rendered if token.type == "inline"]
    assert len(cells) == 4, [token.content for token in cells]
    children = cells[2].children or []
    assert {child.type for child in children} <= {"text", "text_special"}, children
    assert "".join(child.content for child in children) == plain(text)
    alone = MarkdownIt("commonmark").parse(markdown(text))
    assert [token.type for token in alone] == ["paragraph_open", "inline", "paragraph_close"]


@pytest.mark.parametrize("text", NAMES)
def test_usual_names_stay_as_they_are(text: str) -> None:
    assert markdown(text) == plain(text) == code(text) == text


def test_control_characters_are_stripped_and_letters_of_all_scripts_stay() -> None:
    assert plain("a\x1b[31m\x00b\r\nc\u202e d\u2028e") == "a[31mb c de".replace("de", "d e")
    assert plain("Zoë Šimić 王芳 ok") == "Zoë Šimić 王芳 ok"
    out = io.StringIO()
    print("one\x1b]0;title\x07\n\ttwo \x9b2J", file=VisibleOutput(out))
    assert out.getvalue() == "one]0;title\n\ttwo 2J\n"


def test_a_code_span_cannot_be_left() -> None:
    assert code("a`; rm -rf | b\nc") == "a'; rm -rf / b c"
