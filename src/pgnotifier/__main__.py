"""`python -m pgnotifier`."""

import sys

from .cli import main

sys.exit(main())
