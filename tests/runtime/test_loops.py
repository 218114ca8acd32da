"""What other threads hand to the event loop."""

from __future__ import annotations

import asyncio
import threading

from serverlight.runtime.loops import Mailbox, run_on_loop


def test_calls_arrive_once_and_in_order() -> None:
    """Whatever thread they come from and however the loop is woken, each thread's calls are made in its order, none twice."""
    seen = list[tuple[int, int]]()

    async def receive() -> None:
        mailbox = Mailbox(asyncio.get_running_loop())
        done = asyncio.Event()

        def note(thread: int, number: int) -> None:
            seen.append((thread, number))
            if len(seen) == 4 * 500:
                done.set()

        def send(thread: int) -> None:
            for number in range(500):
                mailbox.put(note, thread, number)

        threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(done.wait(), 20)
        for thread in threads:
            thread.join()

    run_on_loop(receive())
    for thread in range(4):
        assert [number for sender, number in seen if sender == thread] == list(range(500))


def test_a_closed_loop_hears_nothing() -> None:
    """A reply for a loop that has ended is dropped; a compute thread is not disturbed by it."""
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    loop.close()
    for _ in range(2):
        mailbox.put(print, "nobody")


def test_a_failing_call_takes_no_other_with_it() -> None:
    """What one call raises goes to the loop's handler, and the calls behind it are made."""
    seen, raised = list[int](), list[BaseException]()

    async def receive() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(lambda _, context: raised.append(context["exception"]))
        mailbox = Mailbox(loop)
        mailbox.put(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
        mailbox.put(seen.append, 1)
        mailbox.put(done.set)
        await asyncio.wait_for(done.wait(), 20)

    run_on_loop(receive())
    assert seen == [1]
    assert [type(error) for error in raised] == [ZeroDivisionError]
