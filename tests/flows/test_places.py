"""Who gets the places of a machine, and when."""

import asyncio

from flows.run import _Room


class Course:
    """Steps of a room, and who has a place."""

    def __init__(self, places: int) -> None:
        self.room = _Room(places)
        self.inside: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def wants(self, name: str, count: int = 1, *, urgent: bool = True) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._step(name, count, urgent))
        await settled()

    async def ends(self, name: str) -> None:
        self._ends[name].set()
        await settled()

    async def is_canceled(self, *names: str) -> None:
        for name in names:
            self._tasks[name].cancel()
        await settled()

    async def _step(self, name: str, count: int, urgent: bool) -> None:
        async with self.room.taken(count, urgent=urgent):
            self.inside.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.inside.remove(name)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_urgent_steps_go_first_and_the_others_take_what_is_free() -> None:
    course = Course(2)
    await course.wants("baseline-1", urgent=False)
    await course.wants("student")
    await course.wants("baseline-2", urgent=False)
    await course.wants("next student")
    assert course.inside == ["baseline-1", "student"]
    await course.ends("baseline-1")
    assert course.inside == ["student", "next student"]
    await course.ends("student")
    assert course.inside == ["next student", "baseline-2"]


async def test_whoever_wants_several_places_is_not_kept_waiting_by_those_who_want_one() -> None:
    course = Course(2)
    await course.wants("one")
    await course.wants("all", 2)
    await course.wants("later")
    assert course.inside == ["one"]
    await course.ends("one")
    assert course.inside == ["all"]
    await course.ends("all")
    assert course.inside == ["later"]


async def test_a_canceled_step_gives_its_place_back_wherever_it_was() -> None:
    course = Course(1)
    for name in ("inside", "waiting", "last"):
        await course.wants(name)
    await course.is_canceled("waiting")
    await course.is_canceled("inside")
    assert course.inside == ["last"]
    await course.wants("let in")
    course._ends["last"].set()
    await asyncio.sleep(0)
    await course.is_canceled("let in")  # whether it has its place by now or not
    await course.wants("new")
    assert course.inside == ["new"]
