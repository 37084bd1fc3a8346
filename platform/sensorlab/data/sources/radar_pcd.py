"""Radar sweeps of nuScenes: binary ``.pcd`` files (PCL point cloud format, version 0.7).

The header is text (``FIELDS``, ``SIZE``, ``TYPE``, ``COUNT``, ``POINTS``, ...) and ends with the line ``DATA binary``;
after it come the points as packed little-endian records. The header is turned into one structured dtype, so a file is
one read whatever the number of points.
"""

from __future__ import annotations

import numpy as np

from sensorlab.data.sample import RADAR_FIELDS

_KINDS = {"F": "f", "I": "i", "U": "u"}
_SIZES = {"f": {4, 8}, "i": {1, 2, 4, 8}, "u": {1, 2, 4, 8}}


def parse_radar_pcd(data: bytes) -> np.ndarray:
    """Points (N, 18) float32 in the order of ``RADAR_FIELDS``, unfiltered, in the radar's frame.

    As in the official reader, a NaN in the first point means an empty sweep; the cloud also ends before the first point
    without a position (padding of fixed-size exports).

    Raises:
        ValueError: not a binary PCD file, a field is missing or inconsistent, or the file is truncated.
    """
    header, payload = _split_header(data)
    dtype = _record_type(header)
    count = _point_count(header)
    needed = count * dtype.itemsize
    if len(payload) < needed:
        raise ValueError(f"truncated: {count} points need {needed} bytes after the header, found {len(payload)}")
    records = np.frombuffer(payload, dtype, count)
    points = np.empty((count, len(RADAR_FIELDS)), np.float32)
    for column, name in enumerate(RADAR_FIELDS):
        points[:, column] = records[name]
    if count and np.isnan(points[0]).any():
        return points[:0]
    without_position = np.isnan(points[:, :3]).any(axis=1)
    return points[: int(without_position.argmax())] if without_position.any() else points


def _split_header(data: bytes) -> tuple[dict[str, list[str]], memoryview]:
    """Header lines as ``{key: words}`` and the bytes after the ``DATA`` line."""
    header: dict[str, list[str]] = {}
    position = 0
    while "DATA" not in header:
        end = data.find(b"\n", position, position + 4096)
        if end < 0:
            raise ValueError("not a PCD file: its header has no DATA line")
        try:
            line = data[position:end].decode("ascii").strip()
        except UnicodeDecodeError:
            raise ValueError("not a PCD file: its header is not text") from None
        position = end + 1
        if line and not line.startswith("#"):
            key, *words = line.split()
            header[key] = words
    if header["DATA"] != ["binary"]:
        raise ValueError(f"PCD data is {' '.join(header['DATA'])!r}, expected 'binary'")
    return header, memoryview(data)[position:]


def _record_type(header: dict[str, list[str]]) -> np.dtype:
    try:
        names, sizes, kinds = header["FIELDS"], header["SIZE"], header["TYPE"]
    except KeyError as error:
        raise ValueError(f"the PCD header has no {error.args[0]} line") from None
    counts = header.get("COUNT", ["1"] * len(names))
    if not len(names) == len(sizes) == len(kinds) == len(counts):
        raise ValueError("the PCD header's FIELDS, SIZE, TYPE and COUNT differ in length")
    missing = [name for name in RADAR_FIELDS if name not in names]
    if missing:
        raise ValueError(f"the PCD file has no radar field {missing[0]!r}")
    fields = []
    for name, size, kind, count in zip(names, sizes, kinds, counts, strict=True):
        code = _KINDS.get(kind, "")
        if count != "1" or not size.isdigit() or int(size) not in _SIZES.get(code, set()):
            raise ValueError(f"PCD field {name!r} has unsupported SIZE {size}, TYPE {kind}, COUNT {count}")
        fields.append((name, f"<{code}{size}"))
    if len(set(names)) != len(names):
        raise ValueError("the PCD header names a field twice")
    return np.dtype(fields)


def _point_count(header: dict[str, list[str]]) -> int:
    numbers = {}
    for key in ("WIDTH", "HEIGHT", "POINTS"):
        words = header.get(key, [])
        if len(words) != 1 or not words[0].isdigit():
            raise ValueError(f"the PCD header's {key} line is missing or not a number")
        numbers[key] = int(words[0])
    if numbers["WIDTH"] * numbers["HEIGHT"] != numbers["POINTS"]:
        raise ValueError(f"the PCD header is inconsistent: WIDTH x HEIGHT is not POINTS ({numbers})")
    return numbers["POINTS"]
