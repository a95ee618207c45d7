"""Tell which of a run's processes this is."""

import sys


def is_first_process() -> bool:
    """Whether this is the first, or only, process of a run, which writes files and logs.

    Lightning alone starts several processes. Where it is not loaded, there is one.
    """
    lightning = sys.modules.get("pytorch_lightning.utilities.rank_zero")
    return lightning is None or getattr(lightning.rank_zero_only, "rank", 0) == 0
