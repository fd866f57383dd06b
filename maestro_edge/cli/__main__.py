"""`python -m maestro_edge.cli`."""

from maestro_edge.cli import main

main()
