"""A real worker group whose reports reach its caller, and which ends when the caller does."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import ray

TOYS = Path(__file__).resolve().parents[1] / "unit" / "cluster"
sys.path.insert(0, str(TOYS))

from toy_program import ToyProgram  # noqa: E402

from sensorlab.cluster import relay  # noqa: E402
from sensorlab.cluster.start import connect, disconnect  # noqa: E402
from sensorlab.cluster.trainer import fit_run  # noqa: E402
from sensorlab.cluster.worker import RunSpec  # noqa: E402
from sensorlab.config import as_dict  # noqa: E402
from sensorlab.experiment import experiment_from  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TOYS))  # the toy's module must be found by the workers too
    yield connect(num_cpus=2)
    disconnect()


class Stop(BaseException):
    """What a scheduler's decision looks like in the trial."""


def test_a_group_ends_with_its_caller_and_the_next_one_goes_on(cluster, tmp_path):
    tree = {
        "name": "toy",
        "task": {"name": "bev_segmentation"},
        "data": {"path": "d"},
        "train": {"duration": "6 epochs"},
        "resources": {"num_workers": 2, "cpus_per_worker": 1.0},
    }
    run_dir = tmp_path / "run"
    spec = RunSpec(as_dict(experiment_from(tree)), str(run_dir), "d", ToyProgram(epoch_s=0.5), in_process=False)
    reports = []

    def stop_at_two(report):
        reports.append(report)
        if report["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        fit_run(spec, name="run", send=stop_at_two, max_failures=0)
    assert [report["epoch"] for report in reports] == [1, 2]
    deadline = time.monotonic() + 120
    while ray.available_resources().get("CPU", 0.0) < 2.0:
        assert time.monotonic() < deadline, "the stopped group still holds its CPUs"
        time.sleep(0.1)
    queue, seen = relay._queue, []
    assert fit_run(spec, name="again", send=seen.append, max_failures=0)["epochs"] == 6
    assert relay._queue is queue, "the queue did not serve the next group"
    first = int((run_dir / "attempts.txt").read_text().split()[1])
    assert first < 6, "the stopped group went on to the end of its training"
    assert [report["epoch"] for report in seen] == list(range(first + 1, 7)), "reports of the stopped group came late"
