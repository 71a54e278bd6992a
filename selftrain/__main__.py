"""``python -m selftrain``, the same as the command ``selftrain``."""

import sys

from selftrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
