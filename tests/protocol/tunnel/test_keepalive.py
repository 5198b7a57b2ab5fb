"""When a silent peer is asked, and when it is given up; no test here waits."""

from random import Random
from time import process_time

import pytest

from protocol.tunnel.base import Role
from protocol.tunnel.keepalive import CHALLENGE_SECONDS, KeepAlive, Verdict
from tests.pump import ANSWER, FIGURES, HEAD, Pump, lines


def asked_at(pump: Pump, seconds: float) -> list[float]:
    """When a PING went out, in seconds from now, while time passes."""
    start, times = pump.now, []
    while pump.now < start + seconds:
        before = len(pump.transcript)
        pump.wait(0.25)
        if any("PING" in line for line in pump.transcript[before:]):
            times.append(pump.now - start)
    return times


def test_an_idle_tunnel_is_asked_every_fifteen_seconds_give_or_take_a_fifth():
    firsts = []
    for seed in range(40):
        keepalive = KeepAlive(0.0, Random(seed))
        firsts.append(keepalive.deadline())
    assert all(12.0 <= first <= 18.0 for first in firsts)
    assert max(firsts) - min(firsts) > 4.0, "nodes that came together must not ping in step"


def test_any_byte_puts_the_question_off():
    keepalive = KeepAlive(0.0, Random(1))
    first = keepalive.deadline()
    keepalive.last_received = 10.0
    assert keepalive.deadline() == first + 10.0
    assert keepalive.check(first) is Verdict.WAIT


def test_an_idle_peer_is_given_up_after_the_third_silent_interval():
    keepalive = KeepAlive(0.0, Random(1))
    interval = keepalive.deadline()
    verdicts = []
    while Verdict.DEAD not in verdicts:
        now = keepalive.deadline()
        verdicts.append(keepalive.check(now))
    assert verdicts == [Verdict.PING, Verdict.PING, Verdict.DEAD]
    assert now == pytest.approx(3 * interval)
    assert 36.0 <= now <= 54.0


def test_one_answer_wipes_the_slate():
    keepalive = KeepAlive(0.0, Random(1))
    keepalive.check(keepalive.deadline())
    assert keepalive.check(keepalive.deadline()) is Verdict.PING
    keepalive.last_received = keepalive.deadline() - 1
    assert keepalive.check(keepalive.deadline()) is Verdict.PING
    assert keepalive.check(keepalive.deadline()) is Verdict.PING
    assert keepalive.check(keepalive.deadline()) is Verdict.DEAD


def test_an_answer_in_the_same_tick_of_the_clock_is_an_answer():
    keepalive = KeepAlive(0.0, Random(1))
    keepalive.busy(0.0)
    assert keepalive.check(5.0) is Verdict.PING
    keepalive.last_received = 5.0
    assert keepalive.check(10.0) is Verdict.PING, "it was heard, so it is asked again, not buried"


def test_a_question_asked_before_the_first_stream_is_repeated_before_the_burial():
    keepalive = KeepAlive(0.0, Random(1))
    asked = keepalive.deadline()
    assert keepalive.check(asked) is Verdict.PING
    assert keepalive.busy(asked + 1) == asked + 6
    assert keepalive.check(asked + 6) is Verdict.PING
    assert keepalive.check(asked + 11) is Verdict.DEAD


def test_a_clock_that_jumps_asks_before_it_buries():
    keepalive = KeepAlive(0.0, Random(1))
    assert keepalive.check(8 * 3600.0) is Verdict.PING
    assert keepalive.deadline() > 8 * 3600.0


@pytest.mark.parametrize("open_after", [0.0, 3.0, 11.0, 17.9, 25.0, 33.0])
def test_a_dead_tunnel_with_streams_is_noticed_within_ten_seconds(open_after):
    for seed in range(20):
        pump = Pump.greeted(seed=seed)
        pump.deaf = {Role.SERVER, Role.NODE}  # the cable is out
        pump.wait(open_after)
        if pump.server.closed:
            continue
        pump.server.open_stream(HEAD, now=pump.now)
        opened = pump.now
        while not pump.server.closed:
            pump.wait(0.01)
        assert pump.now - opened <= 10.02
        said = pump.transcript[-2:]
        assert said[0].startswith("server: reset 1 lost 'silent for")
        assert said[1].startswith("server: closed by peer: lost")


def test_a_tunnel_that_dies_in_the_middle_of_an_answer_is_noticed_on_both_sides():
    pump = Pump.greeted()
    stream = pump.server.open_stream(HEAD, now=pump.now, ended=True)
    pump.run()
    pump.wait(3)
    pump.node.send_head(stream, ANSWER)
    pump.node.send_data(stream, b"half an ans")
    pump.run()
    pump.deaf = {Role.SERVER, Role.NODE}
    last_heard = pump.now
    while not (pump.server.closed and pump.node.closed):
        pump.wait(0.01)
    assert pump.now - last_heard <= 10.02


def test_a_stream_that_thinks_for_a_minute_keeps_a_living_tunnel():
    pump = Pump.greeted()
    stream = pump.server.open_stream(HEAD, now=pump.now, ended=True)
    pump.run()
    pump.wait(60)
    assert not pump.server.closed
    assert not pump.node.closed
    pump.node.send_head(stream, ANSWER)
    assert "server: head 1 200" in pump.run()


def test_with_streams_the_peer_is_asked_after_five_silent_seconds():
    pump = Pump.greeted()
    pump.server.open_stream(HEAD, now=pump.now, ended=True)
    assert asked_at(pump, 6.0) == [5.0]


def test_traffic_in_one_direction_needs_no_question():
    pump = Pump.greeted()
    stream = pump.server.open_stream(HEAD, now=pump.now, ended=True)
    pump.run()
    pump.node.send_head(stream, ANSWER)
    for _ in range(20):
        pump.wait(1)
        pump.node.send_data(stream, b"token")
        pump.run()
    assert not pump.server.closed
    assert not [line for line in pump.transcript if line.startswith("> PING")]


def test_when_the_last_stream_ends_the_calm_rhythm_returns():
    pump = Pump.greeted()
    stream = pump.server.open_stream(HEAD, now=pump.now, ended=True)
    pump.run()
    pump.node.reset(stream, 5)
    pump.run()
    assert not asked_at(pump, 11.5)


def test_a_simulated_hour_of_keep_alive_takes_milliseconds():
    pump = Pump.greeted()
    began = process_time()
    pump.wait(3600)
    spent = process_time() - began
    assert not pump.server.closed
    assert not pump.node.closed
    pings = [line for line in pump.transcript if "PING" in line]
    assert 3600 / 18 <= len(pings) <= 3600 / 12 + 1
    assert spent < 0.5, "milliseconds in truth; the slack is for a machine with other work"


def test_an_hour_with_a_stream_open_trips_no_flood_rule():
    pump = Pump.greeted()
    pump.server.open_stream(HEAD, now=pump.now, ended=True)
    pump.wait(3600)
    assert not pump.server.closed
    assert not pump.node.closed


def test_a_round_trip_is_measured():
    pump = Pump.greeted()
    pump.server.ping(pump.now)
    question = pump.take(Role.SERVER)
    pump.now += 0.05
    pump.give(Role.NODE, question)
    pump.run()
    assert pump.server.keepalive.round_trip == pytest.approx(0.05)


def test_a_server_that_hears_no_hello_says_so_after_five_seconds():
    pump = Pump()
    pump.wait(4.9)
    assert not pump.server.closed
    pump.wait(0.2)
    assert "> CLOSE timeout 'no HELLO in time'" in pump.transcript


def test_a_closed_tunnel_wants_no_more_timers():
    for end in ("close", "lost", "dead"):
        pump = Pump.greeted()
        if end == "close":
            pump.server.close(0, "enough")
        elif end == "lost":
            pump.server.lost("cut")
        else:
            pump.deaf = {Role.SERVER, Role.NODE}
            pump.wait(60)
        assert pump.server.closed
        assert pump.server.deadline == float("inf")


# ── a tunnel that is needed after a silence ───────────────────────────────────────────────────


def test_a_stream_that_breaks_a_silence_brings_a_question_along():
    pump = Pump.greeted()
    pump.wait(2.0)
    pump.server.open_stream(HEAD, now=pump.now, ended=True)
    assert pump.run() == lines(
        """
        > OPEN 1 end
        > PING
        node: opened 1 POST /v1/chat/completions, ended
        < PONG
        server: pong 0 ms
        """
    )
    pump.wait(4.0)
    assert "server: silence" not in pump.run()
    assert pump.server.usable


def test_a_stream_on_a_tunnel_just_heard_from_asks_nothing():
    pump = Pump.greeted()
    for _ in range(3):
        pump.wait(1.9)
        stream = pump.server.open_stream(HEAD, now=pump.now, ended=True)
        pump.run()
        pump.node.send_head(stream, ANSWER)
        pump.node.end_stream(stream, FIGURES)
        assert "> PING" not in pump.run()


def test_who_is_silent_then_is_in_doubt_after_two_seconds_and_given_up_after_ten_as_ever():
    pump = Pump.greeted()
    pump.wait(3.0)
    pump.deaf.add(Role.NODE)
    pump.server.open_stream(HEAD, now=pump.now, ended=True)
    pump.wait(1.9)
    assert pump.server.usable
    pump.wait(0.2)
    assert pump.run().count("server: silence") == 1
    assert not pump.server.usable
    pump.wait(7.8)
    assert not pump.server.closed
    pump.wait(0.2)
    assert pump.server.closed
    assert pump.run().count("server: silence") == 0, "once is enough"


def test_a_late_answer_ends_the_doubt():
    pump = Pump.greeted()
    pump.wait(3.0)
    stream = pump.server.open_stream(HEAD, now=pump.now, ended=True)
    late = pump.take(Role.SERVER)
    pump.now += 2.5
    pump.server.handle_timer(pump.now)
    assert not pump.server.usable
    pump.give(Role.NODE, late)
    pump.run()
    assert pump.server.usable
    pump.node.send_head(stream, ANSWER)
    pump.node.end_stream(stream, FIGURES)
    assert pump.run()[-1] == f"server: ended {stream}"


def test_an_idle_tunnel_can_be_asked_whether_it_is_of_use():
    pump = Pump.greeted()
    pump.wait(3.0)
    pump.server.probe(pump.now)
    pump.wait(3.0)
    assert pump.server.usable
    pump.deaf.add(Role.NODE)
    pump.server.probe(pump.now)
    pump.wait(3.0)
    assert not pump.server.usable
    assert not pump.server.closed, "an idle one may be silent for longer"


# ── after a change of the network ─────────────────────────────────────────────────────────────


def test_a_challenged_peer_that_is_silent_is_given_up_after_a_second():
    pump = Pump.greeted()
    pump.wait(3.0)
    pump.deaf.add(Role.SERVER)
    pump.node.challenge(pump.now)
    pump.wait(CHALLENGE_SECONDS - 0.1)
    assert not pump.node.closed
    pump.wait(0.2)
    assert pump.node.closed


def test_a_challenge_that_is_answered_changes_nothing():
    pump = Pump.greeted()
    pump.wait(3.0)
    pump.node.challenge(pump.now)
    pump.run()
    pump.wait(60.0)
    assert not pump.node.closed
    assert not pump.server.closed


def test_challenges_in_a_row_give_no_more_time_and_ask_no_more_than_any_ping():
    keepalive = KeepAlive(0.0, Random(1))
    assert keepalive.challenge(5.0) == 5.0 + CHALLENGE_SECONDS
    assert keepalive.challenge(5.9) == 5.0 + CHALLENGE_SECONDS
    assert keepalive.check(5.0 + CHALLENGE_SECONDS) is Verdict.DEAD
    keepalive.last_received = 7.0
    assert keepalive.challenge(8.0) == 8.0 + CHALLENGE_SECONDS, "after an answer, a new one"


def test_a_far_peer_has_time_for_its_answer():
    keepalive = KeepAlive(0.0, Random(1))
    token = keepalive.ping(0.0)
    keepalive.last_received = 2.0
    assert keepalive.pong(token) == 2.0
    assert keepalive.challenge(3.0) == 11.0


def test_a_challenge_puts_no_other_deadline_off():
    keepalive = KeepAlive(0.0, Random(1))
    keepalive.busy(0.0)
    assert keepalive.check(5.0) is Verdict.PING
    keepalive.challenge(9.5)
    assert keepalive.deadline() == 10.0
    assert keepalive.check(10.0) is Verdict.DEAD
