"""The sessions that are visited: how many, from where, and who listens."""

from contextlib import ExitStack

import pytest

from page.server.audience import IDLE_SECONDS, MAX_STREAMS, UNHEARD_SECONDS, Audience, Crowded
from tests.helpers.clock import Clock


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def audience(clock):
    return Audience(size=8, address_size=4, clock=clock)


def test_an_address_has_its_share_of_the_places(audience):
    streams = [audience.stream(f"pupil{number}", "school") for number in range(4)]
    for stream in streams:
        stream.__enter__()
    with pytest.raises(Crowded, match="from your network"):
        audience.use("pupil4", "school")
    audience.use("pupil3", "school")
    assert audience.use("other", "home") is True
    assert audience.use("other", "home") is False


def test_sessions_that_nobody_listens_to_give_way(audience, clock):
    with audience.stream("listener", "school"):
        for number in range(20):
            clock.now += 1
            audience.use(f"made-up-{number}", "school")
        assert len(audience) == 4
        assert audience.listening() == ["listener"]
        assert audience.use("listener", "school") is False


def test_strangers_at_two_addresses_do_not_shut_others_out(audience):
    for number in range(8):
        audience.use(f"made-up-{number}", f"net{number % 2}")
    for number in range(6):
        audience.use(f"other{number}", f"home{number}")
    assert len(audience) == 8


def test_nobody_gives_way_who_has_no_more_than_the_newcomer(audience):
    for number in range(8):
        audience.use(f"visitor{number}", f"home{number}")
    with pytest.raises(Crowded, match="Too many people"):
        audience.use("late", "cafe")


def test_an_open_stream_never_loses_its_place(audience, clock):
    streams = [audience.stream(f"visitor{number}", f"net{number % 4}") for number in range(8)]
    for stream in streams:
        stream.__enter__()
    clock.now += 10 * IDLE_SECONDS
    for address in ("cafe", "net0", "net1"):
        with pytest.raises(Crowded):
            audience.use("late", address)
    streams[0].__exit__(None, None, None)
    audience.use("late", "net0")


def test_an_idle_session_gives_its_place_up(audience, clock):
    for number in range(8):
        audience.use(f"visitor{number}", f"home{number}")
    clock.now += IDLE_SECONDS + 1
    audience.use("late", "cafe")
    assert len(audience) == 1


def test_a_session_has_a_few_streams_at_most(audience):
    with ExitStack() as streams:
        for _ in range(MAX_STREAMS):
            streams.enter_context(audience.stream("visitor", "home"))
        with pytest.raises(Crowded):
            streams.enter_context(audience.stream("visitor", "home"))
    assert audience.listening() == []


def test_a_session_that_starts_and_does_not_listen_is_unheard_after_a_while(audience, clock):
    audience.use("visitor", "home", joins=True)
    clock.now += UNHEARD_SECONDS
    assert not audience.is_unheard("visitor")
    clock.now += 1
    assert audience.is_unheard("visitor")
    audience.use("visitor", "home", joins=True)
    with audience.stream("visitor", "home"):
        clock.now += 10 * UNHEARD_SECONDS
        assert not audience.is_unheard("visitor")
    assert not audience.is_unheard("visitor")
    clock.now += UNHEARD_SECONDS + 1
    assert audience.is_unheard("visitor")


def test_of_a_session_that_came_another_way_nothing_is_known(audience, clock):
    audience.use("program", "home")
    clock.now += UNHEARD_SECONDS + 1
    assert not audience.is_unheard("program")
    assert not audience.is_unheard("unknown")


def test_a_call_takes_its_name_when_it_is_known(audience, clock):
    audience.use("call 1", "home")
    audience.rename("call 1", "event")
    assert len(audience) == 1
    clock.now += UNHEARD_SECONDS + 1
    assert audience.is_unheard("event")
