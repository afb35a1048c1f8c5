"""How a model that is loaded here computes: the options that `ppx-chat` and `ppx-serve` have in common.

Importing it is fast, so that the commands' help is.
"""

from typing import Literal, get_args

from data_pipelines.arguments import Parser
from model.errors import UserError

Precision = Literal["fp32", "bf16", "fp16", "int8"]
"""Of the language model: the type of its weights, or 8 bits a weight in its linear maps."""
PastWindow = Literal["forget", "pin", "refresh"]
"""What becomes of the prompt in calls that outlast the window: it leaves it, stays at its beginning, or is fed anew."""
DEFAULT_PAST_WINDOW: PastWindow = "pin"
"""It keeps a role as well as `refresh`, with no pause and at less cost; see docs/serving.md."""
PRECISIONS, PAST_WINDOW = get_args(Precision), get_args(PastWindow)


def add_model_options(parser: Parser) -> None:
    """The options of both commands. None stands for their defaults."""
    add = parser.add_argument
    add("--revision", metavar="REV", help="revision of the hub repository (default: its main branch)")
    add("--device", help="where to compute: cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add("--precision", metavar="P", help=f"{', '.join(PRECISIONS)} (default: bf16 on a GPU, fp32 on a CPU)")
    add(
        "--past-window", metavar="HOW",
        help="what becomes of voice and role in calls that outlast the model's window: "
        f"{', '.join(PAST_WINDOW)} (default: {DEFAULT_PAST_WINDOW})",
    )  # fmt: skip


def check_model_options(precision: str | None, past_window: str | None) -> None:
    """Raises: UserError for a value that does not exist."""
    for name, value, allowed in (("precision", precision, PRECISIONS), ("past-window", past_window, PAST_WINDOW)):
        if value is not None and value not in allowed:
            raise UserError(f"--{name} {value}: give one of {', '.join(allowed)}", code="bad-value")
