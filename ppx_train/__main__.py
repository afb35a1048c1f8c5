"""`python -m ppx_train` is `ppx-train`."""

from ppx_train.cli.commands import train

train()
