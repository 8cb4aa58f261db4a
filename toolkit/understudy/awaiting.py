"""Blocking calls for asyncio: in a thread, and undone if nobody waits for them any more."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from understudy.errors import UnderstudyError

_T = TypeVar("_T")


async def in_thread(
    call: Callable[[Callable[[], bool]], _T], *, undo: Callable[[_T], object]
) -> _T:
    """Run a blocking call in a thread, without blocking the event loop.

    Whoever is canceled meanwhile goes on only when nothing of the call is left.

    Args:
        call: The call; its argument says whether to give up, to be asked now and then.
        undo: Takes back a result that came too late.
    """
    loop = asyncio.get_running_loop()
    canceled = threading.Event()
    # A future of the executor's and no task: at its end the loop cancels all tasks.
    work = loop.run_in_executor(None, call, canceled.is_set)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError as exc:
        canceled.set()
        await _end_of(work)
        if not work.cancelled() and work.exception() is None:
            undoing = loop.run_in_executor(None, undo, work.result())
            await _end_of(undoing)
            if isinstance(left := undoing.exception(), UnderstudyError):
                exc.add_note(f"And then: {left.message}")
        raise


async def _end_of(work: asyncio.Future[_T]) -> None:
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([work])
