"""BEV segmentation from surround cameras, with radar or lidar if wanted: Simple-BEV as a task.

Arrays of one sample (a batch adds a leading dimension; S cameras, the reference camera first):

    images (S, H, W, 3) uint8     intrinsics (S, 3, 3) float32, pixels of ``images``
    ref_from_camera (S, 4, 4), ref_from_ego (4, 4) float32, metres
    radar_points (M, 3), radar_features (M, 16), lidar_points (M, 3) float32, ego frame: see :mod:`.sensors`; a batch is
        padded with NaN to its longest cloud
    flip_image (S,) bool, flip_bev (2,) bool: training with ``flips`` only
    seg, valid (1, Z, X) uint8, center (1, Z, X), offset (2, Z, X) float32: see :mod:`.labels`
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sensorlab.data.batch import MisfitError
from sensorlab.data.random_streams import SampleRandom
from sensorlab.data.sample import Sample
from sensorlab.geometry.cameras import ResizeConvention
from sensorlab.geometry.poses import inverse_rigid
from sensorlab.metrics.base import Metric
from sensorlab.metrics.bev_iou import (
    BEVIoUProtocol,
    DistanceIoU,
    GlobalIoU,
    SampleMeanIoU,
    cell_distances,
    real_samples,
)
from sensorlab.models.simple_bev import SimpleBEV
from sensorlab.models.weights import load_weights
from sensorlab.tasks.base import Arrays, BaseTask, Batch, Outputs
from sensorlab.tasks.bev_segmentation import sensors
from sensorlab.tasks.bev_segmentation.compatibility import check_dataset
from sensorlab.tasks.bev_segmentation.config import BEVSegmentationConfig
from sensorlab.tasks.bev_segmentation.instances import Instances, decode_instances
from sensorlab.tasks.bev_segmentation.labels import LabelRules, build_labels
from sensorlab.tasks.bev_segmentation.losses import bev_losses
from sensorlab.tasks.bev_segmentation.panels import draw_input_panel, draw_panel
from sensorlab.tasks.bev_segmentation.resizing import resize_views
from sensorlab.tasks.bev_segmentation.tables import confusion_tables
from sensorlab.tasks.bev_segmentation.views import View, choose_views, decode_views, draw_crops

if TYPE_CHECKING:
    from sensorlab.data.dataset import Manifest

logger = logging.getLogger(__name__)


class BEVSegmentation(BaseTask):
    """Segment the ground plane around the vehicle into foreground (vehicles by default) and background."""

    Config = BEVSegmentationConfig
    config: BEVSegmentationConfig

    def __init__(self, config: BEVSegmentationConfig) -> None:
        super().__init__(config)
        self.grid = config.grid.build()
        self.label_rules = LabelRules(
            config.labels,
            legacy_corners=config.is_legacy("label_corners"),
            double_offset=config.is_legacy("offset_doubling"),
        )

    def check_dataset(self, manifest: Manifest) -> None:
        check_dataset(self.config, manifest)

    @property
    def columns(self) -> tuple[str, ...]:
        radar = ("radars",) if self.config.radar.input != "none" else ()
        lidar = ("lidars",) if self.config.lidar.enabled else ()
        return ("cameras", "boxes", *radar, *lidar)

    def transform(self, sample: Sample, random: SampleRandom, training: bool) -> Arrays:
        config = self.config
        views = self._views(sample, random.stream("cameras") if training else None)
        num_slots = max(view.slot for view in views) + 1
        crops = draw_crops(config.image, num_slots, random.stream("image") if training else None)
        images, intrinsics = decode_views(sample, views, crops, config.image, config.is_legacy("intrinsics"))
        ref_from_ego = inverse_rigid(views[0].ego_from_camera)
        arrays = {
            "images": images,
            "intrinsics": intrinsics,
            "ref_from_camera": np.stack([ref_from_ego @ view.ego_from_camera for view in views]).astype(np.float32),
            "ref_from_ego": ref_from_ego.astype(np.float32),
        }
        if training and config.flips:
            draws = random.stream("flip").random(len(views) + 2) < 0.5
            arrays |= {"flip_bev": draws[:2], "flip_image": draws[2:]}
        arrays |= self._points(sample, ref_from_ego)
        return arrays | build_labels(sample.boxes, ref_from_ego, self.grid, self.label_rules)

    def label_arrays(self, sample: Sample) -> Arrays:
        """The labels that evaluation uses, without decoding an image: for baselines and statistics."""
        ref_from_ego = inverse_rigid(self._views(sample, None)[0].ego_from_camera)
        return build_labels(sample.boxes, ref_from_ego, self.grid, self.label_rules)

    def collate(self, items: Sequence[Arrays]) -> Arrays:
        counts = [len(item["images"]) for item in items]
        for position, count in enumerate(counts):
            if count != counts[0]:
                raise MisfitError(
                    position,
                    f"has {count} cameras where others of its batch have {counts[0]}: set task.cameras.names to "
                    "cameras that every sample has",
                )
        ragged = {"radar_points", "radar_features", "lidar_points"}
        return {
            name: (sensors.pad_points if name in ragged else np.stack)([item[name] for item in items])
            for name in items[0]
        }

    def build_model(self) -> SimpleBEV:
        config = self.config
        model = SimpleBEV(
            self.grid,
            encoder=config.model.encoder,
            latent_dim=config.model.latent_dim,
            radar=config.radar.input,
            lidar=config.lidar.enabled,
            compress=config.model.compress,
            sampling="legacy" if config.is_legacy("sampling") else "centered",
            neck_width=config.model.neck_width,
            decoder_width=config.model.decoder_width,
        )
        if config.model.weights is not None:
            logger.info("%s", load_weights(model, config.model.weights, rename=model.encoder.pretrained_rename))
        return model

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        legacy = self.config.is_legacy("voxel_padding")
        return model(
            batch["images"].permute(0, 1, 4, 2, 3),  # channels first is a view: the order of decoders is kept in memory
            batch["intrinsics"],
            batch["ref_from_camera"],
            radar=sensors.radar_volume(batch, self.config.radar, self.grid, legacy),
            lidar=sensors.lidar_volume(batch, self.config.lidar, self.grid, legacy),
            flip_image=batch.get("flip_image"),
            flip_bev=batch.get("flip_bev"),
        )

    def losses(self, model: nn.Module, outputs: Outputs, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return bev_losses(
            outputs,
            batch,
            model,
            self.config.losses,
            reduction="batch" if self.config.is_legacy("batch_reduction") else "sample",
            mask_center=not self.config.is_legacy("center_unmasked"),
        )

    def metrics(self) -> dict[str, Metric]:
        config, protocol = self.config.metrics, self.protocol
        metrics: dict[str, Metric] = {
            "iou": GlobalIoU(protocol),
            "iou_sample_mean": SampleMeanIoU(protocol.model_copy(update={"averaging": "sample_mean"})),
        }
        for threshold in config.more_thresholds:
            name = f"iou_threshold_{threshold:g}"
            metrics[name] = GlobalIoU(protocol.model_copy(update={"threshold": threshold}), name)
        if config.distance_bins:
            edges = tuple(np.linspace(0, config.max_distance, config.distance_bins + 1).round(6).tolist())
            frame = self.config.distance_frame
            over_distance = {"averaging": "global_per_distance", "bins": edges, "distance": frame}
            distances = cell_distances(self.grid, frame)
            metrics["iou_distance"] = DistanceIoU(protocol.model_copy(update=over_distance), distances)
        return metrics

    def tables(self, metrics: Mapping[str, Metric]) -> dict[str, dict[str, Sequence[Any]]]:
        return confusion_tables(metrics)

    @property
    def protocol(self) -> BEVIoUProtocol:
        """What the global IoU of this configuration means."""
        config = self.config
        return BEVIoUProtocol(
            threshold=config.metrics.threshold,
            categories=config.labels.categories,
            visibility=config.labels.visibility,
            min_lidar_points=config.labels.min_lidar_points,
            frame=config.cameras.reference,
            frame_pose="calibration" if config.is_legacy("camera_motion") else "exposure",
            x=(config.grid.x[0] + config.grid.centroid[0], config.grid.x[1] + config.grid.centroid[0]),
            z=(config.grid.z[0] + config.grid.centroid[2], config.grid.z[1] + config.grid.centroid[2]),
            cells=(config.grid.cells[0], config.grid.cells[2]),
            corners="truncated" if config.is_legacy("label_corners") else "rounded",
        )

    def decode(self, outputs: Outputs) -> list[Instances]:
        """Object instances of every sample of a batch."""
        return [
            decode_instances(
                seg,
                center,
                offset,
                self.grid,
                seg_threshold=self.config.metrics.threshold,
                offset_scale=2.0 if self.config.is_legacy("offset_doubling") else 1.0,
            )
            for seg, center, offset in zip(outputs["seg"], outputs["center"], outputs["offset"], strict=True)
        ]

    def image_size(self, batch: Batch) -> tuple[int, int]:
        height, width = batch["images"].shape[2:4]
        return height, width

    def resize(self, batch: Batch, size: tuple[int, int]) -> Batch:
        """The batch with other images and their intrinsics; the mirroring inside the network knows neither."""
        convention: ResizeConvention = "origin" if self.config.is_legacy("intrinsics") else "exact"
        images, intrinsics = resize_views(batch["images"], batch["intrinsics"], size, convention)
        return {**batch, "images": images, "intrinsics": intrinsics}

    def panels(self, outputs: Outputs, batch: Batch) -> list[tuple[str, np.ndarray]]:
        pictures = []
        for i in _drawn(batch):
            logits = outputs["seg"][i, 0].detach().float().cpu().numpy()
            pictures.append(draw_panel(_sample_arrays(batch, i), logits, self.grid, self.config.metrics.threshold))
        return pictures

    def input_panels(self, batch: Batch) -> list[tuple[str, np.ndarray]]:
        return [draw_input_panel(_sample_arrays(batch, i), self.grid) for i in _drawn(batch)]

    def _views(self, sample: Sample, random: np.random.Generator | None) -> list[View]:
        return choose_views(
            sample,
            self.config.cameras,
            random,
            ignore_motion=self.config.is_legacy("camera_motion"),
            skip_first=self.config.is_legacy("reference_camera"),
        )

    def _points(self, sample: Sample, ref_from_ego: np.ndarray) -> Arrays:
        config = self.config
        arrays: Arrays = {}
        if config.radar.input != "none":
            velocity_frame = None if config.is_legacy("radar_velocity") else ref_from_ego
            arrays["radar_points"], features = sensors.radar_points(sample.radars, config.radar, velocity_frame)
            if config.radar.input == "metadata":
                arrays["radar_features"] = features
        if config.lidar.enabled:
            arrays["lidar_points"] = sensors.lidar_points(sample.lidars, config.lidar)
        return arrays


def _drawn(batch: Batch) -> list[int]:
    """Places in the batch of the samples that are no fillers."""
    places: list[int] = torch.nonzero(real_samples(batch))[:, 0].tolist()
    return places


def _sample_arrays(batch: Batch, place: int) -> Arrays:
    return {name: value[place].detach().cpu().numpy() for name, value in batch.items()}
