"""Choose how torch's threads wait for each other; this module must be imported before torch.

OpenMP's threads wait busily for milliseconds before they sleep. Where other programs need the cores, or the
lean engine's own threads do, they keep them from those that work: beside two busy programs a step of two
threads takes up to fifty times as long. A busy wait of some microseconds does not, and on a quiet machine it
is as fast (docs/reliability.md, "Threads on a busy machine").
"""

import os

SPINS = "10000"  # of GNU's OpenMP, which torch uses on Linux; its own number is 300,000

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
