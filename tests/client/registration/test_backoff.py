"""How long a node waits before it dials again."""

from __future__ import annotations

from random import Random

from fabric_client.registration.backoff import (
    BASE_SECONDS,
    CAP_SECONDS,
    SUCCESS_SECONDS,
    UNANSWERED_CAP_SECONDS,
    UNANSWERED_SECONDS,
    Backoff,
)


class Longest(Random):
    """Always draws the most."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_waits_double_up_to_a_limit():
    backoff = Backoff(Longest())
    assert [backoff.wait() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, CAP_SECONDS, CAP_SECONDS]


def test_what_has_lasted_is_dialled_again_almost_at_once_however_bad_it_was_before():
    backoff = Backoff(Longest())
    for _ in range(20):
        backoff.wait()
    assert backoff.wait(SUCCESS_SECONDS) == BASE_SECONDS
    assert backoff.wait(1.0) == 2 * BASE_SECONDS, "what fails again is let alone again"


def test_nodes_that_lost_one_server_do_not_come_back_in_step():
    waits = sorted(Backoff(Random(seed)).wait(SUCCESS_SECONDS) for seed in range(100))
    assert waits[10] < 0.1
    assert waits[-10] > 0.4


def test_while_nobody_answers_waits_stay_short_for_some_minutes():
    backoff = Backoff(Longest())
    waits: list[float] = []
    while sum(waits) + 4.0 * len(waits) < UNANSWERED_SECONDS - 6.0:
        waits.append(backoff.wait(4.0, unanswered=True))
    assert waits[:5] == [0.5, 1, 2, 2, 2]
    assert max(waits) == UNANSWERED_CAP_SECONDS
    later = [backoff.wait(4.0, unanswered=True) for _ in range(8)]
    assert later[-1] == CAP_SECONDS, "who is away for long is asked less often"


def test_a_server_that_answers_is_let_alone_whatever_was_before():
    backoff = Backoff(Longest())
    for _ in range(10):
        backoff.wait(4.0, unanswered=True)
    assert [backoff.wait() for _ in range(5)] == [2, 4, 8, 16, CAP_SECONDS]


def test_after_a_change_of_the_network_it_begins_anew():
    backoff = Backoff(Longest())
    for _ in range(100):
        backoff.wait(4.0, unanswered=True)
    backoff.reset()
    assert [backoff.wait(4.0, unanswered=True) for _ in range(4)] == [0.5, 1, 2, 2]
