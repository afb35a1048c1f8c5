"""What the commands share that take the settings of a run beside options of their own."""

import argparse
from typing import Any

from data_pipelines.arguments import Parser


def settings_parser(verb: str, options: str, about: str) -> Parser:
    """Returns the parser of `ppx-train VERB recipe=NAME [key=value ...] OPTIONS`, to which the options are added."""
    from ppx_train.help import setting_words

    parser = Parser(
        prog=f"ppx-train {verb}",
        usage=f"ppx-train {verb} recipe=NAME [key=value ...] {options}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words: Any = parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, as for ppx-train")
    words.completer = lambda **_: setting_words()
    return parser
