"""Runs in MLflow: opening the store, recording without slowing training, sweeps, links to their pages.

The driver calls :func:`~sensorlab.runs.store.open_store` once and makes the runs
(:class:`~sensorlab.runs.sweep_runs.SweepRuns`); rank 0 of each run owns a
:class:`~sensorlab.runs.recorder.RunRecorder`. MLflow is imported by none of these modules before it is needed.
"""
