"""What fits on a cluster, and the message when nothing does."""

import pytest

from sensorlab.cluster.preflight import Demand, concurrent_runs
from sensorlab.errors import UserError

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
