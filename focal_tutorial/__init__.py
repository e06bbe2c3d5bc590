"""Class imbalance in object detection, focal loss and RetinaNet."""

__version__ = "0.1.0"
