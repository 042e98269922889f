"""`python -m vlm`."""

from vlm.cli import main

main()
