"""Tell which of a run's processes this is."""


def is_first_process() -> bool:
    """Whether this is the first, or only, process of a run, which writes files and logs."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only  # slow to import

    return getattr(rank_zero_only, "rank", 0) == 0
