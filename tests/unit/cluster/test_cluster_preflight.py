"""What fits on a cluster, and the message when nothing does."""

import pytest
from toy_program import ToyProgram

from sensorlab.cluster.preflight import Demand, concurrent_runs, open_tracking
from sensorlab.cluster.single import RunPlan, run_single
from sensorlab.cluster.start import Cluster
from sensorlab.errors import UserError
from sensorlab.experiment import experiment_from

LAPTOP = [{"CPU": 2.0}]


def test_as_many_runs_as_the_cpus_allow():
    assert concurrent_runs(Demand(1, 0.75, 0.0, 0.25), LAPTOP) == 2
    assert concurrent_runs(Demand(1, 1.0, 0.0, 0.5), LAPTOP) == 1
    assert concurrent_runs(Demand(1, 0.1, 0.0, 0.1), LAPTOP, limit=3) == 3


def test_the_reading_tasks_count():
    with pytest.raises(UserError, match=r"needs 2\.5 CPUs \(2 workers x 1 CPU \+ 0\.5 CPU for reading data\)"):
        concurrent_runs(Demand(2, 1.0, 0.0, 0.5), LAPTOP)


def test_message_names_what_is_there_and_what_to_change():
    with pytest.raises(UserError) as error:
        concurrent_runs(Demand(2, 1.0, 1.0, 0.5, driver_cpus=0.1), LAPTOP)
    message = str(error.value)
    assert "2.6 CPUs" in message
    assert "2 GPUs" in message
    assert "the cluster has 2 CPUs and 0 GPUs on 1 node" in message
    assert "resources.num_workers" in message


def test_a_worker_does_not_straddle_nodes():
    four_small = [{"CPU": 3.0}] * 4
    assert concurrent_runs(Demand(1, 2.0, 0.0, 0.5), four_small) == 4  # 12 / 2.5 would also be 4
    assert concurrent_runs(Demand(1, 2.0, 0.0, 0.1), four_small) == 4  # 12 / 2.1 would be 5
    with pytest.raises(UserError, match="largest: 3 CPUs"):
        concurrent_runs(Demand(1, 4.0, 0.0, 0.0), four_small)


def test_gpus_limit_too():
    nodes = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0}]
    assert concurrent_runs(Demand(1, 1.0, 1.0, 0.5), nodes) == 2
    assert concurrent_runs(Demand(1, 1.0, 0.5, 0.5), nodes) == 4


def test_thirds_are_not_lost_to_rounding():
    assert concurrent_runs(Demand(1, 0.1, 0.0, 0.0), [{"CPU": 0.3}]) == 3


def test_a_store_in_a_file_serves_one_node(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlruns.db"
    store = open_tracking(uri, "e", nodes=1)
    assert store is not None
    assert store.uri == uri
    with pytest.raises(UserError, match=r"is a file, and the cluster has 2 nodes: start an MLflow server"):
        open_tracking(uri, "e", nodes=2)
    assert open_tracking(None, "e", nodes=2) is None


def test_a_single_run_on_several_nodes_needs_a_server(tmp_path):
    tree = {
        "name": "toy",
        "task": {"name": "bev_segmentation"},
        "data": {"path": "d"},
        "train": {"duration": "1 epoch"},
    }
    plan = RunPlan(tmp_path / "runs" / "toy", experiment_from(tree), "d", f"sqlite:///{tmp_path}/mlruns.db")
    nodes = ({"CPU": 2.0}, {"CPU": 2.0})
    with pytest.raises(UserError, match="the cluster has 2 nodes"):
        run_single(plan, Cluster("10.0.0.1:6379", False, nodes), ToyProgram())
    assert not plan.run_dir.exists()
