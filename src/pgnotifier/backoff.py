"""Pure: how long to wait before connecting again. The caller brings the attempt and the random number."""


def delay(attempt: int, least: float, most: float, random: float) -> float:
    """Seconds to wait before `attempt` (from 1): exponential, with full jitter between `least` and `most`.

    `random` is uniform in [0, 1). The ceiling doubles with each attempt from `2 * least` up to `most`.
    """
    ceiling = min(most, least * 2.0 ** min(attempt, 64))
    return least + (max(ceiling, least) - least) * random
