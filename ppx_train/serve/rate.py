"""How fast a client may send."""

MESSAGE_SECONDS = 0.001
"""What a message costs besides its sound, so that empty ones cannot come without end either."""


class RateMeter:
    """A leaking bucket of seconds of sound: `speed` seconds leak out in a second, and `burst` fit in."""

    def __init__(self, speed: float, burst: float, now: float) -> None:
        """now: seconds on any clock that never goes back."""
        self._speed, self._burst = speed, burst
        self._level, self._at = 0.0, now

    def spend(self, seconds: float, now: float) -> bool:
        """Adds what was sent; returns whether it still fits."""
        self._level = max(0.0, self._level - (now - self._at) * self._speed) + seconds
        self._at = now
        return self._level <= self._burst
