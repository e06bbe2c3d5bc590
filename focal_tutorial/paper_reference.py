"""What the RetinaNet paper reports: Tables 1a to 1e and 3, as data beside which a book can put its own.

Lin, Goyal, Girshick, He, Dollár: Focal Loss for Dense Object Detection, ICCV 2017. AP in points. A row has the name of
the setting of `focal_tutorial.paper` that stands for it, where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        title: its subject.
        split: of COCO, "minival" or "test-dev".
        rows: name → "AP", "AP50", "AP75" in points; Table 1e also "APs", "APm", "APl", and "ms" an image on an M40.
    """

    title: str
    split: str
    rows: Rows


def _rows(columns: tuple[str, ...], **lines: tuple[float, ...]) -> Rows:
    return {name: dict(zip(columns, line, strict=True)) for name, line in lines.items()}


_AP = ("AP", "AP50", "AP75")

TABLE_1A = PaperTable(
    "α of balanced cross entropy", "minival",
    _rows(
        _AP,
        bce_0_1=(0.0, 0.0, 0.0), bce_0_25=(10.8, 16.0, 11.7), bce_0_5=(30.2, 46.7, 32.8), bce_0_75=(31.1, 49.4, 33.0),
        bce_0_9=(30.8, 49.7, 32.3), bce_0_99=(28.7, 47.4, 29.9), bce_0_999=(25.1, 41.7, 26.1),
    ),
)  # fmt: skip

TABLE_1B = PaperTable(
    "γ, each with its best α", "minival",
    _rows(
        _AP,
        bce_0_75=(31.1, 49.4, 33.0), fl_0_1_0_75=(31.4, 49.9, 33.1), fl_0_2_0_75=(31.9, 50.7, 33.4),
        fl_0_5_0_5=(32.9, 51.7, 35.2), fl_1_0_25=(33.7, 52.0, 36.2), fl_2_0_25=(34.0, 52.5, 36.5),
        fl_5_0_25=(32.2, 49.6, 34.8),
    ),
)  # fmt: skip

# Scales × ratios of the anchors at a location.
TABLE_1C = PaperTable(
    "anchors: scales × ratios", "minival",
    _rows(
        _AP,
        anchors_1_1=(30.3, 49.0, 31.8), anchors_2_1=(31.9, 50.0, 34.0), anchors_3_1=(31.8, 49.4, 33.7),
        anchors_1_3=(32.4, 52.3, 33.9), anchors_2_3=(34.2, 53.1, 36.5), anchors_3_3=(34.0, 52.5, 36.5),
        anchors_4_3=(33.8, 52.1, 36.2),
    ),
)  # fmt: skip

# Anchors an image, NMS threshold; "ohem13": at least three of background to one of foreground. All with ResNet-101.
TABLE_1D = PaperTable(
    "OHEM against focal loss, ResNet-101", "minival",
    _rows(
        _AP,
        ohem_128_0_7=(31.1, 47.2, 33.2), ohem_256_0_7=(31.8, 48.8, 33.9), ohem_512_0_7=(30.6, 47.0, 32.6),
        ohem_128_0_5=(32.8, 50.3, 35.1), ohem_256_0_5=(31.0, 47.4, 33.0), ohem_512_0_5=(27.6, 42.0, 29.2),
        ohem13_128_0_5=(31.1, 47.2, 33.2), ohem13_256_0_5=(28.3, 42.4, 30.3), ohem13_512_0_5=(24.0, 35.5, 25.8),
        fl_2_0_25=(36.0, 54.9, 38.7),
    ),
)  # fmt: skip

# Depth of the ResNet, shorter side of the image.
TABLE_1E = PaperTable(
    "depth and input scale: accuracy and time",
    "test-dev",
    _rows(
        (*_AP, "APs", "APm", "APl", "ms"),
        depth_50_scale_400=(30.5, 47.8, 32.7, 11.2, 33.8, 46.1, 64),
        depth_50_scale_500=(32.5, 50.9, 34.8, 13.9, 35.8, 46.7, 72),
        depth_50_scale_600=(34.3, 53.2, 36.9, 16.2, 37.4, 47.4, 98),
        depth_50_scale_700=(35.1, 54.2, 37.7, 18.0, 39.3, 46.4, 121),
        depth_50_scale_800=(35.7, 55.0, 38.5, 18.9, 38.9, 46.3, 153),
        depth_101_scale_400=(31.9, 49.5, 34.1, 11.6, 35.8, 48.5, 81),
        depth_101_scale_500=(34.4, 53.1, 36.8, 14.7, 38.5, 49.1, 90),
        depth_101_scale_600=(36.0, 55.2, 38.7, 17.4, 39.6, 49.7, 122),
        depth_101_scale_700=(37.1, 56.6, 39.8, 19.1, 40.6, 49.4, 154),
        depth_101_scale_800=(37.8, 57.5, 40.8, 20.2, 41.1, 49.2, 198),
    ),
)

# The row "CE" of Table 3 is that of the best α of Table 1a.
TABLE_3 = PaperTable(
    "FL*", "minival",
    _rows(
        _AP,
        bce_0_75=(31.1, 49.4, 33.0), fl_2_0_25=(34.0, 52.5, 36.5), star_2_1=(33.8, 52.7, 36.3),
        star_4_0=(33.9, 51.8, 36.4),
    ),
)  # fmt: skip
