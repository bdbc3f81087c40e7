"""The fault campaign: what goes wrong in practice, done on purpose, on tiny networks and data.

    python -m tests.faults                 all of it, under ten minutes on two cores
    python -m tests.faults kill disk       some of its sections

One process imports PyTorch and the scripts once; every try forks from it, in a folder of its own.
"""
