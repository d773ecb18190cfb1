"""``python -m inferspan.cli``: the command line where the script ``inferspan`` is not on the path."""

import sys

from inferspan.cli import main

if __name__ == "__main__":
    sys.exit(main())
