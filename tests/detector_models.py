"""A small but real detector of torchvision, targets for it, and options that make all of them small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

__all__ = ["DETECTORS", "images", "targets", "tiny_detector"]

_FEW = {
    "box_score_thresh": 0.0,
    "box_detections_per_img": 20,
    "rpn_post_nms_top_n_test": 40,
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_train": 40,
    "rpn_pre_nms_top_n_train": 60,
}
_SMALL = {"min_size": 96, "max_size": 160}
_RCNN = {**_FEW, **_SMALL}
_DENSE = {"score_thresh": 0.0, "detections_per_img": 20, "topk_candidates": 30}
DETECTORS: dict[str, dict[str, Any]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": _RCNN,
    "fasterrcnn_mobilenet_v3_large_fpn": _RCNN,
    "fasterrcnn_resnet50_fpn": _RCNN,
    "fasterrcnn_resnet50_fpn_v2": _RCNN,
    "fcos_resnet50_fpn": {**_DENSE, **_SMALL},
    "keypointrcnn_resnet50_fpn": _RCNN,
    "maskrcnn_resnet50_fpn": _RCNN,
    "maskrcnn_resnet50_fpn_v2": _RCNN,
    "retinanet_resnet50_fpn": {**_DENSE, **_SMALL},
    "retinanet_resnet50_fpn_v2": {**_DENSE, **_SMALL},
    "ssd300_vgg16": _DENSE,
    "ssdlite320_mobilenet_v3_large": _DENSE,
}
"""Every detector of torchvision, with options for images of 96 to 160 pixels and few boxes."""


def _block(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU())


def tiny_detector(width: int = 16, backbone: nn.Module | None = None) -> FasterRCNN:
    """Return a Faster R-CNN for two classes and images of 64 pixels.

    Parameters
    ----------
    width : int
        Channels that the backbone returns.
    backbone : nn.Module, optional
        In place of three convolutions; its stride is 8.
    """
    torch.manual_seed(0)
    body: Any = backbone or nn.Sequential(_block(3, 8), _block(8, 12), _block(12, width))
    body.out_channels = width
    return FasterRCNN(
        body,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((8, 16, 32),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=TwoMLPHead(width * 9, 32),
        box_predictor=FastRCNNPredictor(32, 2),
        **_FEW,
    )


def images(*sizes: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return random images with values in [0, 1], the same for the same sizes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand((3, *size), generator=generator).to(dtype) for size in sizes]


def targets(given: list[Tensor]) -> list[dict[str, Tensor]]:
    """Return two boxes per image, with labels, masks and key points."""
    made = []
    for image in given:
        masks = torch.zeros(2, *image.shape[1:], dtype=torch.uint8)
        masks[:, 10:30, 10:25] = 1
        points = torch.tensor([[12.0, 15.0, 1.0]]).to(image).repeat(2, 17, 1)
        boxes = torch.tensor([[5.0, 5.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]]).to(image)
        made.append(
            {"boxes": boxes, "labels": torch.ones(2).long(), "masks": masks, "keypoints": points}
        )
    return made
