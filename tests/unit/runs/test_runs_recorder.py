from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensorlab.runs.client import open_client
from sensorlab.runs.delivery import Delivery
from sensorlab.runs.pending import adopt, pending_id
from sensorlab.runs.recorder import RunRecorder, deliver_spool
from sensorlab.runs.spool import Record, Spool
from sensorlab.runs.store import Store

History = Callable[[str, str], list[tuple[int, float]]]
PATIENCE = 60.0


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While set, every call of the store fails as an unreachable server does (the real store is behind it)."""
    away = threading.Event()
    for name in ("connect", "send", "send_artifact"):
        original = getattr(Delivery, name)

        def call(self: Delivery, *args: Any, _original: Any = original) -> Any:
            if away.is_set():
                raise ConnectionError("no route to the store")
            return _original(self, *args)

        monkeypatch.setattr(Delivery, name, call)
    return away


def recorder(store: Store, run_id: str, spool_dir: Path, **options: Any) -> RunRecorder:
    return RunRecorder(store.uri, run_id, spool_dir, **{"interval_s": 0.02, "first_retry_s": 0.05, **options})


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_everything_recorded_reaches_the_store(
    store: Store, new_run: Callable[[], str], spool_dir: Path, history: History, tmp_path: Path
) -> None:
    run_id = new_run()
    record = recorder(store, run_id, spool_dir)
    record.log_params({"optim.lr": 1e-3, "encoder": "res18"}, log_scaled=["optim.lr"])
    record.set_tags({"sensorlab.config_digest": "ab12", "long": "x" * 9000})
    for step in range(100):
        record.log({"train/loss": 1 / (step + 1), "val/mAP@0.5": step * 0.01}, step)
    record.log_dict({"lr": 1e-3}, "config/resolved.json")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"\0" * 10)
    record.log_artifact(tmp_path / "model", "best_model")
    record.log_image(np.full((12, 16, 3), 7, np.uint8), "val/panel", 100)
    assert record.close("FINISHED", PATIENCE)

    client = open_client(store.uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"optim.lr": "0.001", "optim.log10_lr": "-3", "encoder": "res18"}
    assert run.data.tags["sensorlab.config_digest"] == "ab12"
    assert len(run.data.tags["long"]) == 8000
    assert history(run_id, "train/loss") == [(step, 1 / (step + 1)) for step in range(100)]
    assert history(run_id, "val/mAP_0.5") == [(step, step * 0.01) for step in range(100)]
    files = [file.path for file in client.list_artifacts(run_id, "images")]
    assert sorted(Path(file).suffix for file in files) == [".png", ".webp"]
    assert {file.path for file in client.list_artifacts(run_id, "best_model")} == {"best_model/weights.bin"}
    assert json.loads(Path(client.download_artifacts(run_id, "config/resolved.json")).read_text()) == {"lr": 1e-3}
    assert not list(spool_dir.glob("*.jsonl"))


def test_log_costs_no_more_than_twenty_microseconds(
    store: Store, new_run: Callable[[], str], spool_dir: Path, outage: threading.Event
) -> None:
    outage.set()  # the store must not matter
    record = recorder(store, new_run(), spool_dir, interval_s=30.0, batch_points=10**9)
    metrics = {f"train/metric_{index:02d}": index / 7 for index in range(20)}
    times = []
    for step in range(2000):
        start = time.perf_counter()
        record.log(metrics, step)
        times.append(time.perf_counter() - start)
    # The median: other processes of a busy machine stretch single calls.
    assert sorted(times)[1000] <= 20e-6
    record.close(deadline_s=0.0)


def test_log_does_not_wait_for_a_store_that_hangs(
    store: Store, new_run: Callable[[], str], spool_dir: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    original = Delivery.send

    def send(self: Delivery, records: Any) -> None:
        hangs.wait(30)
        original(self, records)

    monkeypatch.setattr(Delivery, "send", send)
    run_id = new_run()
    record = recorder(store, run_id, spool_dir, batch_points=10, capacity=50)
    for step in range(400):  # far more than the queue holds
        record.log({"loss": float(step)}, step)
        if step == 5:
            time.sleep(0.2)  # the thread hangs with the first points in its hands
    assert len(record._queue) <= 51
    assert len(spool_lines(spool_dir, run_id)) >= 340
    hangs.set()
    assert record.close("FINISHED", PATIENCE)
    assert history(run_id, "loss") == [(step, float(step)) for step in range(400)]


def spool_lines(spool_dir: Path, run_id: str) -> list[str]:
    return (spool_dir / f"{run_id}.jsonl").read_text().splitlines()


def test_an_outage_loses_and_doubles_nothing(
    store: Store,
    new_run: Callable[[], str],
    spool_dir: Path,
    history: History,
    outage: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_id = new_run()
    record = recorder(store, run_id, spool_dir, max_retry_s=0.1)
    with caplog.at_level(logging.WARNING):
        for step in range(90):
            if step == 30:
                assert record.flush(PATIENCE)
                outage.set()
            if step == 60:
                wait_for(lambda: record._failures > 0)
                assert not record.flush(0.0)  # on disk, not in the store
                outage.clear()
            record.log({"loss": float(step)}, step)
            record.log_image(np.zeros((4, 4), np.uint8), "panel", step) if step % 30 == 0 else None
        assert record.close("FINISHED", PATIENCE)
    assert history(run_id, "loss") == [(step, float(step)) for step in range(90)]
    assert caplog.text.count("cannot be written") == 1
    assert "is back" in caplog.text
    images = open_client(store.uri).list_artifacts(run_id, "images")
    assert len(images) == 6


def test_a_lost_answer_doubles_nothing(
    store: Store, new_run: Callable[[], str], spool_dir: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Delivery._log_batch
    failures = iter([True, False, True] + [False] * 100)

    def write_then_time_out(self: Delivery, **entities: Any) -> None:
        original(self, **entities)
        if next(failures):
            raise TimeoutError("the batch was stored, its answer was lost")

    monkeypatch.setattr(Delivery, "_log_batch", write_then_time_out)
    run_id = new_run()
    record = recorder(store, run_id, spool_dir)
    for step in range(20):
        record.log({"loss": step * 0.1, "nan": math.nan}, step)
        time.sleep(0.01)
    assert record.close("FINISHED", PATIENCE)
    assert history(run_id, "loss") == [(step, step * 0.1) for step in range(20)]
    assert [step for step, _ in history(run_id, "nan")] == list(range(20))


def test_a_resumed_run_has_one_point_per_step(
    store: Store, new_run: Callable[[], str], spool_dir: Path, history: History
) -> None:
    run_id = new_run()
    first = recorder(store, run_id, spool_dir)
    for step in range(1, 8):
        first.log({"loss": float(step)}, step)
    first.log({"val/iou": 0.3}, 5)
    first.log_image(np.zeros((4, 4, 3), np.uint8), "val/panel", 5)
    assert first.close("FAILED", PATIENCE)

    second = recorder(store, run_id, spool_dir)  # resumes from a checkpoint at step 4
    assert second.last_logged_steps(PATIENCE) == {"loss": 7, "val/iou": 5}
    for step in range(5, 11):
        second.log({"loss": float(step)}, step)
        if step in (5, 10):
            second.log({"val/iou": 0.3 + step / 100}, step)
            second.log_image(np.zeros((4, 4, 3), np.uint8), "val/panel", step)
    assert second.flush(PATIENCE)
    assert open_client(store.uri).get_run(run_id).info.status == "RUNNING"  # opened again
    assert second.close("FINISHED", PATIENCE)
    assert history(run_id, "loss") == [(step, float(step)) for step in range(1, 11)]
    assert history(run_id, "val/iou") == [(5, 0.3), (10, 0.4)]
    assert len(open_client(store.uri).list_artifacts(run_id, "images")) == 4


def test_a_spool_left_by_an_attempt_is_delivered_by_the_next(
    store: Store, new_run: Callable[[], str], spool_dir: Path, history: History, outage: threading.Event
) -> None:
    run_id = new_run()
    outage.set()
    first = recorder(store, run_id, spool_dir)
    for step in range(5):
        first.log({"loss": float(step)}, step)
    assert not first.close("FAILED", 0.2)
    second = recorder(store, run_id, spool_dir)
    assert second.last_logged_steps(0.1) == {"loss": 4}  # from the spool alone
    outage.clear()
    for step in range(3, 8):
        second.log({"loss": float(step)}, step)
    assert second.flush(PATIENCE)
    # The FAILED of the first attempt arrives late and must not end the second.
    assert open_client(store.uri).get_run(run_id).info.status == "RUNNING"
    assert second.close("FINISHED", PATIENCE)
    assert history(run_id, "loss") == [(step, float(step)) for step in range(8)]


def test_close_after_failure_keeps_everything_until_it_is_delivered(
    store: Store, new_run: Callable[[], str], spool_dir: Path, history: History, outage: threading.Event
) -> None:
    run_id = new_run()
    outage.set()
    record = recorder(store, run_id, spool_dir)
    record.log({"loss": 1.0}, 1)
    record.log_text("notes", "notes.txt")
    start = time.monotonic()
    assert record.close("FAILED", 0.3) is False
    assert time.monotonic() - start < 5
    assert record.close("FAILED", 0.3) is True  # a second call does nothing
    with pytest.raises(RuntimeError, match="closed"):
        record.log({"loss": 2.0}, 2)
    assert deliver_spool(store.uri, spool_dir, 0.2) == {run_id: False}
    outage.clear()
    assert deliver_spool(store.uri, spool_dir, PATIENCE) == {run_id: True}
    assert deliver_spool(store.uri, spool_dir, PATIENCE) == {}
    run = open_client(store.uri).get_run(run_id)
    assert run.info.status == "FAILED"
    assert history(run_id, "loss") == [(1, 1.0)]
    assert [file.path for file in open_client(store.uri).list_artifacts(run_id)] == ["notes.txt"]


def test_delivery_for_the_directories_of_a_sweep_touches_spools_only(
    store: Store, new_run: Callable[[], str], tmp_path: Path, history: History, outage: threading.Event
) -> None:
    outage.set()
    run_ids = [new_run() for _ in range(2)]
    for run_id in run_ids:
        spool_dir = tmp_path / "trials" / run_id[:8] / "recording"
        record = recorder(store, run_id, spool_dir)
        record.log({"loss": 1.0}, 1)
        assert record.close("FINISHED", 0.1) is False
        (spool_dir.parent / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    outage.clear()
    assert deliver_spool(store.uri, tmp_path, PATIENCE) == dict.fromkeys(run_ids, True)
    for run_id in run_ids:
        assert history(run_id, "loss") == [(1, 1.0)]
        run_dir = tmp_path / "trials" / run_id[:8]
        assert (run_dir / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 1.0}\n'
        assert deliver_spool(store.uri, run_dir, PATIENCE) == {}


def test_a_run_that_began_while_the_store_was_away_is_recorded_when_it_is_made(
    store: Store, new_run: Callable[[], str], spool_dir: Path, history: History
) -> None:
    record = recorder(store, pending_id("t1"), spool_dir)
    record.log_params({"lr": 0.1})
    record.log({"loss": 1.0}, 1)
    record.log_image(np.zeros((2, 2, 3), np.uint8), "panel", 1)
    record.log_text("notes", "notes.txt")
    start = time.monotonic()
    assert record.close("FINISHED", PATIENCE) is False  # and there is nothing to wait for
    assert time.monotonic() - start < PATIENCE / 2
    assert deliver_spool(store.uri, spool_dir, PATIENCE) == {}  # it has no run yet
    run_id = new_run()
    adopt(spool_dir, "t2", run_id)
    assert deliver_spool(store.uri, spool_dir, PATIENCE) == {}
    adopt(spool_dir, "t1", run_id)
    again = recorder(store, run_id, spool_dir)  # the run may also go on, in another attempt
    again.log({"loss": 0.5}, 2)
    assert again.close("FINISHED", PATIENCE)
    client = open_client(store.uri)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})
    assert history(run_id, "loss") == [(1, 1.0), (2, 0.5)]
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["images", "notes.txt"]
    assert not [file for file in spool_dir.iterdir() if file.suffix != ".lock"]


def test_values_that_are_no_finite_numbers(
    store: Store, new_run: Callable[[], str], spool_dir: Path, history: History, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run()
    record = recorder(store, run_id, spool_dir)
    with caplog.at_level(logging.WARNING):
        for step, value in enumerate([1.0, math.nan, math.inf, -math.inf, "text", np.float32(0.5), 2]):
            record.log({"loss": value}, step)  # type: ignore[dict-item]
        assert record.close(deadline_s=PATIENCE)
    points = history(run_id, "loss")
    assert [step for step, _ in points] == [0, 1, 2, 3, 5, 6]
    assert [value for _, value in points if math.isfinite(value)] == [1.0, 0.5, 2.0]
    assert caplog.text.count("became infinite") == 1
    assert "no number: 'text'" not in caplog.text  # one warning per metric


def test_refused_items_do_not_block_the_rest(
    store: Store, new_run: Callable[[], str], spool_dir: Path, history: History, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run()
    record = recorder(store, run_id, spool_dir)
    with caplog.at_level(logging.WARNING):
        record.log_params({"epochs": 3})
        assert record.flush(PATIENCE)
        record.log_params({"epochs": 5, "seed": 1})  # a resumed run with another budget: parameters are write-once
        record.log_artifact("/nowhere/model.bin")
        record.log({"loss": 1.0}, 1)
        assert record.close("FINISHED", PATIENCE)
    params = open_client(store.uri).get_run(run_id).data.params
    assert params == {"epochs": "3", "seed": "1"}
    assert "refuses" in caplog.text
    assert "/nowhere/model.bin" in caplog.text
    assert history(run_id, "loss") == [(1, 1.0)]


def test_points_of_a_deleted_run_are_kept(store: Store, new_run: Callable[[], str], spool_dir: Path) -> None:
    run_id = new_run()
    record = recorder(store, run_id, spool_dir)
    record.log({"loss": 0.0}, 0)
    assert record.flush(PATIENCE)
    open_client(store.uri).delete_run(run_id)
    record.log({"loss": 1.0}, 1)
    assert not record.close("FINISHED", 0.3)
    open_client(store.uri).restore_run(run_id)
    assert deliver_spool(store.uri, spool_dir, PATIENCE) == {run_id: True}


def test_many_metric_names_warn_once(
    store: Store, new_run: Callable[[], str], spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = recorder(store, new_run(), spool_dir)
    with caplog.at_level(logging.WARNING):
        for step in range(2):
            record.log({f"AP/class_{index}": 0.0 for index in range(61)}, step)
        assert record.close(deadline_s=PATIENCE)
    assert caplog.text.count("more than 60 different metrics") == 1


def test_delivery_sends_an_equal_batch_twice_without_doubling(
    store: Store, new_run: Callable[[], str], history: History
) -> None:
    run_id = new_run()
    batch = [Record("metrics", step, 1_000_000 + step, {"loss": 0.5, "other": step}) for step in range(1200)]
    first = Delivery(store.uri, run_id)
    first.connect()
    first.send(batch)
    second = Delivery(store.uri, run_id)
    second.connect()
    second.last_steps = {}  # as if nothing were known: the store itself must keep equal points once
    second.send(batch)
    assert len(history(run_id, "loss")) == 1200
    third = Delivery(store.uri, run_id)
    third.connect()
    third.send(batch)
    assert third.skipped == 2400


def test_recording_delivers_more_than_one_call_can_carry(
    store: Store, new_run: Callable[[], str], spool_dir: Path, history: History
) -> None:
    run_id = new_run()
    spool = Spool(spool_dir / f"{run_id}.jsonl")
    spool.append(Record("metrics", step, 5 + step, {f"m{i}": float(i) for i in range(7)}) for step in range(500))
    spool.close()
    assert deliver_spool(store.uri, spool_dir, PATIENCE) == {run_id: True}
    assert history(run_id, "m6") == [(step, 6.0) for step in range(500)]
