"""`python -P -m orch_cli` is the `orch` command."""

from orch_cli.main import main

main(prog_name="orch")
