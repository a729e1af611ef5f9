"""The rules of blocking queries: what an index means, and how often to ask when it means nothing."""

from __future__ import annotations

from dataclasses import dataclass

BURST = 2
PERIOD = 1.0  # seconds per further question that brings nothing new


def next_index(asked: int, answered: int) -> int:
    """The index to ask with next time.

    0 is never a valid answer and would turn a wait into a busy loop: it becomes 1. An index below the one asked with means
    that Consul was restored or wiped: 0, so that the next question is answered at once with what is there now.
    """
    answered = max(1, answered)
    return 0 if answered < asked else answered


def parse_index(text: str | None) -> int:
    """The number in an X-Consul-Index header; 0 when there is none or it makes no sense."""
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0


def server_wait(seconds: float) -> str:
    """The `wait` to ask for so that the answer comes after `seconds` at the latest: Consul adds up to a sixteenth."""
    return f"{max(1, int(seconds * 1000 * 16 / 17))}ms"


def total_timeout(wait: float) -> float:
    """Seconds after which a question with this wait is given up."""
    return wait + wait / 16 + 5.0


@dataclass(slots=True)
class Pace:
    """A token bucket for one watched thing: answers that bring nothing new cost a token, new content is free."""

    tokens: float = BURST
    at: float = 0.0
    last: object = None

    def delay(self, now: float) -> float:
        """Seconds to wait before the next question may be asked."""
        self.tokens = min(BURST, self.tokens + (now - self.at) / PERIOD)
        self.at = now
        return max(0.0, (1.0 - self.tokens) * PERIOD)

    def asked(self) -> None:
        self.tokens -= 1.0

    def answered(self, content: object) -> None:
        if content != self.last:
            self.last = content
            self.tokens = min(BURST, self.tokens + 1.0)
