"""Artifacts of a run on their way to the store: delivered from memory, kept in a folder while the store is away."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorlab.runs.models import deliver_model
from sensorlab.runs.names import metric_name
from sensorlab.runs.tables import note_table

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_READ_LATER = ("path", "model")  # kinds whose payload is where the content is


@dataclass(frozen=True)
class Artifact:
    """One artifact to deliver.

    Attributes:
        kind: "image" (a picture of a series with a step), "content" (bytes to store as a file), "table" (the same, and
            listed as a table), "path" (an existing file or folder, read when it is delivered) or "model" (an existing
            folder, see :mod:`sensorlab.runs.models`).
        name: image key; file name below the run's artifacts; the path's destination folder ("" = the root); or the
            model's name.
        step, time_ms: of an image.
        payload: (H, W), (H, W, 3) or (H, W, 4) uint8 array; the bytes; or the path as text.
    """

    kind: str
    name: str
    step: int
    time_ms: int
    payload: Any


class Outbox:
    """The folder of undelivered artifacts, oldest first. One JSON file each, with the payload beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._next = 1 + max((int(path.stem) for path in self._entries()), default=0)

    def __len__(self) -> int:
        return len(self._entries())

    def put(self, artifact: Artifact) -> None:
        """Write an artifact to the folder; it is complete on disk when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = self.folder / f"{self._next:08d}.json"
        self._next += 1
        meta = asdict(artifact)
        if artifact.kind not in _READ_LATER:
            payload = _png(artifact.payload) if artifact.kind == "image" else artifact.payload
            entry.with_suffix(".payload").write_bytes(payload)
            meta["payload"] = None
        # The entry counts once its JSON exists, so it is renamed into place last.
        temporary = entry.with_suffix(".part")
        temporary.write_text(json.dumps(meta))
        temporary.rename(entry)

    def first(self) -> tuple[Path, Artifact] | None:
        """The oldest entry, or ``None``."""
        entries = self._entries()
        if not entries:
            return None
        meta = json.loads(entries[0].read_text())
        if meta["kind"] not in _READ_LATER:
            content = entries[0].with_suffix(".payload").read_bytes()
            meta["payload"] = _pixels(content) if meta["kind"] == "image" else content
        return entries[0], Artifact(**meta)

    def remove(self, entry: Path) -> None:
        """Forget a delivered entry."""
        entry.unlink(missing_ok=True)
        entry.with_suffix(".payload").unlink(missing_ok=True)
        if not self._entries():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _entries(self) -> list[Path]:
        return sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []


def deliver(client: MlflowClient, run_id: str, artifact: Artifact) -> None:
    """Upload one artifact. Raises what MLflow raises."""
    if artifact.kind == "image":
        from PIL import Image

        client.log_image(
            run_id,
            Image.fromarray(artifact.payload),
            key=image_key(artifact.name),
            step=artifact.step,
            timestamp=artifact.time_ms,
            synchronous=True,
        )
    elif artifact.kind in ("content", "table"):
        head, _, leaf = artifact.name.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="sensorlab-") as folder:
            path = Path(folder) / leaf
            path.write_bytes(artifact.payload)
            client.log_artifact(run_id, str(path), head or None)
        if artifact.kind == "table":
            note_table(client, run_id, artifact.name)
    else:
        path = Path(artifact.payload)
        if not path.exists():
            raise FileNotFoundError(f"artifact {path} no longer exists")
        if artifact.kind == "model":
            deliver_model(client, run_id, artifact.name, path)
        elif path.is_dir():
            client.log_artifacts(run_id, str(path), artifact.name or None)
        else:
            client.log_artifact(run_id, str(path), artifact.name or None)


def image_key(name: str) -> str:
    """The key of an image series as MLflow accepts it."""
    return metric_name(name).replace("+", "_")


def stored_images(client: MlflowClient, run_id: str) -> set[tuple[str, int]]:
    """(key, step) of the images that a run already has in full, so that a resumed run does not add them twice.

    MLflow names the files ``images/<key>+step+<n>+timestamp+<ms>+<uuid>.png`` and, written second,
    ``...+compressed.webp``; slashes of the key are ``~``.
    """
    stored = set()
    for file in client.list_artifacts(run_id, "images"):
        parts = Path(file.path).name.split("+")
        if len(parts) == 7 and parts[1] == "step" and parts[6].startswith("compressed"):
            stored.add((parts[0].replace("~", "/"), int(parts[2])))
    return stored


def checked_image(image: np.ndarray) -> np.ndarray:
    """A private copy of a picture.

    Raises:
        ValueError: not uint8, or not (H, W), (H, W, 3) or (H, W, 4).
    """
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"image must be (H, W[, 3 or 4]) uint8, got {array.shape} {array.dtype}")
    return array.copy()


def _png(array: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _pixels(content: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)
