"""Datasets: COCO format, VOC conversion, BCCD, synthetic shapes, transforms and loading."""
