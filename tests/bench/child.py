"""One measure of one reader, in a process of its own: JSON arguments in, JSON out."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version

from .measures import MEASURES
from .process import reference
from .readers import EVERY


def main(measure: str, dsn: str, reader: str, arguments: str) -> None:
    speed = reference()
    result = MEASURES[measure](dsn, reader, **json.loads(arguments))
    result["versions"] = {name: version(name) for name in EVERY[reader].packages}
    result["reference_us"] = speed
    print(json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
