"""`ppx-data VERB ...`: from text and recordings to shards. The verbs are listed in `data_pipelines.verbs`."""

from collections.abc import Sequence

from ppx_train import __version__
from ppx_train.cli.run import run


def main() -> None:
    """The entry point of the command."""
    run(command)


def command(words: Sequence[str]) -> int | None:
    """Runs one verb; returns its exit code."""
    from data_pipelines import verbs

    return verbs.main(list(words), version=__version__)
