"""How sure an accuracy is that was measured on so many images."""

CONFIDENCE = 0.95


def accuracy_interval(accuracy: float, images: int) -> tuple[float, float]:
    """Return the Wilson interval (Wilson, 1927) of an accuracy, a fraction, at a confidence of 95 %.

    It holds for other images of the same kind, not for other seeds of the training.
    """
    from scipy.stats import binomtest  # slow to import

    interval = binomtest(round(accuracy * images), images).proportion_ci(CONFIDENCE, "wilson")
    return float(interval.low), float(interval.high)
