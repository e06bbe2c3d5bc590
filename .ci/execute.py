"""Run notebooks and store their outputs, the same bytes each time on one machine.

    python .ci/execute.py notebooks/05_focal_loss.ipynb ...
    python .ci/execute.py --times notebooks/*.ipynb     and write book/results/notebook_times.json

No timings are recorded in the notebook and the metadata is the same for all: a second run of an unchanged notebook
leaves an empty diff. A cell that raises stops the run, and the file on disk stays as it was.
"""

from __future__ import annotations

import base64
import io
import sys
import time
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient
from PIL import Image

from focal_tutorial.results import save_result

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# Run after the last cell and not kept: the largest memory of the notebook's own process, in MiB on Linux.
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"

# Pictures above this size, in bytes, are photographs: stored in 256 colours they look the same at a third of it.
LARGE_PICTURE = 50_000


def shrink_pictures(notebook: nbformat.NotebookNode) -> None:
    """Store every large PNG output with a palette of 256 colours."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            png = base64.b64decode(output.get("data", {}).get("image/png", ""))
            if len(png) <= LARGE_PICTURE:
                continue
            picture = Image.open(io.BytesIO(png))
            if picture.mode == "P" or picture.convert("RGBA").getextrema()[3][0] < 255:
                continue  # has its palette, or lets the page shine through
            small = io.BytesIO()
            picture.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(small, "PNG", optimize=True)
            output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode()


def execute(path: Path) -> dict[str, int]:
    """Run, store, and return the seconds and the peak memory in MiB."""
    notebook = nbformat.read(path, as_version=4)
    keep = notebook.metadata.get("focal_tutorial")  # what the notebook needs, see conftest.py
    notebook.cells.append(nbformat.v4.new_code_cell(PEAK))
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # prints that arrive in pieces are one output on the page
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    measured = {"seconds": round(time.perf_counter() - start), "mib": int(notebook.cells.pop().outputs[0].text)}
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    if keep is not None:
        notebook.metadata["focal_tutorial"] = keep
    shrink_pictures(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return measured


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:] if name != "--times"]
    if not paths:
        sys.exit(__doc__)
    measured = {}
    for path in paths:
        measured[path.stem] = execute(path)
        print(f"{path}: {measured[path.stem]['seconds']} s, {measured[path.stem]['mib']} MiB", flush=True)
    if "--times" in sys.argv:
        payload = {"config": {"notebooks": [*measured]}, "runs": [{"seed": 0, "metrics": measured}]}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        seconds = sum(one["seconds"] for one in measured.values())
        name = "notebook_times" if device == "cpu" else "notebook_times_gpu"
        print(save_result(name, payload, wall_seconds=seconds, device=device))


if __name__ == "__main__":
    main()
