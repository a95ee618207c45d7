"""Write times for a reader."""


def duration(seconds: float) -> str:
    """Format a time for reading: 79 ms, 4.2 s, 45 s, 12 min, 3.5 h."""
    if 0 < seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def time_left(seconds: float) -> str:
    """Format the time that something will still take: 4 s left, 12 min left."""
    return f"{seconds:.0f} s left" if seconds < 100 else f"{duration(seconds)} left"
