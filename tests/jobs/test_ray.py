"""Runs on a real Ray head: two at once, one cancelled, one killed, a head that is lost. Slow.

Ray listens on the machine's address whatever it is told, so everything here happens in a network namespace of its own
that has only loopback: the test starts this file's `main` in it (`unshare -n`), which is the head and the supervisor.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PORT = 8265
UNSHARE = ("unshare", "-n", "-p", "--fork", "--kill-child", "--mount-proc")
"""Loopback alone, and processes that all end with the first of them."""
ADDRESS = f"http://127.0.0.1:{PORT}"


def can_unshare() -> bool:
    """Whether this machine lets us have a network of our own."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*UNSHARE, "ip", "link", "set", "lo", "up"], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_runs_at_once_one_cancelled_one_killed_and_a_lost_head(experiment: Any, tmp_path: Path) -> None:
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed (requirements-cluster.txt)")
    if not can_unshare():
        pytest.skip("no network namespace can be made here")
    experiments = [tmp_path / "quick.yaml", tmp_path / "slow.yaml"]
    experiments[0].write_text(experiment(device="auto").to_yaml())
    experiments[1].write_text(experiment(slow=True).to_yaml())
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets below it: paths must be short
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "ESPALIER_RAY_ADDRESS": ADDRESS,
        "PYTHONPATH": str(ROOT),
    }
    command = f"ip link set lo up && {sys.executable} {__file__} {folder} {experiments[0]} {experiments[1]}"
    process = subprocess.Popen(
        [*UNSHARE, "sh", "-c", command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        said, _ = process.communicate(timeout=800)
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)
    assert process.returncode == 0
    found = json.loads(said.splitlines()[-1])
    assert found["states"] == ["COMPLETE", "COMPLETE", "CANCELLED", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert found["together"]
    assert found["cancelled_in_s"] < 10
    assert found["wrong_token"].startswith("The cluster refuses the token")
    assert "SIGKILL" in found["killed"]
    assert "lost the run's job" in found["lost"]
    assert found["attempts"][3:5] == [2, 2]
    assert found["asked_twice"] == []


# ------------------------------------------------------------------------------------------------- inside the namespace


class Head:
    """`ray start --head --block`, a process of ours that is ended by its id."""

    def __init__(self, folder: Path) -> None:
        ray = str(Path(sys.executable).parent / "ray")
        self.log = (folder / "head.log").open("ab")
        self.process = subprocess.Popen(
            [
                ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
                f"--dashboard-port={PORT}", "--num-cpus=2", f"--temp-dir={folder / secrets.token_hex(2)}",
                "--disable-usage-stats",
            ],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def kill(self) -> None:
        """End it and all that it started, as a machine that goes away."""
        import psutil

        family = [self.process.pid]
        with suppress(psutil.Error):
            family += [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        spared = _workers()  # a head that is lost kills no worker itself
        for pid in family:
            if pid not in spared:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _workers() -> set[int]:
    import psutil

    found = psutil.process_iter(["pid", "cmdline"])
    spared = ("core.jobs.worker", "kill -s 0")  # the second waits for Ray's own end, and kills the first then
    return {each.pid for each in found if any(word in " ".join(each.info["cmdline"] or []) for word in spared)}


def until(question: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := question():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def main(folder: Path, quick_yaml: Path, slow_yaml: Path) -> dict[str, Any]:
    """The whole story; returns what was seen."""
    from core import settings
    from core.experiment import Experiment
    from core.jobs.ray_cluster import connect
    from core.jobs.rundir import RunDirectory, new_run_id
    from core.jobs.states import State
    from core.jobs.supervisor import Supervisor

    runs: dict[str, RunDirectory] = {}
    found: dict[str, Any] = {}

    def state(run_id: str) -> State:
        return runs[run_id].status().state

    def queue(file: Path, n: int = 2) -> list[str]:
        made = [RunDirectory.of(settings.runs_dir(), new_run_id("0123456789abcdef")) for _ in range(n)]
        for run in made:
            data = Experiment.from_yaml(file.read_text()).to_dict()
            data["evaluation"]["perplexity"][0]["window"] = 16 - len(runs)  # what was judged alike is not judged again
            run.write_experiment(Experiment.parse(data))
            runs[run.id] = run
            boss.enqueue(run.id)
        return [run.id for run in made]

    def working(run_id: str) -> bool:
        return state(run_id) is State.RUNNING and runs[run_id].status().unit == "windows"

    def tell(what: str) -> None:
        sys.stderr.write(f"{time.monotonic() - begun:6.1f} s  {what}\n")

    begun = time.monotonic()
    head = Head(folder)
    boss = Supervisor()
    boss.start()
    try:
        quick = queue(quick_yaml)
        until(lambda: (view := boss.cluster()) and view.reachable and view.capacity.nodes, 180, "the head answers")
        tell(f"the head answers: {boss.cluster()}")
        refused = _with_another_token()
        found["wrong_token"] = refused
        until(lambda: all(state(run_id) is State.RUNNING for run_id in quick), 180, "both run")
        found["together"] = True
        tell("both run at once")
        until(lambda: all(state(run_id) is State.COMPLETE for run_id in quick), 180, "both are complete")
        tell("both are complete")

        slow = queue(slow_yaml)
        until(lambda: all(working(run_id) for run_id in slow), 180, "two more work")
        asked = time.monotonic()
        boss.cancel(slow[0])
        until(lambda: state(slow[0]) is State.CANCELLED, 40, "one is cancelled")
        found["cancelled_in_s"] = round(time.monotonic() - asked, 1)
        pid = runs[slow[1]].status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: (runs[slow[1]].read_state() or {}).get("attempt") == 2, 60, "the killed one waits again")
        found["killed"] = (runs[slow[1]].read_state() or {})["reason"]
        tell(f"one was cancelled in {found['cancelled_in_s']} s, one killed: {found['killed']}")

        boss.stop()  # the app is started again: nothing may be asked for twice
        boss = Supervisor()
        boss.start()
        until(lambda: state(slow[1]) is State.COMPLETE, 240, "the killed one is complete")
        jobs = connect(ADDRESS)
        names = [slow[1], f"{slow[1]}-2", f"{slow[1]}-3"]
        found["asked_twice"] = [name for name in names if name.endswith("-3") and jobs.look(name) is not None]
        assert jobs.look(names[1]) is not None
        tell("the killed one is complete, found again by the next app")

        slow += queue(slow_yaml)
        until(lambda: working(slow[2]), 240, "a third works")
        boss.pause()
        held = state(slow[3])
        head.kill()
        tell(f"the head is killed while one works and the other is {held}")
        until(lambda: (runs[slow[2]].read_state() or {}).get("attempt") == 2, 120, "its run waits again")
        found["lost"] = (runs[slow[2]].read_state() or {})["reason"]
        tell(f"lost: {found['lost']} {boss.cluster()}")
        boss.resume()
        head = Head(folder)
        until(lambda: all(state(run_id) is State.COMPLETE for run_id in slow[2:]), 400, "all is complete after all")
        tell("a new head, and all is complete")
        found["states"] = [str(state(run_id)) for run_id in runs]
        found["attempts"] = [run.status().attempt for run in runs.values()]
    finally:
        for run in runs.values():
            tell(f"{run.id}: {run.status()}")
        boss.stop()
        head.kill()
    return found


def _with_another_token() -> str:
    """What a cluster says to somebody whose token is another; asked in a process of its own, which keeps its token."""
    code = f"from core.jobs.ray_cluster import connect\ntry:\n connect({ADDRESS!r})\nexcept Exception as e: print(e)"
    environment = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}
    environment.pop("RAY_AUTH_TOKEN_PATH")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:4]))))
