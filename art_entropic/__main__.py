"""``python -m art_entropic`` is ``art-entropic``."""

from __future__ import annotations

import sys

from art_entropic.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
