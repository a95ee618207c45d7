"""Tell which of a run's processes this is."""

from pytorch_lightning.utilities.rank_zero import rank_zero_only


def is_first_process() -> bool:
    """Whether this is the first, or only, process of a run, which writes files and logs."""
    return getattr(rank_zero_only, "rank", 0) == 0
