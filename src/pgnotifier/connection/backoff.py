"""Pure: how long to wait before connecting again. The caller brings attempts, seconds and the random number."""


def delay(attempt: int, least: float, most: float, random: float) -> float:
    """Seconds to wait before `attempt` (from 1): exponential, with full jitter between `least` and `most`.

    `random` is uniform in [0, 1). The ceiling doubles with each attempt from `2 * least` up to `most`.
    """
    ceiling = min(most, least * 2.0 ** min(attempt, 64))
    return least + (max(ceiling, least) - least) * random


def next_attempt(attempt: int, lived: float, least: float, most: float) -> int:
    """The attempt to count next, after a connection made by `attempt` lived for `lived` seconds.

    A connection that outlived the longest wait before it has proved itself, and counting begins anew; one that
    failed at once has not, so that a server that takes connections and ends them is not called in a tight circle.
    """
    return 1 if lived > delay(attempt + 1, least, most, 1.0) else attempt + 1
