"""What fits on a cluster, what each run gets of it, and the message when nothing does."""

import math

import pytest
from toy_program import ToyProgram

from sensorlab.cluster.preflight import GB, Capacity, Demand, Share, capacity, open_tracking, size
from sensorlab.cluster.single import RunPlan, run_single
from sensorlab.cluster.start import Cluster
from sensorlab.cluster.trainer import demand, trial_resources, worker_resources
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig, experiment_from

LAPTOP = [{"CPU": 2.0}]
BOX = {"CPU": 16.0, "GPU": 2.0, "memory": 40.0 * GB, "object_store_memory": 16.0 * GB}


def concurrent_runs(demand: Demand, nodes: list[dict[str, float]], limit: int | None = None) -> int:
    return capacity(demand, nodes, limit).runs


def experiment(**resources: object) -> ExperimentConfig:
    tree = {
        "name": "toy",
        "task": {"name": "bev_segmentation"},
        "data": {"path": "d"},
        "train": {"duration": "1 epoch"},
        "resources": resources,
    }
    return experiment_from(tree)


def test_as_many_runs_as_the_cpus_allow():
    assert concurrent_runs(Demand(1, 0.75, 0.0, 0.25), LAPTOP) == 2
    assert concurrent_runs(Demand(1, 1.0, 0.0, 0.5), LAPTOP) == 1
    assert concurrent_runs(Demand(1, 0.1, 0.0, 0.1), LAPTOP, limit=3) == 3


def test_what_limits_them_is_said():
    two = Demand(1, 0.75, 0.0, 0.25, memory_per_worker=4 * GB, is_memory_known=True)
    assert capacity(two, LAPTOP).describe() == "2 at a time: CPUs (1 each, 2 on the node)"
    node = {"CPU": 8.0, "memory": 9.1 * GB}
    assert capacity(two, [node]).describe() == "2 at a time: memory (4.0 GB each, 9.1 GB on the node)"
    assert capacity(two, [node], 1, "sweep.max_concurrent").describe() == "1 at a time: sweep.max_concurrent"
    assert capacity(two, [node], 5, "sweep.max_concurrent").runs == 2
    gpu = Demand(1, 1.0, 0.5, 0.5)
    nodes = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0}]
    assert capacity(gpu, nodes).describe() == "4 at a time: GPUs (0.5 each, 2 on 2 nodes)"
    mixed = [{"CPU": 1.0, "GPU": 4.0}, {"CPU": 16.0}]  # GPUs without CPUs beside them
    fitting = capacity(gpu, mixed)
    assert fitting.runs == 1
    assert fitting.limited_by == "what fits on one node (1 CPUs + 4 GPUs, 16 CPUs)"


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
    assert "memory" not in message


def test_a_worker_does_not_straddle_nodes():
    four_small = [{"CPU": 3.0}] * 4
    assert concurrent_runs(Demand(1, 2.0, 0.0, 0.5), four_small) == 4  # 12 / 2.5 would also be 4
    assert concurrent_runs(Demand(1, 2.0, 0.0, 0.1), four_small) == 4  # 12 / 2.1 would be 5
    with pytest.raises(UserError, match="largest: 3 CPUs"):
        concurrent_runs(Demand(1, 4.0, 0.0, 0.0), four_small)


@pytest.mark.parametrize(
    ("share", "runs"), [(0.5, 4), (0.34, 4), (1 / 3, 6), (0.25, 8), (0.6, 2), (0.9, 2), (1.0, 2), (2.0, 1)]
)
def test_a_part_of_a_gpu_is_of_one_gpu(share: float, runs: int):
    assert concurrent_runs(Demand(1, 0.5, share, 0.25), [BOX]) == runs  # 2 GPUs


def test_gpus_limit_groups_too():
    assert concurrent_runs(Demand(2, 1.0, 1.0, 0.5), [BOX, BOX]) == 2
    assert concurrent_runs(Demand(2, 1.0, 0.6, 0.5), [BOX]) == 1
    with pytest.raises(UserError, match=r"needs 6\.5 CPUs"):
        concurrent_runs(Demand(3, 2.0, 1.0, 0.5), [BOX])


def test_parts_are_not_lost_to_rounding():
    assert concurrent_runs(Demand(1, 0.1, 0.0, 0.0), [{"CPU": 0.3}]) == 3
    assert concurrent_runs(Demand(1, 0.5, 0.0, 0.1), [{"CPU": 1.2}]) == 2


def test_memory_limits_and_is_reserved():
    group = Demand(2, 1.0, 0.0, 0.0, 0.1, memory_per_worker=6 * GB, driver_memory=1.2 * GB, is_memory_known=True)
    assert group.memory == 13.2 * GB
    assert capacity(group, [BOX]).runs == 3  # 39.6 of 40 GB; by CPUs 7
    assert capacity(group, [BOX]).share.memory == 6 * GB
    small = {"CPU": 16.0, "memory": 11.0 * GB}  # one worker on each, and the second one's node is another
    assert capacity(group, [small, small]).runs == 1
    with pytest.raises(UserError) as error:
        capacity(group, [{"CPU": 16.0, "memory": 5.0 * GB}] * 4)
    assert "and 13.2 GB of memory; the cluster has" in str(error.value)
    assert "memory for training: 20.0 GB, at most 5.0 GB on a node" in str(error.value)
    assert "resources.memory_gb" in str(error.value)


def test_an_assumption_about_memory_makes_no_run_impossible():
    assumed = Demand(1, 0.5, 0.0, 0.25, memory_per_worker=2 * GB)
    fitting = capacity(assumed, [{"CPU": 8.0, "memory": 1.5 * GB}])
    assert fitting.describe() == "1 at a time: memory, which is short"
    assert fitting.share.memory == 0
    assert fitting.warning.startswith("one run is taken to need 2.0 GB of memory, more than there is (memory for")
    assert "Set resources.memory_gb" in fitting.warning
    assert capacity(assumed, [{"CPU": 8.0, "memory": 4.5 * GB}]) == Capacity(
        2, "memory (2.0 GB each, 4.5 GB on the node)", Share(2 * GB)
    )
    with pytest.raises(UserError, match=r"does not fit: one run needs 9\.25 CPUs"):
        capacity(Demand(1, 9.0, 0.0, 0.25, memory_per_worker=2 * GB), [{"CPU": 8.0, "memory": 1.5 * GB}])


def test_the_object_store_is_divided():
    one = Demand(1, 4.0, 0.0, 0.0)
    assert capacity(one, [BOX]).share.object_store == GB  # 16 GB, half of it for 4 runs of 2 streams
    head = {"memory": 9.0 * GB, "object_store_memory": 9.0 * GB}  # runs nothing: Ray Data does not count it either
    assert capacity(one, [head, BOX]).share.object_store == GB
    assert capacity(one, [BOX], limit=1).share.object_store == 4 * GB
    assert capacity(one, [{"CPU": 8.0}]).share.object_store is None


def test_streams_that_need_much_of_the_object_store_limit_the_runs():
    assert capacity(Demand(1, 4.0, 0.0, 0.0, object_store=3 * GB), [BOX]).runs == 4
    fitting = capacity(Demand(1, 4.0, 0.0, 0.0, object_store=6 * GB), [BOX])
    assert fitting.describe() == "2 at a time: object store (6.0 GB each, 12.8 GB for it in the cluster)"
    assert fitting.warning == ""
    fitting = capacity(Demand(1, 4.0, 0.0, 0.0, object_store=13 * GB), [BOX])
    assert fitting.runs == 1
    assert fitting.warning.startswith("the streams of one run hold 13.0 GB in the object store, which has 16.0 GB: Ray")


def test_what_a_run_asks_for():
    alone = demand(experiment(cpus_per_worker=0.75), in_sweep=True)
    assert alone == Demand(1, 0.75, 0.0, 0.5, memory_per_worker=2 * GB)
    given = demand(experiment(cpus_per_worker=0.75, memory_gb=0.5), in_sweep=True, object_store=7)
    assert given == Demand(1, 0.75, 0.0, 0.5, memory_per_worker=0.5 * GB, is_memory_known=True, object_store=7)
    group = demand(experiment(num_workers=2, gpus_per_worker=1.0), in_sweep=True)
    assert (group.driver_cpus, group.gpus) == (0.1, 2.0)
    assert group.memory == pytest.approx(5.2 * GB)
    assert group.describe() == (
        "2.6 CPUs (2 workers x 1 CPU + 0.1 CPU to start them + 0.5 CPU for reading data), 2 GPUs and 5.2 GB of memory"
    )
    assert demand(experiment(num_workers=2), in_sweep=False).driver_memory == 0  # it is the driver, which runs already


def test_what_ray_is_asked_to_reserve():
    share = Share(memory=3 * GB)
    one, group = experiment(gpus_per_worker=0.5).resources, experiment(num_workers=2).resources
    assert worker_resources(one, share) == {"CPU": 1.0, "GPU": 0.5, "memory": 3 * GB}
    assert trial_resources(one, share) == worker_resources(one, share)
    assert trial_resources(group, share) == {"CPU": 0.1, "memory": 1.2 * GB}
    assert trial_resources(group, Share()) == {"CPU": 0.1}
    assert worker_resources(group, Share()) == {"CPU": 1.0}


@pytest.mark.parametrize("gpus", [1.5, 2.25])
def test_more_than_one_gpu_is_a_whole_number(gpus: float):
    with pytest.raises(UserError, match=rf"{gpus:g} GPUs: a part of one GPU \(below 1\) or a whole number of them"):
        experiment(gpus_per_worker=gpus)
    assert experiment(gpus_per_worker=math.ceil(gpus)).resources.gpus_per_worker == math.ceil(gpus)


def test_workers_of_a_group_have_gpus_of_their_own():
    with pytest.raises(UserError, match=r"2 workers with gpus_per_worker=0\.5 would share a GPU, and NCCL"):
        experiment(num_workers=2, gpus_per_worker=0.5)
    assert experiment(num_workers=2, gpus_per_worker=0.6).resources.gpus_per_worker == 0.6
    assert experiment(num_workers=1, gpus_per_worker=0.5).resources.gpus_per_worker == 0.5


def test_sizes_are_readable():
    assert [size(n) for n in (9.14e9, 1e8, 38e6)] == ["9.1 GB", "0.1 GB", "38 MB"]


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
