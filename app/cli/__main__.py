"""`python -m app.cli`: the `gklbench` command of this interpreter."""

from app.cli.main import main

main()
