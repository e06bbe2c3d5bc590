"""Pascal VOC XML to COCO JSON.

VOC counts pixels from 1 and includes both ends: `xmin=1, xmax=W` is the full width. In the continuous
coordinates used here that is `[0, W]`, so 1 is taken off the low corner and nothing off the high one (as
detectron2 does). Some tools write VOC files with coordinates from 0 to W; `first_pixel=0` takes those as they
are.

A box whose low and high corner coincide is a click and no drag of the annotator's mouse. It is dropped as of
zero size, although to the letter of VOC it covers one pixel.

`difficult` objects become COCO crowds: no model is trained on them and none is punished for finding or
missing them, which is how the VOC evaluation treats them.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

from focal_tutorial.data.images import image_size, size_mismatch
from focal_tutorial.data.problems import Problem
from focal_tutorial.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
EDGES = ("xmin", "ymin", "xmax", "ymax")


def convert_voc(
    annotation_dir: str | Path,
    out_json: str | Path,
    *,
    split_file: str | Path | None = None,
    image_dir: str | Path | None = None,
    first_pixel: int = 1,
) -> list[Problem]:
    """Write the VOC annotations of a folder as one COCO JSON file.

    Classes are all names that occur in the folder, sorted, with ids from 1, and image ids count the folder's
    files: so the splits of a dataset agree on both. Dropped boxes are returned, and recorded in the file's
    `info`, where `read_coco` finds them. The file appears whole or not at all.

    Args:
        annotation_dir: folder of XML files, one an image.
        out_json: the file to write.
        split_file: text file of names without suffix, one a line, to take only those (a second column, as in
            VOC's per-class lists, drops the images marked -1). None: all.
        image_dir: folder of the images, to find file names and to check sizes. None: the XML files are
            believed.
        first_pixel: 1 for VOC's pixel numbers, 0 for coordinates that start at 0.

    Raises:
        InputError: a folder or file is missing, or nothing usable is left.
    """
    folder = Path(annotation_dir)
    if first_pixel not in (0, 1):
        raise ValueError(f"first_pixel must be 0 or 1, got {first_pixel!r}")
    if not folder.is_dir():
        raise InputError(f"annotation folder {folder} does not exist")
    if image_dir is not None and not Path(image_dir).is_dir():
        raise InputError(f"image folder {image_dir} does not exist")
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise InputError(f"annotation folder {folder} has no .xml file")
    problems: list[Problem] = []
    chosen = None if split_file is None else read_split(split_file)
    if chosen is not None:
        absent = [name for name in chosen if not (folder / f"{name}.xml").is_file()]
        problems += [Problem(f"{n}.xml", None, "missing annotation file", f"named in {split_file}") for n in absent]
    wanted = {file.stem for file in files} if chosen is None else set(chosen)
    parsed: list[_VocImage] = []
    for number, file in enumerate(files, start=1):
        own: list[Problem] = []
        image = _read_voc(file, number, image_dir, first_pixel, own)
        if image is not None:
            parsed.append(image)
        if file.stem in wanted:
            problems += own
    names = sorted({name for image in parsed for name, *_ in image.objects})
    content = _to_coco([image for image in parsed if image.stem in wanted], names, problems)
    if not content["images"] or not names:
        first = f"; the first problem: {problems[0]}" if problems else ""
        raise InputError(f"{folder} has no usable {'image' if names else 'object'} for {out_json}{first}")
    write_json(content, Path(out_json))
    return problems


def read_split(split_file: str | Path) -> list[str]:
    """Names in a VOC split list, in its order, each once."""
    try:
        lines = Path(split_file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read split list {split_file}: {error}") from error
    rows = [line.split() for line in lines if line.strip()]
    names = list(dict.fromkeys(row[0] for row in rows if len(row) == 1 or row[1] != "-1"))
    if not names:
        raise InputError(f"split list {split_file} names no image")
    return names


def write_json(content: Any, path: Path) -> None:
    """Write JSON to a temporary file beside `path`, then rename it: there is never half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(content, stream)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


@dataclass
class _VocImage:
    stem: str
    record: dict[str, Any]  # of COCO's `images`
    objects: list[tuple[str, list[float], bool]]  # class, xyxy box, difficult


def _read_voc(
    file: Path, number: int, image_dir: str | Path | None, first_pixel: int, problems: list[Problem]
) -> _VocImage | None:
    try:
        root = _parse(file)
    except (expat.ExpatError, OSError, ValueError, LookupError) as error:
        problems.append(Problem(file.name, number, "broken XML", f"{error}; dropped"))
        return None
    name = _image_name(root, file, image_dir)
    height, width = (_number(root, f"size/{key}") for key in ("height", "width"))
    sized = 0 < height < 2**31 and 0 < width < 2**31  # no for NaN, too
    size = (int(height), int(width)) if sized else (0, 0)
    if image_dir is not None:
        try:
            shown, stored = image_size(Path(image_dir) / name)
        except InputError as error:
            kind = "unreadable image" if os.path.exists(Path(image_dir) / name) else "missing image"
            problems.append(Problem(file.name, number, kind, f"{error}; dropped"))
            return None
        size = size if min(size) > 0 else shown  # some tools write 0
        if size not in (shown, stored):
            detail = size_mismatch(Path(image_dir) / name, size, shown)
            problems.append(Problem(file.name, number, "size mismatch", f"{detail}; dropped"))
            return None
    if min(size) < 1:
        problems.append(Problem(file.name, number, "malformed image entry", "no positive `size`; dropped"))
        return None
    record = {"id": number, "file_name": name, "height": size[0], "width": size[1]}
    return _VocImage(file.stem, record, _objects(root, file.name, record, first_pixel, problems))


def _parse(file: Path) -> ET.Element:
    """The XML tree. A document type is refused: its entities can swell to any size or read other files."""

    def refuse(*_: Any) -> None:
        raise ValueError("it declares a document type, which VOC files have no use for")

    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(file.read_bytes(), True)
    return builder.close()


def _image_name(root: ET.Element, file: Path, image_dir: str | Path | None) -> str:
    """The image's file name: what the XML says, or the file in `image_dir` that is called like the XML."""
    said = (root.findtext("filename") or "").strip().replace("\\", "/").split("/")[-1]
    if image_dir is None:
        return said if Path(said).suffix else f"{said or file.stem}.jpg"
    candidates = [said] if Path(said).stem == file.stem and Path(said).suffix else []
    candidates += [file.stem + suffix for suffix in (*IMAGE_SUFFIXES, *(s.upper() for s in IMAGE_SUFFIXES))]
    candidates += [said] if said else []
    return next((name for name in candidates if os.path.isfile(Path(image_dir) / name)), candidates[0])


def _objects(
    root: ET.Element, file: str, record: dict[str, Any], first_pixel: int, problems: list[Problem]
) -> list[tuple[str, list[float], bool]]:
    """The usable objects of an image: class, clipped xyxy box in pixels, difficult."""
    objects = []
    for position, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        x1, y1, x2, y2 = raw = [_number(element, f"bndbox/{edge}") for edge in EDGES]
        width, height = record["width"], record["height"]
        box = [x1 - first_pixel, y1 - first_pixel, x2, y2]
        inside = [max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height)]
        where = f"object {position} ({name or 'no name'}), box {raw} in an image of {width}x{height}"
        if not name:
            kind = "malformed annotation"
        elif not all(map(math.isfinite, raw)):
            kind = "non-finite box"
        elif x2 < x1 or y2 < y1:
            kind = "negative-size box"
        elif x2 == x1 or y2 == y1:
            kind = "zero-size box"
        elif inside[0] >= inside[2] or inside[1] >= inside[3]:
            kind = "box outside image"
        else:
            objects.append((name, inside, _number(element, "difficult") == 1))
            if inside != box:
                hint = " (a 0 suggests coordinates from 0: see first_pixel)" if first_pixel and 0 in raw else ""
                detail = f"{where}; clipped{hint}"
                problems.append(Problem(file, record["id"], "box partly outside image", detail))
            continue
        problems.append(Problem(file, record["id"], kind, f"{where}; dropped"))
    return objects


def _number(element: ET.Element, path: str) -> float:
    """The number in a sub-element, NaN where there is none."""
    try:
        return float(element.findtext(path) or "nan")
    except ValueError:
        return math.nan


def _to_coco(images: list[_VocImage], names: list[str], problems: list[Problem]) -> dict[str, Any]:
    ids = {name: number for number, name in enumerate(names, start=1)}
    annotations: list[dict[str, Any]] = []
    for image in images:
        for name, (x1, y1, x2, y2), difficult in image.objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.record["id"],
                    "category_id": ids[name],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(difficult),
                }
            )
    return {
        "info": {"description": "converted from Pascal VOC", "problems": [asdict(p) for p in problems]},
        "images": [image.record for image in images],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }
