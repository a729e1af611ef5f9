"""`python -m reconciler` is `tdie`."""

from reconciler.cli.main import run

run()
