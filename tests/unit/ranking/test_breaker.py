"""When a stage is left alone, and when it is tried again; the clock is told."""

from __future__ import annotations

from rayrank.ranking.breaker import Breaker


def test_haste_counts_by_its_share_and_the_next_answer_wipes_it_out() -> None:
    breaker = Breaker(failures=2, rest_s=5.0, clock=lambda: 0.0)
    for _ in range(9):
        breaker.failed(0.2)
    assert breaker.allows()
    breaker.succeeded()
    for _ in range(9):
        breaker.failed(0.2)
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()


def test_breaker_opens_after_failures_in_a_row_and_tries_again_after_its_rest() -> None:
    now = [0.0]
    breaker = Breaker(failures=2, rest_s=5.0, clock=lambda: now[0])
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    now[0] = 5.0
    assert breaker.allows()
    assert not breaker.allows()  # one request tries, the others beside it do not wait with it
    breaker.failed()
    assert not breaker.allows()
    now[0] = 10.0
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.allows()
    assert breaker.allows()


def test_a_hasty_trial_that_fails_puts_the_next_off_by_its_share_of_the_rest() -> None:
    now = [0.0]
    breaker = Breaker(failures=1, rest_s=5.0, clock=lambda: now[0])
    breaker.failed()
    breaker.failed(0.01)
    now[0] = 4.9
    assert not breaker.allows(), "who was late in the rest does not end it"
    now[0] = 5.0
    assert breaker.allows(0.01)
    assert not breaker.allows()
    now[0] = 5.01
    breaker.failed(0.01)
    assert not breaker.allows()
    now[0] = 5.0625
    assert breaker.allows()
    breaker.failed()
    now[0] = 10.0
    assert not breaker.allows()
