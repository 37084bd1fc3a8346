"""RetinaNet: network, anchors, target assignment, losses, detections."""

from sensorlab.models.detections import Detections
from sensorlab.models.retinanet.anchors import AnchorGrid
from sensorlab.models.retinanet.assign import BACKGROUND, IGNORED, AssignOptions, assign_batch, count_positives
from sensorlab.models.retinanet.decode import SelectionOptions, detections
from sensorlab.models.retinanet.losses import LossOptions, RetinaNetLoss, retinanet_loss
from sensorlab.models.retinanet.network import RetinaNet

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "AnchorGrid",
    "AssignOptions",
    "Detections",
    "LossOptions",
    "RetinaNet",
    "RetinaNetLoss",
    "SelectionOptions",
    "assign_batch",
    "count_positives",
    "detections",
    "retinanet_loss",
]
