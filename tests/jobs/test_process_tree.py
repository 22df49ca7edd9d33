import os
import subprocess
import sys
import time

from jobs.process_tree import CpuWatch, note_cpu_seconds, proportional_mib, tree


def test_children_count_and_what_ended_keeps_what_it_spent() -> None:
    burn = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass\ninput()"
    with CpuWatch(pause_seconds=0.02) as watch:
        began = time.monotonic()
        child = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE)
        assert child.pid in tree(os.getpid())
        seen: dict[int, float] = {}
        while seen.get(child.pid, 0.0) < 0.4:
            note_cpu_seconds(child.pid, seen)
        assert proportional_mib(child.pid) > 1
        time.sleep(0.1)  # so that the watch has looked as well
        child.communicate(b"\n")
        assert child.pid not in tree(os.getpid())
        assert proportional_mib(child.pid) == 0
        ended = time.monotonic()
    assert watch.between(began, ended) > 0.3
    assert watch.between(ended, ended) == 0
