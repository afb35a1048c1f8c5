"""`ppx-voice convert VOICE.pt --model MODEL --out FILE`: pickled voices of PersonaPlex become voice files."""

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.arguments import Parser, add_version
from ppx_train import __version__
from ppx_train.cli.run import run


def main() -> None:
    """The entry point of the command."""
    run(command)


def parser() -> Parser:
    """The parser of the command's words."""
    parser = Parser(prog="ppx-voice", description="Works on the voices that a model can be prompted with.")
    add_version(parser, __version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    about = "Converts pickled voices of PersonaPlex to voice files that any model with the same codec takes."
    convert = verbs.add_parser(
        "convert", help="convert pickled voices of PersonaPlex to voice files", description=about
    )
    add = convert.add_argument
    add("voice", type=Path, metavar="VOICE.pt", help="pickled voice of a PersonaPlex model, or a folder of them")
    add(
        "--model", required=True, metavar="DIR",
        help="the model that the voice was made with: a folder or a hub repository, e.g. nvidia/personaplex-7b-v1",
    )  # fmt: skip
    add("--revision", metavar="REV", help="revision of the hub repository (default: its main branch)")
    add(
        "--out", type=Path, required=True, metavar="FILE",
        help="voice file to write, or a folder if the voices are one; nothing is replaced",
    )  # fmt: skip
    add("--licence", metavar="TEXT", help="licence of the voice (default: that of its model)")
    add("--consent", metavar="TEXT", help="why the speaker may be imitated (default: not stated)")
    return parser


def command(words: Sequence[str]) -> None:
    """Converts, and prints a line for each voice."""
    args = parser().parse_args(words)
    from ppx_train.export.convert_voice import convert

    for voice in convert(args.voice, args.model, args.out, args.revision, args.licence, args.consent):
        how = "bit by bit" if voice.exact else "up to rounding"
        print(f"{voice.path}: {voice.frames} frames, which give the embeddings of {voice.source.name} {how}")
