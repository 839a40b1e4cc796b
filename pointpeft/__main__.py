"""`python -m pointpeft` is the console script."""

import sys

from pointpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
