"""`python -m demeanor` is `demeanor`."""

from demeanor.cli import main

main()
