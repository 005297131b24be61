"""`python -m limelight.cli`, the same as `limelight`."""

from limelight.cli import main

main()
