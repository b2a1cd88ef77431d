"""`python -m cli` is the `hookwright` command."""

from cli.main import main

main()
