"""Cameras of the embedded world: ground by inverse perspective, sky from a panorama, bodies by exact ray casting.

Everything that does not change within a scene (the rays, where they meet the ground, haze) is computed once per
camera. A frame then costs texture look-ups for the ground and a slab test per pixel that a body may cover; a depth
buffer settles who is in front. Next to the picture a frame yields who is seen where, which is what the visibility
level of an annotation means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sensorlab.data.synthetic.ground import Ground
from sensorlab.data.synthetic.motion import Actor, WorldState
from sensorlab.data.synthetic.paint import paint
from sensorlab.data.synthetic.raycast import FACE_Z, intersect, origin_in_box, to_box_axes
from sensorlab.data.synthetic.rig import CameraSpec
from sensorlab.data.synthetic.sky import PANORAMA_SHAPE, PANORAMA_TOP, Weather
from sensorlab.geometry.boxes import box_corners, poses_from_boxes3d
from sensorlab.geometry.poses import inverse_rigid, transform_points

NEAR = 0.1  # metres
NOISE_TILE_MARGIN = 32  # pixels by which the noise of a scene is larger than an image, to be shifted per frame
MAX_BODY_DISTANCE = 150.0  # metres; smaller than a pixel or two beyond
_SHADOW_DISTANCE = 45.0
_BILINEAR_DISTANCE, _FINE_DISTANCE, _GROUND_DISTANCE = 14.0, 30.0, 170.0
# Light that reaches a face from all around: front/back, sides, top.
_FACE_AMBIENT = np.array([0.80, 0.70, 1.0], dtype=np.float32)
_EDGES = np.array([(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)])


@dataclass(frozen=True)
class Frame:
    """One rendered image and what is in it. N bodies in the order of the world state."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    ids: np.ndarray  # (H, W) int16: index of the body that is seen, -1 for ground and sky
    visible: np.ndarray  # (N,) int64 pixels that show the body
    alone: np.ndarray  # (N,) int64 pixels of the image that it would cover if nothing else stood there


@dataclass(frozen=True)
class _Window:
    """The part of the image that a body may cover; slices of rows and columns."""

    rows: slice
    columns: slice


class CameraRenderer:
    """One camera in one scene.

    Args:
        spec: the camera.
        ground, weather: of the scene.
        noise: (H + margin, W + margin, 3) float32 image noise of unit deviation, shared by the cameras of a scene.
    """

    def __init__(self, spec: CameraSpec, ground: Ground, weather: Weather, noise: np.ndarray) -> None:
        self.spec = spec
        self._ground, self._weather, self._noise = ground, weather, noise
        self._camera_from_ego = inverse_rigid(spec.ego_from_sensor)
        self._origin = spec.ego_from_sensor[:3, 3]
        width, height = spec.image_size
        k, rotation = spec.intrinsics, spec.ego_from_sensor[:3, :3]
        # The ray of pixel (u, v) is column[u] + row[v] in ego axes, with depth (camera z) as its parameter.
        u, v = (np.arange(width) - k[0, 2]) / k[0, 0], (np.arange(height) - k[1, 2]) / k[1, 1]
        self._column = (u[:, None] * rotation[:, 0] + rotation[:, 2]).astype(np.float32)
        self._row = (v[:, None] * rotation[:, 1]).astype(np.float32)
        self._prepare_backdrop()

    def render(self, state: WorldState, actors: tuple[Actor, ...], rng: np.random.Generator) -> Frame:
        """The image at the instant of ``state``; ``rng`` draws the noise only."""
        solids = state.solids_in_ego()
        image = self._backdrop(state, solids)
        windows = self._windows(solids)
        depth = np.full(image.shape[:2], np.inf, dtype=np.float32)
        ids = np.full(image.shape[:2], -1, dtype=np.int16)
        faces = np.zeros(image.shape[:2], dtype=np.int8)
        alone = np.zeros(len(solids), dtype=np.int64)
        for index, window in windows.items():
            alone[index] = self._cast(index, solids[index], window, depth, ids, faces)
        visible = np.bincount(ids[ids >= 0].astype(np.int64), minlength=len(solids))
        yaw = state.ego[2]
        for index, window in windows.items():
            if visible[index]:
                self._shade(image, actors[index], index, solids[index], yaw, window, depth, ids, faces)
        return Frame(self._develop(image, rng), ids, visible, alone)

    def _prepare_backdrop(self) -> None:
        """Where every ray meets the ground, which part of the image needs which raster, and the haze over it."""
        d = self._column[None] + self._row[:, None]
        down = np.minimum(d[..., 2], np.float32(-1e-6))
        depth = np.float32(-self._origin[2]) / down
        x = np.float32(self._origin[0]) + depth * d[..., 0]
        y = np.float32(self._origin[1]) + depth * d[..., 1]
        distance = np.hypot(x, y)
        distance[d[..., 2] >= 0] = np.inf
        furthest = distance.max(axis=1)
        # Rows, not pixels: contiguous blocks are several times faster than index lists.
        self._sky_rows, self._fine_row, self._near_row = (
            int((furthest > limit).sum()) for limit in (_GROUND_DISTANCE, _FINE_DISTANCE, _BILINEAR_DISTANCE)
        )
        ground = slice(self._sky_rows, None)
        self._ground_x, self._ground_y = x[ground], y[ground]
        haze = 1 - np.exp(-distance[ground] / np.float32(self._weather.haze_distance))
        light = self._weather.ambient + self._weather.direct * self._weather.sun[2]
        gain = np.broadcast_to(light.astype(np.float32), (*haze.shape, 3))
        if self._weather.night:
            gain = gain + _headlights(self._ground_x, self._ground_y)[..., None]
        self._ground_gain = (gain * (1 - haze)[..., None]).astype(np.float32)
        self._ground_haze = (haze[..., None] * (self._weather.haze * 255)).astype(np.float32)
        sky = d[: self._sky_rows]
        rows, columns = PANORAMA_SHAPE
        elevation = np.arctan2(sky[..., 2], np.hypot(sky[..., 0], sky[..., 1]))
        row = np.clip(elevation * (rows / PANORAMA_TOP), 0, rows - 1).astype(np.int32)
        self._sky_index = row * columns
        self._sky_column = np.arctan2(sky[..., 1], sky[..., 0]) * np.float32(columns / (2 * math.pi))

    def _backdrop(self, state: WorldState, solids: np.ndarray) -> np.ndarray:
        """(H, W, 3) float32, 0..255: sky and lit ground with the shadows of the bodies."""
        width, height = self.spec.image_size
        image = np.empty((height, width, 3), dtype=np.float32)
        ego_x, ego_y, yaw = state.ego
        columns = PANORAMA_SHAPE[1]
        turned = self._sky_column + np.float32((yaw % (2 * math.pi)) * columns / (2 * math.pi) + columns * 1.5)
        index = self._sky_index + turned.astype(np.int32) % columns
        image[: self._sky_rows] = self._weather.panorama.reshape(-1, 3).take(index, axis=0)
        cos, sin = np.float32(math.cos(yaw)), np.float32(math.sin(yaw))
        x = np.float32(ego_x) + cos * self._ground_x - sin * self._ground_y
        y = np.float32(ego_y) + sin * self._ground_x + cos * self._ground_y
        first, fine, near = 0, self._fine_row - self._sky_rows, self._near_row - self._sky_rows
        ground = image[self._sky_rows :]
        ground[first:fine] = self._ground.coarse.nearest(x[first:fine], y[first:fine])
        ground[fine:near] = self._ground.fine.nearest(x[fine:near], y[fine:near])
        ground[near:] = self._ground.fine.bilinear(x[near:], y[near:])
        ground *= self._ground_gain
        shadow = self._shadows(state, solids)
        ground[shadow] *= np.float32(self._weather.shadow)
        ground += self._ground_haze
        return image

    def _shadows(self, state: WorldState, solids: np.ndarray) -> np.ndarray:
        """(rows of ground, W) bool: ground points from which the way to the sun is blocked."""
        shadow = np.zeros(self._ground_x.shape, dtype=bool)
        sun = self._weather.sun
        cos, sin = math.cos(state.ego[2]), math.sin(state.ego[2])
        sun_ego = np.array([cos * sun[0] + sin * sun[1], cos * sun[1] - sin * sun[0], sun[2]])
        near = np.hypot(solids[:, 0], solids[:, 1]) < _SHADOW_DISTANCE
        low = solids[:, 5] < 5.0  # houses stand too far from the road for their shadows to matter
        chosen = np.nonzero(near & low)[0]
        # A flat body that encloses footprint and shadow gives the window to look at.
        reach = solids[chosen].copy()
        length = reach[:, 5] / sun_ego[2]
        reach[:, :2] -= sun_ego[:2] * length[:, None] / 2
        grow = np.hypot(reach[:, 3], reach[:, 4]) + length * math.hypot(sun_ego[0], sun_ego[1])
        reach[:, 2], reach[:, 3], reach[:, 4], reach[:, 5] = 0.0, grow, grow, 0.02
        for position, window in self._windows(reach).items():
            rows = slice(max(window.rows.start - self._sky_rows, 0), max(window.rows.stop - self._sky_rows, 0))
            box = solids[chosen[position]]
            turn = math.cos(box[6]), math.sin(box[6])
            dx = self._ground_x[rows, window.columns] - np.float32(box[0])
            dy = self._ground_y[rows, window.columns] - np.float32(box[1])
            enter, leave = np.float32(0.0), np.float32(box[5] / sun_ego[2])
            for local, rate, half in (
                (
                    np.float32(turn[0]) * dx + np.float32(turn[1]) * dy,
                    turn[0] * sun_ego[0] + turn[1] * sun_ego[1],
                    box[3] / 2,
                ),
                (
                    np.float32(turn[0]) * dy - np.float32(turn[1]) * dx,
                    turn[0] * sun_ego[1] - turn[1] * sun_ego[0],
                    box[4] / 2,
                ),
            ):
                inverse = np.float32(1.0 / (rate if abs(rate) > 1e-6 else 1e-6))
                first, second = (np.float32(-half) - local) * inverse, (np.float32(half) - local) * inverse
                enter = np.maximum(enter, np.minimum(first, second))
                leave = np.minimum(leave, np.maximum(first, second))
            shadow[rows, window.columns] |= enter < leave
        return shadow

    def _windows(self, boxes: np.ndarray) -> dict[int, _Window]:
        """Bounding windows of the boxes (N, 7, ego frame) that reach into the image; nearest first is not promised."""
        if not len(boxes):
            return {}
        corners = transform_points(self._camera_from_ego, box_corners(poses_from_boxes3d(boxes), boxes[:, 3:6]))
        start, end = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
        # Edges that cross the near plane add the point where they do.
        step = end[..., 2] - start[..., 2]
        share = (NEAR - start[..., 2]) / np.where(np.abs(step) < 1e-9, 1e-9, step)
        crossing = start + share[..., None] * (end - start)
        crosses = (start[..., 2] > NEAR) != (end[..., 2] > NEAR)
        points = np.concatenate([corners, crossing], axis=1)
        valid = np.concatenate([corners[..., 2] > NEAR, crosses], axis=1)
        z = np.where(valid, points[..., 2], 1.0)
        k, (width, height) = self.spec.intrinsics, self.spec.image_size
        u, v = k[0, 0] * points[..., 0] / z + k[0, 2], k[1, 1] * points[..., 1] / z + k[1, 2]
        bounds = []
        for pixel, size in ((u, width), (v, height)):
            low = np.ceil(np.where(valid, pixel, np.inf).min(axis=1).clip(-1e6, 1e6)).clip(0, size)
            high = np.floor(np.where(valid, pixel, -np.inf).max(axis=1).clip(-1e6, 1e6)).clip(-1, size - 1) + 1
            bounds.append((low.astype(int), high.astype(int)))
        (left, right), (top, bottom) = bounds
        near = np.hypot(boxes[:, 0], boxes[:, 1]) < MAX_BODY_DISTANCE
        chosen = np.nonzero((left < right) & (top < bottom) & near)[0]
        return {int(i): _Window(slice(int(top[i]), int(bottom[i])), slice(int(left[i]), int(right[i]))) for i in chosen}

    def _rays(self, box: np.ndarray, rows: slice | np.ndarray, columns: slice | np.ndarray) -> tuple[list, list]:
        """Column and row parts of the rays in the axes of a box, three arrays each."""
        column, row = self._column[columns], self._row[rows]
        return (
            list(to_box_axes(box, (column[:, 0], column[:, 1], column[:, 2]))),
            list(to_box_axes(box, (row[:, 0], row[:, 1], row[:, 2]))),
        )

    def _cast(
        self, index: int, box: np.ndarray, window: _Window, depth: np.ndarray, ids: np.ndarray, faces: np.ndarray
    ) -> int:
        """Enter one body into the depth buffer; returns how many pixels it covers, seen or not."""
        column, row = self._rays(box, window.rows, window.columns)
        directions = tuple(c[None, :] + r[:, None] for c, r in zip(column, row, strict=True))
        t, face = intersect(box[3:6] / 2, origin_in_box(box, self._origin), directions)
        region = depth[window.rows, window.columns]
        nearer = t < region
        region[nearer] = t[nearer]
        ids[window.rows, window.columns][nearer] = index
        faces[window.rows, window.columns][nearer] = face[nearer]
        return int(np.isfinite(t).sum())

    def _shade(
        self,
        image: np.ndarray,
        actor: Actor,
        index: int,
        box: np.ndarray,
        ego_yaw: float,
        window: _Window,
        depth: np.ndarray,
        ids: np.ndarray,
        faces: np.ndarray,
    ) -> None:
        """Paint and light the visible pixels of one body, in place."""
        rows, columns = np.nonzero(ids[window.rows, window.columns] == index)
        rows, columns = rows + window.rows.start, columns + window.columns.start
        t, face = depth[rows, columns], faces[rows, columns]
        column, row = self._rays(box, rows, columns)
        origin, half = origin_in_box(box, self._origin), (box[3:6] / 2).astype(np.float32)
        local = np.stack([(origin[i] + t * (column[i] + row[i])) / half[i] for i in range(3)], axis=1)
        albedo, emission = paint(actor, np.clip(local, -1.0, 1.0), face)
        weather = self._weather
        light = weather.ambient.astype(np.float32) * _FACE_AMBIENT[face][:, None]
        light += (weather.direct * self._sunlight(local, face, float(box[6] + ego_yaw)))[:, None]
        if weather.night:
            headlight = _headlights(np.float32(box[0]), np.float32(box[1])) * np.where(face == FACE_Z, 0.15, 1.0)
            light += headlight[:, None].astype(np.float32)
        colour = albedo * light + emission * np.float32(1.0 if weather.night else 0.12)
        haze = (1 - np.exp(-t / np.float32(weather.haze_distance)))[:, None]
        image[rows, columns] = 255 * (colour * (1 - haze) + weather.haze.astype(np.float32) * haze)

    def _sunlight(self, local: np.ndarray, face: np.ndarray, yaw: float) -> np.ndarray:
        """Cosine between the outward normals of the faces and the sun, not below zero."""
        sun = self._weather.sun
        turned = np.array(
            [math.cos(yaw) * sun[0] + math.sin(yaw) * sun[1], math.cos(yaw) * sun[1] - math.sin(yaw) * sun[0], sun[2]]
        )
        side = np.sign(local[np.arange(len(face)), face])
        return np.maximum(side * turned.astype(np.float32)[face], 0.0)

    def _develop(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Exposure, noise and rounding to 8 bit."""
        row, column = (int(offset) for offset in rng.integers(NOISE_TILE_MARGIN, size=2))
        height, width = image.shape[:2]
        image *= np.float32(rng.uniform(0.94, 1.06))
        image += self._noise[row : row + height, column : column + width] * np.float32(self._weather.noise)
        np.clip(image, 0, 255, out=image)
        return image.astype(np.uint8)


def _headlights(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Light of the ego vehicle's headlights at points of the ego frame: a cone ahead that fades with distance."""
    ahead = np.maximum(x - np.float32(3.6), np.float32(0.0))
    angle = np.arctan2(y, np.maximum(ahead, np.float32(0.1)))
    cone = np.exp(-((angle / np.float32(math.radians(24.0))) ** 2))
    return (np.float32(0.95) * cone * ahead / (ahead + 2) / (1 + (ahead / 17) ** 2)).astype(np.float32)
