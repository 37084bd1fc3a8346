"""Proofs that anyone can run on their own machine: ``sensorlab selftest NAME``."""
