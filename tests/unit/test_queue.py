"""The queue of pods that want a look: fair, each at most once, by a clock that never goes back."""

import asyncio

from nodeagent.agent.queue import Queue


class Clock:
    """Counts seconds when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def taken(queue: Queue[str], count: int) -> list[str]:
    async def take() -> list[str]:
        return [key for _ in range(count) for key in await asyncio.wait_for(queue.get(), 5)]

    return asyncio.run(take())


def test_who_waited_longest_comes_first_and_nobody_twice() -> None:
    queue: Queue[str] = Queue(Clock())
    for key in ("a", "b", "a", "c", "b"):
        queue.add(key)
    assert len(queue) == 3
    assert taken(queue, 3) == ["a", "b", "c"]
    assert len(queue) == 0


def test_later_is_later_unless_it_is_needed_earlier() -> None:
    clock = Clock()
    queue: Queue[str] = Queue(clock)
    queue.add("a", 10)
    queue.add("b", 1)
    queue.add("a", 20)  # no later than it was
    clock.now += 5
    assert taken(queue, 1) == ["b"]
    queue.add("a", 0)
    assert taken(queue, 1) == ["a"]
    assert len(queue) == 0


def test_what_is_forgotten_never_comes() -> None:
    queue: Queue[str] = Queue(Clock())
    queue.add("a")
    queue.add("b")
    queue.discard("a")
    assert taken(queue, 1) == ["b"]


def test_a_busy_key_does_not_starve_the_others() -> None:
    queue: Queue[str] = Queue(Clock())
    queue.add("busy")
    queue.add("quiet")
    seen = []
    for _ in range(3):
        [key] = taken(queue, 1)
        seen.append(key)
        queue.add("busy")
    assert seen == ["busy", "quiet", "busy"]


def test_a_waiter_wakes_up_for_what_is_added() -> None:
    queue: Queue[str] = Queue(Clock())

    async def wait() -> list[str]:
        waiter = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        queue.add("a")
        return await asyncio.wait_for(waiter, 5)

    assert asyncio.run(wait()) == ["a"]


def test_many_that_are_due_come_together_and_the_others_stay() -> None:
    queue: Queue[str] = Queue(Clock())
    for key in ("a", "b", "c"):
        queue.add(key)
    queue.add("later", 1)
    queue.discard("a")
    assert asyncio.run(queue.get(32)) == ["b", "c"]
    assert len(queue) == 1


def test_no_more_come_together_than_were_asked_for() -> None:
    queue: Queue[str] = Queue(Clock())
    for key in ("a", "b", "c"):
        queue.add(key)
    assert asyncio.run(queue.get(2)) == ["a", "b"]
    assert asyncio.run(queue.get(2)) == ["c"]


def test_who_is_urgent_goes_before_all_others_and_between_them() -> None:
    queue: Queue[str] = Queue(Clock())
    for key in ("a", "b", "c"):
        queue.add(key)
    queue.add("c", urgent=True)
    queue.add("d", urgent=True)
    assert list(queue.urgent()) == ["c", "d"]
    assert list(queue.urgent()) == []
    assert taken(queue, 2) == ["a", "b"]
