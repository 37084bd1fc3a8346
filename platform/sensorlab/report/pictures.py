"""The pictures of a trial's validation, from its directory or from the tracking store, made small enough to embed."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sensorlab.report.content import Panel, Trial

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_PANELS = 4  # per trial
MAX_SIDE = 1200  # pixels
_QUALITY = 85  # of JPEG: text and thin lines in a picture stay legible

_FILE = re.compile(r"step-(\d+)-(\d+)\.png")


@dataclass(frozen=True)
class _Stored:
    """A picture that can be had: its series, its step and how to get its bytes."""

    name: str
    step: int
    load: Callable[[], bytes]


def panels_of(trial: Trial, client: MlflowClient | None = None) -> tuple[Panel, ...]:
    """Up to ``MAX_PANELS`` pictures of a trial: those of its best evaluation, or else of the one nearest to it.

    Args:
        client: of the tracking store; asked where the trial's directory has no pictures. Errors of the store pass.
    """
    stored = _files(trial.run_dir / "panels")
    if not stored and client is not None and trial.run_id:
        stored = _recorded(client, trial.run_id)
    if not stored:
        return ()
    wanted = trial.best_step if trial.best_step is not None else max(picture.step for picture in stored)
    step = min((picture.step for picture in stored), key=lambda step: (abs(step - wanted), step))
    chosen = sorted((picture for picture in stored if picture.step == step), key=lambda picture: picture.name)
    panels = (_embedded(picture) for picture in chosen[:MAX_PANELS])
    return tuple(panel for panel in panels if panel is not None)


def _files(folder: Path) -> list[_Stored]:
    found = ((path, _FILE.fullmatch(path.name)) for path in folder.glob("step-*.png"))
    return [_Stored(f"panel_{match[2]}", int(match[1]), path.read_bytes) for path, match in found if match]


def _recorded(client: MlflowClient, run_id: str) -> list[_Stored]:
    """MLflow names pictures ``images/<series>+step+<n>+timestamp+<ms>+<uuid>.png``, slashes of the series as ``~``,
    with a smaller ``...+compressed.webp`` beside each."""
    paths = [file.path for file in client.list_artifacts(run_id, "images")]
    chosen: dict[tuple[str, int], str] = {}
    for path in sorted(paths, key=lambda path: path.endswith(".png")):  # the original, where both are there
        parts = Path(path).name.split("+")
        if len(parts) >= 6 and parts[1] == "step" and "panel" in parts[0] and parts[2].isdigit():
            chosen[(parts[0].replace("~", "/"), int(parts[2]))] = path
    return [_Stored(name, step, _download(client, run_id, path)) for (name, step), path in chosen.items()]


def _download(client: MlflowClient, run_id: str, path: str) -> Callable[[], bytes]:
    def load() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return Path(client.download_artifacts(run_id, path, folder)).read_bytes()

    return load


def _embedded(picture: _Stored) -> Panel | None:
    """The picture as JPEG, or as PNG where that is smaller (flat colours); ``None`` if it cannot be read."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(picture.load())).convert("RGB")
    except (OSError, ValueError, SyntaxError):  # gone meanwhile, or cut off; Pillow raises all three
        return None
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    encoded = {"image/jpeg": io.BytesIO(), "image/png": io.BytesIO()}
    image.save(encoded["image/jpeg"], "JPEG", quality=_QUALITY, optimize=True, subsampling=0)
    image.save(encoded["image/png"], "PNG", optimize=True)
    mime, data = min(((mime, buffer.getvalue()) for mime, buffer in encoded.items()), key=lambda item: len(item[1]))
    return Panel(picture.name, picture.step, mime, data, image.width, image.height)


def series(panels: Iterable[tuple[Panel, ...]]) -> list[str]:
    """Names of all series, in order, so that the same sample of two trials can stand side by side."""
    return sorted({panel.name.rpartition("/")[2] for group in panels for panel in group})
