"""Tags that several parts read and write; the others stand where they are written."""

from __future__ import annotations

PARENT_TAG = "mlflow.parentRunId"
SWEEP_TAG = "sensorlab.sweep_id"
TRIAL_TAG = "sensorlab.trial_id"
ROLE_TAG = "sensorlab.role"
"""What a run is: "run", "sweep", "trial", "validation" or "replay"."""
REPLAY_TAG = "sensorlab.replay_of"
"""Id of the run that this one repeats."""
PROTOCOL_TAG = "sensorlab.protocol"
"""Digest of the protocol of a run's objective; runs with different protocols are not ranked together."""
FORKED_TAG = "sensorlab.forked_from"
"""Id of the run from whose last checkpoint this one, a generation of a member of a population, went on."""
GENERATION_TAG, MEMBER_TAG = "sensorlab.generation", "sensorlab.member"
FIDELITY_TAG = "sensorlab.fidelity"
"""Level of a trial in a sweep that promotes configurations along a key, 0 for the cheapest; levels do not compare."""
