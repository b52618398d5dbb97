"""``asyncio.run`` for each job: one after the other in the main thread, or in six threads at once."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from matrix.jobs import work

JOBS = {job.__name__: job for job in work.PLAIN_JOBS}


def main() -> None:
    """Run the requested jobs; an interrupt ends the running one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or we ignore it, as what a shell puts in the background
    if work.WAY == "threads":
        with ThreadPoolExecutor(6) as pool:
            for function, name, fate in work.orders():
                pool.submit(JOBS[function], name, fate)
    else:
        for function, name, fate in work.orders():
            with suppress(work.Refused, KeyboardInterrupt):
                JOBS[function](name, fate)


if __name__ == "__main__":
    main()
