"""`python -m bapo` is `bapo`."""

from bapo.cli import main

main()
