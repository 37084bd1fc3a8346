from __future__ import annotations

import argparse

import pytest

from sensorlab.bench import detection_metrics


def test_both_sides_judge_the_same_boxes():
    pytest.importorskip("pycocotools")
    parser = argparse.ArgumentParser()
    detection_metrics.add_arguments(parser)
    result = detection_metrics.run(parser.parse_args(["--small", "--classes", "4", "--detections", "40"]))
    assert result["detections"] == 800
    assert result["ap"] > 0.05
    assert result["largest_difference"] < 1e-9
    seconds = result["pycocotools_s"]
    assert 0 < seconds["evaluation"] < seconds["whole"]
    assert result["ratio"]["whole"] == pytest.approx(seconds["whole"] / result["coco_s"], rel=0.1)


def test_without_the_other_side(monkeypatch):
    monkeypatch.setattr(detection_metrics.importlib.util, "find_spec", lambda name: None)
    parser = argparse.ArgumentParser()
    detection_metrics.add_arguments(parser)
    result = detection_metrics.run(parser.parse_args(["--small", "--detections", "10"]))
    assert result["pycocotools_s"] == "not installed"
    assert "ratio" not in result
