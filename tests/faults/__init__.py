"""Faults of real runs, caused on purpose with tiny networks and data: `pytest -m faults`."""
