"""Tunnels that drain, close or are lost."""

from protocol.errors import Code
from protocol.tunnel.base import Role, State
from protocol.tunnel.streams import STREAM_WINDOW
from tests.protocol.tunnel.helpers import answering, frame, opened
from tests.pump import FIGURES, HEAD, Pump, lines


def test_a_draining_server_opens_nothing_and_lets_what_runs_finish():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.server.drain("restarting", 30)
    assert pump.run() == lines("""
        > DRAIN 'restarting'
        node: drain 'restarting' 30 s
    """)
    assert pump.server.state is pump.node.state is State.DRAINING
    assert not pump.server.usable
    pump.node.send_data(stream, b"the rest")
    pump.node.end_stream(stream, FIGURES)
    assert pump.run() == lines("""
        < DATA 1 8 bytes
        < END 1
        server: data 1 b'the rest'
        server: ended 1
        > CLOSE none 'drained'
        server: closed by us: none 'drained'
        node: closed by peer: none 'drained'
    """)


def test_a_draining_node_lets_what_runs_finish_and_leaves_behind_it():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.drain("shutting down", 30)
    assert pump.run() == lines("""
        < DRAIN 'shutting down'
        server: drain 'shutting down' 30 s
    """)
    assert not pump.server.usable
    pump.node.send_data(stream, b"the rest")
    pump.node.end_stream(stream, FIGURES)
    assert pump.run() == lines("""
        < DATA 1 8 bytes
        < END 1
        server: data 1 b'the rest'
        server: ended 1
        < CLOSE none 'drained'
        node: closed by us: none 'drained'
        server: closed by peer: none 'drained'
    """)


def test_an_idle_tunnel_that_drains_is_closed_at_once():
    pump = Pump.greeted()
    pump.server.drain("restarting", 30)
    assert pump.run() == lines("""
        > DRAIN 'restarting'
        node: drain 'restarting' 30 s
        > CLOSE none 'drained'
        server: closed by us: none 'drained'
        node: closed by peer: none 'drained'
    """)


def test_a_cancelled_stream_is_waited_for_by_a_tunnel_that_drains():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.server.drain("restarting", 30)
    pump.server.reset(stream, Code.DRAINING)
    pump.run()
    assert not pump.server.closed
    pump.node.confirm_reset(stream)
    assert pump.run()[-1] == "node: closed by peer: none 'drained'"


def test_a_stream_that_crosses_the_drain_is_sent_back():
    pump = Pump.greeted()
    opened(pump)
    pump.node.drain("shutting down", 30)
    pump.server.open_stream(HEAD, now=pump.now, ended=True)
    crossing = pump.take(Role.SERVER)
    pump.give(Role.NODE, crossing)
    assert pump.run()[-2:] == lines("""
        server: drain 'shutting down' 30 s
        server: reset 3 draining 'this node is draining'
    """)


def test_a_tunnel_that_drains_before_hello_says_so_and_goes():
    pump = Pump()
    pump.server.drain("restarting", 30)
    assert pump.run()[:2] == [
        "server: closed by us: draining 'restarting'",
        "> CLOSE draining 'restarting'",
    ]


def test_a_long_reason_in_any_script_fits_into_a_drain():
    pump = Pump.greeted()
    opened(pump)
    pump.server.drain("再起動中" * 500, -3.0)
    assert pump.run()[-1].startswith("node: drain '再起動中")
    assert not pump.node.closed


def test_closing_ends_every_stream_first_and_says_why():
    pump = Pump.greeted()
    answering(pump, 2)
    pump.server.close(Code.SUPERSEDED, "registered again")
    assert pump.run() == lines("""
        server: reset 1 lost 'registered again'
        server: reset 3 lost 'registered again'
        server: closed by us: superseded 'registered again'
        > CLOSE superseded 'registered again'
        node: reset 1 lost 'registered again'
        node: reset 3 lost 'registered again'
        node: closed by peer: superseded 'registered again'
    """)
    assert pump.server.active == pump.node.active == 0
    assert pump.server.queued == pump.node.queued == 0


def test_a_lost_tunnel_ends_every_stream_and_says_nothing():
    pump = Pump.greeted()
    answering(pump)
    pump.node.lost("cut")
    assert pump.run() == lines("""
        node: reset 1 lost 'cut'
        node: closed by peer: lost 'cut'
    """)


def test_a_node_hears_once_of_a_stream_that_was_reset_before_the_tunnel_was_lost():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.server.reset(stream, Code.CANCELLED)
    pump.run()
    pump.node.lost("cut")
    assert pump.run() == ["node: closed by peer: lost 'cut'"]


def test_a_node_hears_nothing_of_a_stream_it_has_ended_itself():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(STREAM_WINDOW + 1))
    pump.node.end_stream(stream, FIGURES)
    pump.run()
    pump.node.lost("cut")
    assert pump.run() == ["node: closed by peer: lost 'cut'"]


def test_a_closed_tunnel_takes_every_command_in_its_stride():
    for role in Role:
        pump = Pump.greeted()
        (stream,) = answering(pump)
        side = pump.side(role)
        side.close(Code.NONE)
        pump.run()
        side.close(Code.INTERNAL, "again")
        side.lost("again")
        side.receive(frame("PING", 0, bytes(8)), pump.now)
        side.handle_timer(pump.now + 100)
        side.ping(pump.now)
        side.drain("x", 1)
        side.reset(stream, 1)
        side.consumed(stream, 1)
        assert side.send_data(stream, b"x") is True
        assert side.events() == []
        assert side.data_to_send() == []
        assert not side.has_output()
        if side is pump.server:
            assert not pump.server.usable
