"""``python -m safequant``: the command line."""

from __future__ import annotations

import sys

from . import _native


def main() -> int:
    """Runs the command line of this process, and gives its exit status."""
    return _native.main(["safequant", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
