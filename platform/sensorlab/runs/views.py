"""The prepared page of a sweep: its charts arranged before anybody opens it.

MLflow's pages can share a view: the state of the page, stored as a tag of the experiment and named in the address.
Without one, every visitor starts with charts in alphabetical order (``perf/`` first) and a table without columns. The
view built here shows searched values against the objective in parallel coordinates and the objective's curves first,
pictures next, then ``val/``, ``train/``, ``perf/``, ``system/``; its table has the searched values and the objective
as columns.

The layout of that state is MLflow's own affair (found by reading the page of 3.17, looked at with 3.17.2). Should
another version refuse it, the page says so; the address of :func:`sensorlab.runs.links.sweep_link` needs no view.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from sensorlab.runs.client import open_client
from sensorlab.runs.links import shared_view_link, trials_filter
from sensorlab.runs.names import log10_name, metric_name
from sensorlab.runs.store import Store

SECTIONS = ("val", "train", "perf", "system")
MAX_AXES = 8
MAX_IMAGE_SERIES = 4
SEED = "seed"
_VIEW_TAG = "mlflow.sharedViewState."


def publish_sweep_view(
    store: Store,
    parent_run_id: str,
    objective: str,
    mode: str,
    trial_params: Sequence[Mapping[str, str]],
    images: Mapping[str, int] | None = None,
) -> str:
    """Store the view of a sweep and return its address. Publishing again replaces the view under the same address.

    Args:
        objective: metric that ranks the trials, as recorded.
        mode: "max" or "min".
        trial_params: stored parameters of every trial; those that differ become axes and columns.
        images: keys of image series to show, with the step to open them at (the page would open at step 0).
    """
    state = sweep_view(parent_run_id, metric_name(objective), mode, varying_params(trial_params), images or {})
    key = hashlib.sha256(parent_run_id.encode()).hexdigest()[:16]
    # The page reads "deflate;" + base64 of zlib as well as plain JSON; experiment tags hold 20,000 characters.
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    open_client(store.uri).set_experiment_tag(store.experiment_id, f"{_VIEW_TAG}{key}", packed)
    return shared_view_link(store, key)


def varying_params(trial_params: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the parameters that differ between trials, in their recorded order."""
    names = list(dict.fromkeys(name for params in trial_params for name in params))
    return [name for name in names if len({params.get(name) for params in trial_params}) > 1]


def common_images(stored: Sequence[set[tuple[str, int]]]) -> dict[str, int]:
    """Per image series, the last step at which every trial that has the series has a picture, so that they compare.

    Trials that were stopped early limit the step; without a common one, the last step of the first trial with pictures.

    Args:
        stored: (key, step) of every trial's pictures, best trial first.
    """
    chosen: dict[str, int] = {}
    for key in sorted({key for images in stored for key, _ in images}):
        steps = [{step for name, step in images if name == key} for images in stored]
        having = [own for own in steps if own]
        chosen[key] = max(set.intersection(*having) or having[0])
    return chosen


def sweep_view(
    parent_run_id: str, objective: str, mode: str, params: Sequence[str], images: Mapping[str, int]
) -> dict[str, Any]:
    """The state of the page, as MLflow's page writes it itself."""
    companions = {log10_name(name) for name in params}
    columns = [name for name in params if name not in companions]  # tables show the values,
    axes = [name for name in params if log10_name(name) not in params]  # linear axes their logarithms
    axes = ([name for name in axes if name != SEED] or axes)[:MAX_AXES]  # of repeats; it explains nothing
    # Names of many axes overlap in half a page, so then the two charts of the first section stand below each other.
    wide = {"columns": 1, "cardHeight": 300} if len(axes) > 3 else {"columns": 2, "cardHeight": 360}
    sections = [{**_section("sweep", "Sweep", generated=False), **wide}]
    sections += [_section(name, name, generated=True) for name in SECTIONS]
    charts = [_line_chart(objective)]
    if axes:
        charts.insert(0, _parallel_chart(axes, objective))
    if images:
        sections.insert(1, {**_section("pictures", "Pictures", generated=False), "columns": 1, "cardHeight": 480})
        charts += [_image_chart(key, step) for key, step in list(images.items())[:MAX_IMAGE_SERIES]]
    return {
        "searchFilter": trials_filter(parent_run_id),
        "orderByKey": f"metrics.`{objective}`",
        "orderByAsc": mode == "min",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"metrics.`{objective}`", *(f"params.`{name}`" for name in columns)],
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,  # keep this order of sections
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
        "groupBy": None,
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _section(uuid: str, name: str, generated: bool) -> dict[str, Any]:
    return {
        "uuid": f"section-{uuid}",
        "name": name,
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": generated,
    }


def _parallel_chart(params: list[str], objective: str) -> dict[str, Any]:
    return {
        "uuid": "chart-parallel",
        "type": "PARALLEL",
        "runsCountToCompare": 100,
        "metricSectionId": "section-sweep",
        "deleted": False,
        "isGenerated": False,
        "selectedParams": params,
        "selectedMetrics": [objective],
        "showAllRuns": True,
    }


def _line_chart(metric: str) -> dict[str, Any]:
    return {
        "uuid": "chart-objective",
        "type": "LINE",
        "runsCountToCompare": 20,
        "metricSectionId": "section-sweep",
        "deleted": False,
        "isGenerated": False,
        "metricKey": metric,
        "displayName": metric,
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _image_chart(key: str, step: int) -> dict[str, Any]:
    return {
        "uuid": f"chart-image-{key}",
        "type": "IMAGE",
        "runsCountToCompare": 10,
        "metricSectionId": "section-pictures",
        "deleted": False,
        "isGenerated": False,
        "imageKeys": [key],
        "step": step,
        "showRunParams": False,
    }
