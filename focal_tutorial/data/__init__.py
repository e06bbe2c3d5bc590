"""Datasets: COCO format, VOC conversion, BCCD, synthetic shapes, transforms and loading."""

from focal_tutorial.data.bccd import prepare_bccd
from focal_tutorial.data.coco import CocoData, CocoDataset, check_images, read_coco
from focal_tutorial.data.dataset import DetectionDataset
from focal_tutorial.data.images import load_image
from focal_tutorial.data.loader import EpochLoader, make_loader
from focal_tutorial.data.problems import Problem, count_problems
from focal_tutorial.data.root import data_root
from focal_tutorial.data.shapes import ShapesDataset, make_shapes
from focal_tutorial.data.transforms import eval_transforms, train_transforms
from focal_tutorial.data.voc import convert_voc

__all__ = [
    "CocoData",
    "CocoDataset",
    "DetectionDataset",
    "EpochLoader",
    "Problem",
    "ShapesDataset",
    "check_images",
    "convert_voc",
    "count_problems",
    "data_root",
    "eval_transforms",
    "load_image",
    "make_loader",
    "make_shapes",
    "prepare_bccd",
    "read_coco",
    "train_transforms",
]
