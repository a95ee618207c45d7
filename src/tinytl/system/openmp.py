"""Choose how torch's threads wait for each other; this module must be imported before torch.

An OpenMP thread without work waits busily for milliseconds before it sleeps. Meanwhile it holds a core that
another program, or a thread of the lean engine, could use: beside two busy programs a step on two threads
takes up to fifty times as long. With a busy wait of some microseconds it does not, and on a quiet machine the
step is as fast (docs/reliability.md, "Threads on a busy machine").
"""

import os

# How often a thread of GNU's OpenMP, which torch uses on Linux, looks for work before it sleeps; the default
# is 300,000.
SPINS = "10000"

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
