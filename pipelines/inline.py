"""An executor without Ray: every task runs in this process, at once. For debugging, and for tests of what surrounds
it."""

import logging

from ov2_core.make_sample import NoneReadError, TransientItemError
from pipelines.runtime import Job, ObjectLostError, is_disk_full
from pipelines.tasks import Cause, Done, Event, Failed, Ready, Task

log = logging.getLogger(__name__)


class InlineExecutor:
    """See tasks.Executor. Knows no deadlines and survives no crash."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._events: list[Event] = []
        self._warm = False

    def start(self, worker: int) -> None:
        """Warms the job up on the first call."""
        if not self._warm:
            self._job.warm_up()
            self._warm = True
        self._events.append(Ready(worker))

    def stop(self, worker: int) -> None:
        """This process stays."""

    def submit(self, worker: int, task: Task) -> None:
        """Runs the task to its end."""
        try:
            info, payload = self._job.run(task.payload)
        except (TransientItemError, NoneReadError, ObjectLostError, MemoryError) as error:
            causes: dict[type[Exception], Cause] = {
                TransientItemError: "transient_error",
                NoneReadError: "none_read",
                ObjectLostError: "object_lost",
                MemoryError: "out_of_memory",
            }
            cause = next(cause for kind, cause in causes.items() if isinstance(error, kind))
            self._events.append(Failed(worker, cause, f"{type(error).__name__}: {error}", True))
        except OSError as error:
            if not is_disk_full(error):
                raise
            self._events.append(Failed(worker, "disk_full", f"no space left: {error}; free some and run again", True))
        else:
            self._events.append(Done(worker, info, payload))

    def num_places(self) -> int:
        """There is one worker, this process."""
        return 0

    def poll(self, timeout_seconds: float) -> list[Event]:
        """What has happened; never waits."""
        events, self._events = self._events, []
        return events
