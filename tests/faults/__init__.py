"""What goes wrong in practice, done on purpose, on tiny networks and data: `pytest -m faults`."""
