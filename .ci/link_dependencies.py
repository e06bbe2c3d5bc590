"""Fill a new environment with what the wheel says it needs, by links: an empty install without the 5 GB.

    python .ci/link_dependencies.py EMPTY/lib/python3.11/site-packages

A package that the code imports and the metadata forgets is then missing, as it would be for a user.
"""

from __future__ import annotations

import sys
from pathlib import Path

from freeze import HERE, closure


def main() -> None:
    target = Path(sys.argv[1])
    for dist in closure(HERE, extras=()).values():
        for top in {file.parts[0] for file in dist.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            source, link = Path(str(dist.locate_file(top))), target / top
            if source.exists() and not link.exists():
                link.symlink_to(source)


if __name__ == "__main__":
    main()
