"""The hours in which a node answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_client.owner.schedule import ScheduleError, Window, parse_schedule

MONDAY = datetime(2026, 6, 1)
WEEK = 7 * 24 * 60
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def minutes(text: str) -> set[int]:
    """The minutes of the week, from Monday 00:00, in which it is open."""
    schedule = parse_schedule(text.split(","))
    return {m for m in range(WEEK) if schedule.is_open(MONDAY + timedelta(minutes=m))}


def span(day: int, start: int, end: int) -> set[int]:
    """From a day's hour to another hour counted from the same midnight, around the week's end."""
    return {(day * 1440 + m) % WEEK for m in range(start * 60, end * 60)}


def test_nothing_set_is_always_open() -> None:
    assert parse_schedule([]).is_open(MONDAY)


def test_the_hours_that_people_write() -> None:
    assert minutes("08:00-18:00") == {m for day in range(7) for m in span(day, 8, 18)}
    assert minutes("22:00-08:00") == {m for day in range(7) for m in span(day, 22, 32)}
    assert minutes("sat 9:00-10:00") == span(5, 9, 10)
    assert minutes("00:00-24:00") == set(range(WEEK))
    assert minutes("20:00-00:00") == minutes("20:00-24:00")
    evenings = {m for day in range(5) for m in span(day, 18, 32)}
    weekend = span(5, 0, 24) | span(6, 0, 24)
    assert minutes("mon-fri 18:00-08:00, sat-sun 00:00-24:00") == evenings | weekend


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    assert minutes("fri 22:00-08:00") == span(4, 22, 32)
    assert minutes("sun 22:00-08:00") == span(6, 22, 32)  # its end is on Monday
    assert 0 in minutes("sun 22:00-08:00")
    assert minutes("sat-mon 12:00-13:00") == span(5, 12, 13) | span(6, 12, 13) | span(0, 12, 13)


def test_case_and_spaces_do_not_matter() -> None:
    assert minutes(" MON - FRI  8:00 - 9:30 ") == minutes("mon-fri 08:00-09:30")


@given(
    first=st.integers(0, 6),
    length=st.integers(1, 7),
    start=st.integers(0, 1439),
    end=st.integers(0, 1440),
)
def test_every_minute_of_a_week_is_as_counted_out(
    first: int, length: int, start: int, end: int
) -> None:
    days = f"{DAYS[first]}-{DAYS[(first + length - 1) % 7]}"
    text = f"{days} {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    if start == end:
        with pytest.raises(ScheduleError):
            parse_schedule([text])
        return
    until = end if end > start else end + 1440
    wanted = {
        (day * 1440 + minute) % WEEK
        for day in range(first, first + length)
        for minute in range(start, until)
    }
    assert minutes(text) == wanted


@given(st.text(max_size=30))
def test_any_text_is_a_window_or_a_sentence(text: str) -> None:
    try:
        (window,) = parse_schedule([text])
    except ScheduleError as error:
        assert str(error).endswith(".")
    else:
        assert isinstance(window, Window)
        assert window.days


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("at night", "like 22:00-08:00"),
        ("22-8", "like 22:00-08:00"),
        ("22:00", "like 22:00-08:00"),
        ("25:00-08:00", "no time 25:00"),
        ("22:60-08:00", "no time 22:60"),
        ("22:00-24:30", "no time 24:30"),
        ("24:00-08:00", "24:00 is its end"),
        ("08:00-08:00", "00:00-24:00"),
        ("monday 08:00-09:00", "not 'monday'"),
        ("mon-fry 08:00-09:00", "not 'fry'"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        parse_schedule([text])
    assert words in str(caught.value)
    assert text in str(caught.value)


# ── the days on which clocks are changed ──────────────────────────────────────────────────────


def open_minutes(text: str, day: datetime, zone: str) -> int:
    """How many real minutes of that local day it is open."""
    local = ZoneInfo(zone)
    at = datetime(day.year, day.month, day.day, tzinfo=local).astimezone(UTC)
    schedule = parse_schedule([text])
    count = 0
    while (wall := at.astimezone(local)).date() == day.date():
        count += schedule.is_open(wall.replace(tzinfo=None))
        at += timedelta(minutes=1)
    return count


BERLIN = "Europe/Berlin"
SPRING, AUTUMN = datetime(2026, 3, 29), datetime(2026, 10, 25)


def test_a_window_over_the_change_follows_the_clock_on_the_wall() -> None:
    assert open_minutes("00:00-08:00", SPRING, BERLIN) == 7 * 60
    assert open_minutes("00:00-08:00", AUTUMN, BERLIN) == 9 * 60
    assert open_minutes("00:00-24:00", SPRING, BERLIN) == 23 * 60
    assert open_minutes("00:00-24:00", AUTUMN, BERLIN) == 25 * 60


def test_an_hour_that_is_skipped_does_not_come_and_one_that_is_repeated_comes_twice() -> None:
    assert open_minutes("02:00-03:00", SPRING, BERLIN) == 0
    assert open_minutes("02:15-02:45", AUTUMN, BERLIN) == 60


def test_a_window_whose_end_is_skipped_ends_all_the_same() -> None:
    assert open_minutes("01:00-02:30", SPRING, BERLIN) == 60
    assert open_minutes("02:30-04:00", SPRING, BERLIN) == 60


# ── when it opens ─────────────────────────────────────────────────────────────────────────────


@given(
    st.lists(
        st.sampled_from(
            [
                "08:00-18:00",
                "fri 22:00-08:00",
                "sat-sun 00:00-24:00",
                "mon 00:00-00:01",
                "23:59-24:00",
            ]
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, WEEK - 1),
    st.integers(0, 59),
)
def test_it_opens_at_the_next_minute_in_which_it_is_open(
    windows: list[str], minute: int, second: int
) -> None:
    schedule = parse_schedule(windows)
    wall = MONDAY + timedelta(minutes=minute, seconds=second)
    if schedule.is_open(wall):
        return
    opens = schedule.opens_at(wall)
    assert schedule.is_open(opens)
    later = wall.replace(second=0) + timedelta(minutes=1)
    while later < opens:
        assert not schedule.is_open(later)
        later += timedelta(minutes=1)
    assert later == opens


def test_in_an_hour_that_is_repeated_it_opens_at_the_repeated_time() -> None:
    schedule = parse_schedule(["02:30-03:00"])
    first, again = (datetime(2026, 10, 25, 2, 10, fold=fold) for fold in (0, 1))
    assert [schedule.opens_at(wall).fold for wall in (first, again)] == [0, 1]
