"""Finds words that the prose of this project does not use, and class names that stand for two things.

python scripts/check_words.py    prints each place and exits with 1 if there is one (the words to use: CONTRIBUTING.md)
"""

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("model", "data_pipelines", "ppx_train")
FORBIDDEN = re.compile(r"\b([Tt]old|[Rr]eckon\w*|[Ss]o many|is none|to be had|[Mm]end(?:s|ed|ing)?|a wish that)\b")
ANSWERS = re.compile(r"^\s*(?:and )?answers (?:the|a|an|what|whether|how|\(|`|None|True|False)", re.IGNORECASE)
"""A docstring that lets a function "answer" something instead of returning it."""


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, text) of the comments, docstrings and other strings of a Python file, or the lines of another."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        # The strings of llm_*.py are prompts, whose words are data. Python 3.12 splits an f-string into parts; older
        # versions have one token for all of it.
        is_text = tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE") and not path.name.startswith("llm_")
        if token.type == tokenize.COMMENT or is_text:
            for n, line in enumerate(token.string.splitlines()):
                yield token.start[0] + n, line.lstrip(" \"'#")


def files() -> list[Path]:
    """Returns every file whose prose is checked: the packages, scripts, documentation and recipes."""
    found = [path for folder in (*PACKAGES, "scripts") for path in (ROOT / folder).rglob("*.py")]
    found += [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("recipes/*.yaml"),
        *ROOT.glob("configs/**/*.yaml"),
    ]
    return sorted(path for path in found if path != Path(__file__).resolve() and path.name != "CONTRIBUTING.md")


def classes() -> dict[str, list[str]]:
    """Returns where each class of the packages and scripts is defined, by name."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in (path for folder in (*PACKAGES, "scripts") for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return places


def main() -> int:
    """Prints what is wrong and returns the exit code."""
    wrong = []
    for path in files():
        for line, text in prose(path):
            found = FORBIDDEN.search(text) or (ANSWERS.search(text) if path.suffix == ".py" else None)
            if found:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {found[0].strip()!r} in {text.strip()[:80]!r}")
    for name, places in classes().items():
        if len(places) > 1:
            wrong.append(f"class {name} stands for several things: {', '.join(places)}")
    print("\n".join(wrong) or f"words: {len(files())} files, no forbidden word, no class name twice")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
