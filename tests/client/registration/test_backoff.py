"""How long a node waits before it dials again."""

from __future__ import annotations

from random import Random

from fabric_client.registration.backoff import BASE_SECONDS, CAP_SECONDS, SUCCESS_SECONDS, Backoff


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
