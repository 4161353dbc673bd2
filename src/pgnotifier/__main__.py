"""`python -m pgnotifier`."""

import sys

from .cli.main import main

sys.exit(main())
