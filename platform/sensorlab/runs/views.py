"""The prepared page of a sweep: its charts arranged before anybody opens it.

MLflow's pages can share a view: the state of the page, stored as a tag of the experiment and named in the address.
Without one, every visitor starts with charts in alphabetical order (``perf/`` first) and a table without columns. The
view built here shows searched values against the objective in parallel coordinates and the objective's curves first,
then ``val/``, ``train/``, ``perf/``, ``system/``, and its table has the searched values and the objective as columns.

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
_VIEW_TAG = "mlflow.sharedViewState."


def publish_sweep_view(
    store: Store,
    parent_run_id: str,
    objective: str,
    mode: str,
    trial_params: Sequence[Mapping[str, str]],
) -> str:
    """Store the view of a sweep and return its address. Publishing again replaces the view under the same address.

    Args:
        objective: metric that ranks the trials, as recorded.
        mode: "max" or "min".
        trial_params: stored parameters of every trial; those that differ become axes and columns.
    """
    state = sweep_view(parent_run_id, metric_name(objective), mode, varying_params(trial_params))
    key = hashlib.sha256(parent_run_id.encode()).hexdigest()[:16]
    # The page reads "deflate;" + base64 of zlib as well as plain JSON; experiment tags hold 20,000 characters.
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    open_client(store.uri).set_experiment_tag(store.experiment_id, f"{_VIEW_TAG}{key}", packed)
    return shared_view_link(store, key)


def varying_params(trial_params: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the parameters that differ between trials, in their recorded order."""
    names = list(dict.fromkeys(name for params in trial_params for name in params))
    return [name for name in names if len({params.get(name) for params in trial_params}) > 1]


def sweep_view(parent_run_id: str, objective: str, mode: str, params: Sequence[str]) -> dict[str, Any]:
    """The state of the page, as MLflow's page writes it itself."""
    companions = {log10_name(name) for name in params}
    columns = [name for name in params if name not in companions]  # tables show the values,
    axes = [name for name in params if log10_name(name) not in params][:MAX_AXES]  # linear axes their logarithms
    # Names of many axes overlap in half a page, so then the two charts of the first section stand below each other.
    wide = {"columns": 1, "cardHeight": 300} if len(axes) > 3 else {"columns": 2, "cardHeight": 360}
    sections = [{**_section("sweep", "Sweep", generated=False), **wide}]
    sections += [_section(name, name, generated=True) for name in SECTIONS]
    charts = [_line_chart(objective)]
    if axes:
        charts.insert(0, _parallel_chart(axes, objective))
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
