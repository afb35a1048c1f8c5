"""What `ppx-data VERB --help` says: every option is explained, and its default is named once."""

from importlib import import_module

import pytest

from data_pipelines import verbs
from data_pipelines.arguments import Parser


def shown(parser: Parser) -> str:
    return " ".join(parser.format_help().split())


def test_help_names_each_default_once() -> None:
    parser = Parser()
    parser.add_argument("--num", type=int, default=0, help="how many")
    parser.add_argument("--share", type=float, default=150.0, help="in %% of all")
    parser.add_argument("--word", default="a", help="which (default: a)")
    parser.add_argument("--quiet", action="store_true", help="say nothing")
    parser.add_argument_group("more").add_argument("--kind", default="50 %", help="inside a group")
    for part in ("how many (default: 0)", "in % of all (default: 150)", "which (default: a)", "group (default: 50 %)"):
        assert shown(parser).count(part) == 1, part
    assert "say nothing (default" not in shown(parser)


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_every_option_of_every_verb_is_explained(verb: str) -> None:
    parser = Parser(add_help=False)
    import_module(verbs.VERBS[verb][0]).add_arguments(parser)
    assert parser.options and shown(parser)
    assert not [name for name, action in parser.options.items() if not action.help]
