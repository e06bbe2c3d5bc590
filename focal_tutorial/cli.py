"""The command line: `focal-tutorial data | convert-voc | inspect | train | evaluate | predict | …`, see `--help`.

Thin: each command turns words into arguments and calls the package. Torch is imported inside the commands, so that
`--help` answers at once. Exit status: 0 done, 2 bad usage or bad input (one line on stderr), 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from focal_tutorial import __version__
from focal_tutorial.cli_experiment import app as experiment_app
from focal_tutorial.cli_export import export_command
from focal_tutorial.cli_options import parse_options, parse_size
from focal_tutorial.cli_train import train
from focal_tutorial.cli_weights import convert_weights_command
from focal_tutorial.errors import InputError
from focal_tutorial.stopping import Interruptible

if TYPE_CHECKING:
    from focal_tutorial.imbalance import ImbalanceReport

INTERRUPTED = 130  # 128 + SIGINT, as shells count

app = typer.Typer(
    name="focal-tutorial",
    help="Class imbalance in object detection, focal loss and RetinaNet: data, training, evaluation, use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Dataset(str, Enum):
    """What `data` can fetch or make."""

    bccd = "bccd"
    shapes = "shapes"


Images = Annotated[Path, typer.Option("--images", help="Folder that the annotations' file names are relative to.")]
Annotations = Annotated[Path, typer.Option("--annotations", help="COCO-format JSON with the boxes.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        typer.echo(f"focal-tutorial {__version__}")
        raise typer.Exit


@app.command()
def data(
    name: Annotated[Dataset, typer.Argument(help="bccd: blood cells, 364 photographs. shapes: synthetic.")],
    root: Annotated[
        Path | None,
        typer.Option(help="Folder for datasets; else $FOCAL_TUTORIAL_DATA, else the user's cache folder."),
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="bccd: the zip or folder at hand, in place of the network.")
    ] = None,
    num_train: Annotated[int, typer.Option(help="shapes: training images.", min=1)] = 1000,
    num_val: Annotated[int, typer.Option(help="shapes: validation images.", min=1)] = 300,
    image_size: Annotated[int, typer.Option(help="shapes: side in pixels.", min=64)] = 192,
    seed: Annotated[int, typer.Option(help="shapes: what the scenes follow from.", min=0)] = 0,
) -> None:
    """Download (bccd) or make (shapes) a dataset in COCO format, and print where it is."""
    if name is Dataset.bccd:
        from focal_tutorial.data.bccd import prepare_bccd

        paths = prepare_bccd(root, source=source)
        images = val_images = paths["images"]
    else:
        from focal_tutorial.data.shapes import make_shapes

        if source is not None:
            raise InputError("--source: only for bccd; the shapes are drawn, not fetched")
        paths = make_shapes(root, num_train=num_train, num_val=num_val, size=image_size, seed=seed)
        images, val_images = paths["train_images"], paths["val_images"]
    width = max(map(len, paths))
    for key, path in paths.items():
        typer.echo(f"{key:<{width}}  {path}")
    sets = f"--images {images} --annotations {paths['train']}"
    typer.echo(f"next: focal-tutorial inspect {images} {paths['train']}")
    typer.echo(f"      focal-tutorial train {sets} --val-images {val_images} --val-annotations {paths['val']}")


@app.command("convert-voc")
def convert_voc_command(
    annotation_dir: Annotated[Path, typer.Argument(help="Folder of Pascal VOC XML files, one an image.")],
    out_json: Annotated[Path, typer.Argument(help="COCO JSON to write.", metavar="OUT.json")],
    split: Annotated[Path | None, typer.Option(help="Text file of image names, one a line: only those.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images: sizes and names are checked.")] = None,
    first_pixel: Annotated[int, typer.Option(help="Number of the first pixel: 1 in VOC, 0 in some tools.")] = 1,
) -> None:
    """Convert Pascal VOC annotations to COCO format."""
    from focal_tutorial.data.voc import convert_voc

    if first_pixel not in (0, 1):
        raise InputError(f"--first-pixel: 0 or 1 wanted, got {first_pixel}")
    problems = convert_voc(annotation_dir, out_json, split_file=split, image_dir=images, first_pixel=first_pixel)
    content = json.loads(out_json.read_text(encoding="utf-8"))
    for problem in problems:
        typer.echo(str(problem), err=True)
    counts = [f"{len(content[key]):,} {key}" for key in ("images", "annotations", "categories")]
    typer.echo(f"{out_json}: {', '.join(counts)}; {len(problems)} problem{'s' * (len(problems) != 1)}")


@app.command()
def inspect(
    images: Annotated[Path, typer.Argument(help="Folder that the annotations' file names are relative to.")],
    annotations: Annotated[Path, typer.Argument(help="COCO-format JSON.", metavar="ANNOTATIONS.json")],
    size: Annotated[
        str | None,
        typer.Option(
            help="The network's input in pixels, 512 or 384x512 (height x width). Default: as train picks it."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Builder whose anchors to count, as retinanet_resnet50_fpn.")] = (
        "retinanet_tiny"
    ),
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="A model option, as levels=[2,3,4] or ratios=[0.33,1,3]. Repeatable."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Take anchors and input size from this model.")] = None,
    limit: Annotated[int | None, typer.Option(help="Count this many images, evenly spread.", min=1)] = None,
    decode: Annotated[bool, typer.Option(help="Decode every image to find truncated ones; slow on many.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for report.txt, report.json, report.png.")] = None,
) -> None:
    """The imbalance report: boxes, anchors, what no anchor reaches, every bad box. For who has "mAP 0"."""
    from focal_tutorial.data.coco import check_images, read_coco
    from focal_tutorial.imbalance import imbalance_report
    from focal_tutorial.inspection import anchor_setting

    dataset = read_coco(annotations, images)
    if decode:
        dataset.problems.extend(check_images(dataset, images))
    setting = anchor_setting(dataset, model, parse_options(option), parse_size(size), checkpoint)
    report = imbalance_report(dataset, **setting, limit=limit)
    typer.echo(report.text(problems=None), nl=False)
    if out is not None:
        _write_report(report, out)


def _write_report(report: ImbalanceReport, out: Path) -> None:
    from focal_tutorial.checkpoint import write_json
    from focal_tutorial.plotting import plot_imbalance_report, save_figure

    out.mkdir(parents=True, exist_ok=True)
    figure, alt = plot_imbalance_report(report)
    write_json(out / "report.json", {**report.to_dict(), "alt": alt})
    (out / "report.txt").write_text(report.text(problems=None), encoding="utf-8")
    save_figure(figure, out / "report.png", alt=alt)
    typer.echo(f"\nwritten: {out / 'report.txt'}, report.json, report.png")


app.command()(train)
app.command("convert-weights")(convert_weights_command)
app.command("export")(export_command)
app.add_typer(experiment_app, name="experiment")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt or last.pt of a run folder.")],
    images: Images,
    annotations: Annotations,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 8,
    device: Device = "auto",
    amp: Annotated[str, typer.Option(help="Arithmetic: none (float32), bf16 or fp16.")] = "none",
    workers: Annotated[int, typer.Option(help="Processes that decode images beside the model.", min=0)] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for metrics.json, detections.json (COCO results), precision_recall.png."),
    ] = None,
) -> None:
    """COCO AP of a trained model on a dataset, over all classes and per class.

    Several GPUs share the images: torchrun --nproc-per-node N -m focal_tutorial evaluate …
    """
    from focal_tutorial.data.coco import CocoDataset
    from focal_tutorial.distributed import process_group, rank, require_same, share
    from focal_tutorial.evaluate import AMP_DTYPES, detect, evaluate_coco
    from focal_tutorial.inspection import metrics_text, write_evaluation
    from focal_tutorial.train import load_checkpoint, pick_device

    if amp not in AMP_DTYPES:
        raise InputError(f"--amp: one of {', '.join(AMP_DTYPES)} wanted, got {amp!r}")
    with process_group(pick_device(device)) as own:  # under torchrun each process takes its share of the images
        dataset = CocoDataset(images, annotations)
        require_same({"images": len(dataset)})
        problems, first, bar = len(dataset.problems), rank() == 0, sys.stderr.isatty() and rank() == 0
        if problems and first:
            typer.echo(f"problems in {annotations}: {problems}; `focal-tutorial inspect` lists them", err=True)
        model = load_checkpoint(checkpoint, own)
        results = detect(model, dataset, batch_size=batch_size, amp=amp, workers=workers, progress=bar)
        metrics = share(evaluate_coco(dataset.coco_dict(), results) if first else {})
    if not first:
        return
    typer.echo(metrics_text(metrics), nl=False)
    if out is not None:
        write_evaluation(out, dataset.coco_dict(), results, metrics)
        typer.echo(f"\nwritten: {out / 'metrics.json'}, detections.json, precision_recall.png")


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt or last.pt of a run folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", metavar="IMAGE…")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and detections.json.")] = Path("predictions"),
    threshold: Annotated[
        float, typer.Option(help="Score, 0 … 1, from which a detection is drawn; the JSON holds all above 0.05.")
    ] = 0.5,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO JSON to take image and category ids from; else counted from 1.")
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Draw pictures.")] = True,
    device: Device = "auto",
) -> None:
    """Find objects in images: pictures with boxes, and COCO-results JSON."""
    from focal_tutorial.predict import Predicted, find_images
    from focal_tutorial.predict import predict as run_predict
    from focal_tutorial.train import load_checkpoint, pick_device

    paths = find_images(images)
    model = load_checkpoint(checkpoint, pick_device(device))

    def report(found: Predicted) -> None:
        counts = ", ".join(f"{count} {name}" for name, count in found.counts.items()) or "nothing"
        typer.echo(f"{found.path}: {counts}" + (f" → {found.picture}" if found.picture else ""))

    options: dict[str, Any] = {"threshold": threshold, "annotation_file": annotations, "pictures": pictures}
    faults = run_predict(model, paths, out, report=report, **options)
    typer.echo(f"written: {out / 'detections.json'}")
    if faults:
        more = f" (and {len(faults) - 1} more images)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{more}")


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line on `args` (default: the process's) and return the exit status."""
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words or bool(os.environ.get("FOCAL_TUTORIAL_DEBUG"))
    stop = Interruptible()
    try:
        with stop:
            status = app(words, standalone_mode=False, prog_name="focal-tutorial")
        if status == INTERRUPTED:  # newer typer turns Ctrl-C into this, older into Abort
            raise KeyboardInterrupt
        return status if isinstance(status, int) else 0
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return _stopped(words)
    except Exception as error:
        if debug:
            raise
        if stop.asked:
            return _stopped(words)
        status, message = explain(error)
        typer.echo(f"error{_process()}: {' '.join(message.split())}", err=True)
        return status


def _process() -> str:
    """Which of torchrun's processes this is, for its messages; nothing without torchrun."""
    number, all = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return f" on process {number} of {all}, counted from 0" if number and all not in ("", "1") else ""


def _stopped(words: Sequence[str]) -> int:
    """Say what a stopped command leaves; returns the exit status."""
    again = {
        "train": "; the same command with --resume goes on from the last checkpoint",
        "experiment": "; the same command goes on where it was stopped",
        "data": "; the same command goes on, and nothing half-made is in its place",
    }
    typer.echo(f"stopped{next((again[word] for word in words[:2] if word in again), '')}", err=True)
    return INTERRUPTED


def explain(error: Exception) -> tuple[int, str]:
    """Exit status and one line for an error: 2 for what the user can put right, 1 for a fault of the program."""
    if hasattr(error, "format_message"):  # bad usage, from typer
        path = getattr(getattr(error, "ctx", None), "command_path", "focal-tutorial")
        return 2, f"{error.format_message()} (see {path} --help)"
    if isinstance(error, InputError):
        return 2, str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else "reading or writing a file: "
        return 2, f"{where}{error.strerror or error}; check the path, permissions and free space"
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
        return 2, "out of memory; take a smaller --batch-size or --size"
    if isinstance(error, ValueError | TypeError):
        return 2, f"{error} (if this is no slip of yours: run again with --debug before the command)"
    return 1, f"unexpected {type(error).__name__}: {error}; run again with --debug before the command and report it"


def main() -> NoReturn:
    """The console script `focal-tutorial`."""
    sys.exit(run())


if __name__ == "__main__":
    main()
