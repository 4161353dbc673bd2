"""Pure: how long to wait before connecting again. The caller passes attempts, seconds and the random number."""


def delay(attempt: int, least: float, most: float, random: float) -> float:
    """Return the seconds to wait before `attempt` (from 1): exponential, with full jitter from `least` to `most`.

    `random` is uniform in [0, 1). The ceiling doubles with each attempt from `2 * least` up to `most`.
    """
    ceiling = min(most, least * 2.0 ** min(attempt, 64))
    return least + (max(ceiling, least) - least) * random


def next_attempt(attempt: int, lived: float, least: float, most: float) -> int:
    """Return the attempt to count next, after a connection made by `attempt` lasted `lived` seconds.

    If it outlasted the longest wait before it, counting starts again. Otherwise it goes on, so that a server which
    accepts connections and ends them at once is not called in a tight loop.
    """
    return 1 if lived > delay(attempt + 1, least, most, 1.0) else attempt + 1
