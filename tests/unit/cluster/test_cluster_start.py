"""What is decided before Ray starts: where results go, how the package travels, what a failed start says."""

import json
from pathlib import Path

import pytest

from sensorlab.cluster import start
from sensorlab.cluster.start import ENVIRONMENT, OUTPUT_ROOT_VARIABLE, output_root, runtime_env
from sensorlab.errors import UserError

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in (JOB, OUTPUT_ROOT_VARIABLE, "PYTHONPATH", *ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_a_relative_output_lies_beside_the_working_directory(tmp_path):
    assert output_root("outputs") == tmp_path / "outputs"
    assert (tmp_path / "outputs").is_dir()


def test_a_job_does_not_write_into_its_throw_away_directory(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(JOB, "{}")
    assert output_root("outputs") == tmp_path / "home" / "sensorlab-outputs"
    assert OUTPUT_ROOT_VARIABLE in capsys.readouterr().out
    assert output_root(str(tmp_path / "absolute")) == tmp_path / "absolute"


def test_the_variable_wins(monkeypatch, tmp_path):
    monkeypatch.setenv(OUTPUT_ROOT_VARIABLE, str(tmp_path / "chosen"))
    assert output_root("/somewhere/else") == tmp_path / "chosen"


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to the output directory .*/file/deeper.*output_dir"):
        output_root(str(tmp_path / "file" / "deeper"))


def test_local_workers_read_the_package_in_place(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    variables = runtime_env(local=True)["env_vars"]
    package = Path(variables["PYTHONPATH"].split(":")[0]) / "sensorlab"
    assert package / "cluster" / "start.py" == Path(start.__file__)
    assert variables["PYTHONPATH"].endswith(":/mine")
    assert variables["RAY_DATA_USE_DATASOURCE_V2"] == "0"


def test_other_clusters_get_a_copy_of_the_package():
    environment = runtime_env(local=False)
    assert [Path(path).name for path in environment["py_modules"]] == ["sensorlab"]
    assert "PYTHONPATH" not in environment["env_vars"]


def test_what_the_submitter_has_set_is_left_alone(monkeypatch):
    job = {"py_modules": ["gcs://x.zip"], "env_vars": {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2"}}
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": job}))
    environment = runtime_env(local=False)
    assert "py_modules" not in environment
    assert "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S" not in environment["env_vars"]
    assert "RAY_TRAIN_COLLECTIVE_TIMEOUT_S" in environment["env_vars"]


def test_a_value_of_the_user_wins(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    assert runtime_env(local=True)["env_vars"]["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"


def test_workers_are_told_where_their_cluster_is():
    assert runtime_env(False, {"RAY_ADDRESS": "10.0.0.1:6379"})["env_vars"]["RAY_ADDRESS"] == "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("RPC error: InvalidAuthToken: missing or incorrect"), "refused the authentication token"),
        (ConnectionError("Failed to connect to Ray cluster at h:1"), "does not answer"),
        (RuntimeError("Version mismatch: The cluster was started with Ray 2.9"), "other versions"),
    ],
)
def test_failed_starts_are_explained(error, message):
    outer = ConnectionError("Failed to connect to Ray cluster") if "Auth" in str(error) else error
    if outer is not error:
        outer.__cause__ = error
    text = start._explain(outer, "h:1")
    assert text is not None
    assert message in text
    assert "h:1" in text


def test_a_bug_keeps_its_traceback():
    assert start._explain(ZeroDivisionError("x"), "h:1") is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "An http address is for `ray job submit`"),
        ("ray://127.0.0.1:10001", "ray:// clients cannot"),
        ("somewhere", "expected host:port"),
        ("127.0.0.1:1", "does not answer"),
    ],
)
def test_addresses_are_checked_before_ray_tries_for_minutes(address, message):
    with pytest.raises(UserError, match=message):
        start.connect(address=address)
