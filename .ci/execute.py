"""Run notebooks and store their outputs, the same bytes each time on one machine.

    python .ci/execute.py notebooks/05_focal_loss.ipynb ...

No timings are recorded and the metadata is the same for all: a second run of an unchanged notebook leaves an
empty diff. A cell that raises stops the run, and the file on disk stays as it was.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    keep = notebook.metadata.get("focal_tutorial")  # what the notebook needs, see conftest.py
    NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    if keep is not None:
        notebook.metadata["focal_tutorial"] = keep
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def main() -> None:
    if not sys.argv[1:]:
        sys.exit(__doc__)
    for name in sys.argv[1:]:
        start = time.perf_counter()
        execute(Path(name))
        print(f"{name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
