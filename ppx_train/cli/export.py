"""`ppx-export --checkpoint RUN --out DIR ...`: a checkpoint becomes a folder that can be run, and uploaded as it is."""

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.arguments import Parser, add_version
from ppx_train import __version__
from ppx_train.cli.old_forms import refuse_old_export
from ppx_train.cli.run import run
from ppx_train.export.export_settings import DTYPES, LAYOUTS, ExportSettings


def main() -> None:
    """The entry point of the command."""
    run(command)


def parser() -> Parser:
    """The parser of the command's words."""
    parser = Parser(
        prog="ppx-export", description="Makes a folder of a checkpoint that can be run, and uploaded as it is."
    )
    add, default = parser.add_argument, ExportSettings
    add(
        "--checkpoint", type=Path, required=True, metavar="RUN",
        help="run directory (its newest checkpoint), or one RUN/checkpoints/step-... folder",
    )  # fmt: skip
    add(
        "--out", type=Path, required=True, metavar="DIR",
        help="folder to make; must not exist, unless an upload of it is resumed",
    )  # fmt: skip
    add(
        "--layout", choices=LAYOUTS, default=default.layout,
        help="kyutai: 8 depth steps, loads in the stock moshi package; nvidia: 16 depth steps, public file names; "
        "lora: the adapter alone, in Kyutai's LoRA format. The other two merge adapters",
    )  # fmt: skip
    add("--dtype", choices=DTYPES, default=default.dtype, help="type of the weights")
    add("--ema", action="store_true", help="take the moving average of the weights, of a run with optim.ema_decay")
    add(
        "--include-voices", dest="voices", metavar="heldout|DIR|none", default=default.voices,
        help="synthetic voices of the held-out dialogues; or a folder of voices made by ppx-voice; or none",
    )  # fmt: skip
    add("--max-voices", type=int, metavar="N", default=default.max_voices, help="at most N held-out voices")
    add("--data", type=Path, metavar="DIR", help="the run's shards (default: where the run found them)")
    add("--licence", metavar="ID", help="licence in the header of the model card (default: that of the start weights)")
    add(
        "--base", metavar="ORG/NAME",
        help="for a run of adapters: its start weights, or a path to them; layout lora names this place to others "
        "(default: where the run found them)",
    )  # fmt: skip
    add(
        "--push", metavar="ORG/NAME",
        help="upload the folder to this model repository of the hub, which must be new or hold the same files "
        "(default: no upload)",
    )  # fmt: skip
    add("--public", action="store_true", help="with --push: everybody may see the repository (default: it is private)")
    add_version(parser, __version__)
    return parser


def command(words: Sequence[str]) -> None:
    """Exports, uploads if asked to, and prints what to do with the folder."""
    refuse_old_export(words)
    given = vars(parser().parse_args(words))
    checkpoint, out, public = given.pop("checkpoint"), given.pop("out"), given.pop("public")
    settings = ExportSettings(**given)
    from ppx_train.export.folder import export_checkpoint
    from ppx_train.export.hub import export_is_finished, push

    if not export_is_finished(checkpoint, out, settings, public=public):
        export_checkpoint(checkpoint, out, settings)
    print(f"{out}: talk to it with ppx-chat --model {out} --input-wav question.wav --output-wav answer.wav")
    if settings.push is not None:
        print(push(out, settings.push, public=public))
