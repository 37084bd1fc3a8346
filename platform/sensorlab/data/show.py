"""``sensorlab data show``: one sample as a picture, to see that calibration, boxes and points agree.

Above, the cameras with projected boxes and radar points; below, the bird's-eye view of the ego frame with lidar, radar
with velocities, and boxes. Images use each camera's own ego pose, so a wrong time or frame shows as an offset.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from sensorlab.data.dataset import PreparedDataset
from sensorlab.data.sample import RADAR_FIELDS, CameraFrame, Sample
from sensorlab.data.schema import decode_table
from sensorlab.data.sources.camera_jpeg import decode_jpeg
from sensorlab.errors import UserError
from sensorlab.geometry.boxes import CORNER_SIGNS, box_corners, boxes3d_from_quaternions, footprint_corners
from sensorlab.geometry.cameras import points_in_image, project_points
from sensorlab.geometry.poses import inverse_rigid, rigid_from_quaternion, rotate_vectors, transform_points

BEV_RANGE = 55.0  # metres to each side
_NEAR = 0.3  # metres; box edges are cut here
_COLORS = {"vehicle": "#ff8c1a", "human": "#2f7dff", "movable_object": "#d6336c", "static_object": "#9c36b5"}
_OTHER_COLOR = "#2b8a3e"
# Corners that differ in one sign are joined by an edge.
_EDGES = np.array(
    [
        (a, b)
        for a, b in itertools.combinations(range(8), 2)
        if sum(x != y for x, y in zip(CORNER_SIGNS[a], CORNER_SIGNS[b], strict=True)) == 1
    ]
)


def show_sample(dataset: str | Path, index: int, out: str | Path, split: str | None = None) -> Path:
    """Draw sample ``index`` of a split (None: the first split) to an image file.

    Raises:
        UserError: no such dataset, split or sample, or ``out`` cannot be written.
    """
    opened = PreparedDataset.open(dataset)
    chosen = opened.split(split if split is not None else next(iter(opened.manifest.splits)))
    if not 0 <= index < chosen.num_samples:
        raise UserError(f"split {chosen.name!r} has samples 0..{chosen.num_samples - 1}; there is no sample {index}")
    (sample,) = decode_table(chosen.read([index]))
    figure = draw_sample(sample, f"{chosen.name} {index}")
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from error
    return path


def draw_sample(sample: Sample, title: str) -> Any:
    """A matplotlib ``Figure`` of the sample; no window and no global state is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cameras = sorted(sample.cameras, key=_place)
    columns = min(3, max(1, len(cameras)))
    rows = -(-len(cameras) // columns)
    aspect = max((camera.height / camera.width for camera in cameras), default=0.6)
    width = 18.0
    heights = [width / columns * aspect + 0.35] * rows + [11.0]
    figure = Figure(figsize=(width, sum(heights) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=heights)
    for number, camera in enumerate(cameras):
        _draw_camera(figure.add_subplot(grid[number // columns, number % columns]), sample, camera)
    _draw_bev(figure.add_subplot(grid[rows, :]), sample)
    radar = sum(len(sweep.points) for sweep in sample.radars)
    lidar = sum(len(sweep.points) for sweep in sample.lidars)
    figure.suptitle(
        f"{title}   scene {sample.scene}   sample {sample.token}\n"
        f"{len(sample.boxes)} boxes, {len(sample.radars)} radar sweeps ({radar} points), "
        f"{len(sample.lidars)} lidar sweeps ({lidar} points)",
        fontsize=13,
    )
    return figure


def _place(camera: CameraFrame) -> tuple[int, int, str]:
    """Front row before back row, left before right, as the cameras look."""
    name = camera.name.upper()
    return ("BACK" in name or "REAR" in name, ("RIGHT" in name) - ("LEFT" in name), name)


def _box_poses(sample: Sample) -> np.ndarray:
    return rigid_from_quaternion(sample.boxes.rotation, sample.boxes.center)


def _color(category: str) -> str:
    return _COLORS.get(category.split(".")[0], _OTHER_COLOR)


# --------------------------------------------------------------------------------------------------------------- camera


def _draw_camera(axes: Any, sample: Sample, camera: CameraFrame) -> None:
    image = decode_jpeg(camera.jpeg)
    axes.imshow(image, extent=(-0.5, camera.width - 0.5, camera.height - 0.5, -0.5))
    # From the sample's ego frame through the map to the ego frame at the camera's own time.
    camera_from_ego = (
        inverse_rigid(camera.ego_from_camera) @ inverse_rigid(camera.global_from_ego) @ sample.global_from_ego
    )
    _draw_projected_boxes(axes, sample, camera, camera_from_ego)
    if sample.radars:
        _draw_radar(axes, sample, camera, camera_from_ego)
    axes.set(xlim=(-0.5, camera.width - 0.5), ylim=(camera.height - 0.5, -0.5), xticks=[], yticks=[])
    lag = round((camera.timestamp - sample.timestamp) / 1000)
    axes.set_title(f"{camera.name}  {camera.width}x{camera.height}  {lag:+d} ms", fontsize=11)


def _draw_projected_boxes(axes: Any, sample: Sample, camera: CameraFrame, camera_from_ego: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    if not len(sample.boxes):
        return
    corners = transform_points(camera_from_ego, box_corners(_box_poses(sample), sample.boxes.size).reshape(-1, 3))
    for box, points in enumerate(corners.reshape(-1, 8, 3)):
        segments = _clip_to_near(points[_EDGES])
        if not len(segments):
            continue
        pixels, _ = project_points(camera.intrinsics, segments.reshape(-1, 3))
        lines = pixels.reshape(-1, 2, 2)
        inside = (lines.max(axis=(0, 1)) > 0) & (lines.min(axis=(0, 1)) < (camera.width, camera.height))
        if not inside.all():
            continue
        seen = sample.boxes.num_lidar_points[box] + sample.boxes.num_radar_points[box] > 0
        axes.add_collection(
            LineCollection(
                list(lines),
                colors=_color(sample.boxes.category[box]),
                linewidths=1.2 if seen else 0.6,
                alpha=1.0 if seen else 0.5,
            )
        )


def _clip_to_near(edges: np.ndarray) -> np.ndarray:
    """Edges (E, 2, 3) in the camera frame, cut at the near plane; edges behind it are dropped."""
    depth = edges[..., 2]
    edges = edges[(depth > _NEAR).any(axis=1)].copy()
    for end in (0, 1):
        behind = edges[:, end, 2] <= _NEAR
        near, far = edges[behind, end], edges[behind, 1 - end]
        edges[behind, end] = near + (far - near) * ((_NEAR - near[:, 2]) / (far[:, 2] - near[:, 2]))[:, None]
    return edges


def _draw_radar(axes: Any, sample: Sample, camera: CameraFrame, camera_from_ego: np.ndarray) -> None:
    points = np.concatenate([transform_points(s.ego_from_sensor, s.points[:, :3].astype(float)) for s in sample.radars])
    pixels, depth = project_points(camera.intrinsics, transform_points(camera_from_ego, points))
    shown = points_in_image(pixels, depth, (camera.height, camera.width), min_depth=_NEAR)
    axes.scatter(
        *pixels[shown].T, c=depth[shown], s=9, cmap="turbo", vmin=0, vmax=BEV_RANGE, edgecolors="black", linewidths=0.2
    )


# ------------------------------------------------------------------------------------------------------------------ BEV


def _draw_bev(axes: Any, sample: Sample) -> None:
    for sweep in sample.lidars:
        points = transform_points(sweep.ego_from_sensor, sweep.points[:, :3].astype(float))
        axes.scatter(points[:, 1], points[:, 0], s=1.5, c="#6c757d", linewidths=0, rasterized=True)
    for sweep in sample.radars:
        _draw_bev_radar(axes, sweep.points, sweep.ego_from_sensor)
    _draw_bev_boxes(axes, sample)
    axes.add_patch(_ego_marker())
    axes.set(xlim=(BEV_RANGE, -BEV_RANGE), ylim=(-BEV_RANGE, BEV_RANGE), aspect="equal")
    axes.set(xlabel="y, metres (left of the vehicle is left)", ylabel="x, metres (forward is up)")
    axes.set_title("ego frame from above: lidar grey, radar by range with velocities, boxes with headings", fontsize=11)
    axes.grid(alpha=0.25)
    if sample.radars:
        _draw_color_scale(axes)
    _draw_legend(axes, sample)


def _draw_bev_radar(axes: Any, points: np.ndarray, ego_from_sensor: np.ndarray) -> None:
    position = transform_points(ego_from_sensor, points[:, :3].astype(float))
    velocity = np.zeros_like(position)
    velocity[:, 0] = points[:, RADAR_FIELDS.index("vx_comp")]
    velocity[:, 1] = points[:, RADAR_FIELDS.index("vy_comp")]
    velocity = rotate_vectors(ego_from_sensor, velocity)
    distance = np.linalg.norm(position[:, :2], axis=1)
    axes.scatter(position[:, 1], position[:, 0], c=distance, s=10, cmap="turbo", vmin=0, vmax=BEV_RANGE, zorder=3)
    moving = np.linalg.norm(velocity[:, :2], axis=1) > 0.5
    axes.quiver(
        *position[moving][:, [1, 0]].T,
        *velocity[moving][:, [1, 0]].T,
        angles="xy",
        scale_units="xy",
        scale=1.0,  # an arrow is the way of one second
        width=0.0012,
        color="black",
        zorder=4,
    )


def _draw_bev_boxes(axes: Any, sample: Sample) -> None:
    boxes = sample.boxes
    if not len(boxes):
        return
    flat = boxes3d_from_quaternions(boxes.center, boxes.size, boxes.rotation)
    for box, corners in enumerate(footprint_corners(flat)):
        color = _color(boxes.category[box])
        seen = boxes.num_lidar_points[box] + boxes.num_radar_points[box] > 0
        style = {"color": color, "linewidth": 1.6 if seen else 0.7, "linestyle": "-" if seen else ":", "zorder": 5}
        closed = np.concatenate([corners, corners[:1]])
        axes.plot(closed[:, 1], closed[:, 0], **style)
        x, y, length, yaw = flat[box, [0, 1, 3, 6]]
        nose = length / 2 + 0.8
        axes.plot([y, y + nose * np.sin(yaw)], [x, x + nose * np.cos(yaw)], **style)


def _ego_marker() -> Any:
    from matplotlib.patches import Polygon

    return Polygon([(0.0, 3.5), (0.9, -1.0), (-0.9, -1.0)], closed=True, color="black", zorder=6)


def _draw_color_scale(axes: Any) -> None:
    from matplotlib.cm import ScalarMappable

    scale = ScalarMappable(cmap="turbo")
    scale.set_clim(0, BEV_RANGE)
    place = axes.inset_axes((0.02, 0.03, 0.015, 0.35))  # inside, so that the layout is that of a sample without radar
    axes.figure.colorbar(scale, cax=place, label="radar: range here, depth in the images (m)")


def _draw_legend(axes: Any, sample: Sample) -> None:
    from matplotlib.lines import Line2D

    groups = sorted({category.split(".")[0] for category in sample.boxes.category})
    handles = [Line2D([], [], color=_color(group), label=group) for group in groups]
    handles.append(Line2D([], [], color="grey", linestyle=":", label="box without points"))
    handles.append(Line2D([], [], color="black", marker="^", linestyle="", label="ego vehicle"))
    axes.legend(handles=handles, loc="upper right", fontsize=9)
