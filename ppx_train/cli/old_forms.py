"""The words that ppx-export took before it had --flags: each command line of that form is answered with the new one."""

import shlex
from collections.abc import Sequence

from model.errors import UserError

FLAGS = {"max_voices": "--max-voices", "voices": "--include-voices", "push_to_hub": "--push"}
VALUES = {"bfloat16": "bf16", "float32": "fp32"}


def refuse_old_export(words: Sequence[str]) -> None:
    """Raises UserError with code "old-form" and the new command line if one of the words is `key=value` or `voice`."""
    is_voice = words[:1] == ["voice"]
    keys = [word for before, word in zip(["", *words], words, strict=False) if _is_pair(word) and before[:2] != "--"]
    if not keys and not is_voice:
        return
    if is_voice:
        source = [word.partition("=")[2] for word in words if word.startswith("in=")]
        rest = [word for word in words[1:] if not word.startswith("in=")]
        new = ["ppx-voice", "convert", *source, *_flags(rest)]
    else:
        new = ["ppx-export", *_flags(words)]
    raise UserError(f"ppx-export takes no key=value any more: write `{shlex.join(new)}`", code="old-form")


def _flags(words: Sequence[str]) -> list[str]:
    """The words with each key=value as a flag and its value."""
    new: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        if not _is_pair(word):
            new.append(word)
        elif key == "public":
            new += ["--public"] if value == "true" else []
        else:
            new += [FLAGS.get(key, f"--{key}"), VALUES.get(value, value) if key == "dtype" else value]
    return new


def _is_pair(word: str) -> bool:
    return word.partition("=")[0].isidentifier() and "=" in word
