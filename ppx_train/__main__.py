"""`python -m ppx_train` is `ppx-train`."""

from ppx_train.cli.train import main

main()
