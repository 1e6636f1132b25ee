"""A Ray cluster through its Jobs API: the only module that imports ray, which is needed by who uses a cluster alone.

Ray queues for processors and GPUs across nodes, starts the worker's command, ends it when asked, and says how it ended.
What the worker does, it says in the run's folder, as everywhere. `core/jobs/cluster.py` decides what is asked here.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from core.jobs.cluster import AMOUNTS, Capacity, ClusterError, Jobs, Order, Seen, Unreachable

TIMEOUT_S = 15.0
"""Longest wait for an answer: submitting asks an agent that may be starting, and took 5 s on two cores."""
STOP_WAIT_S = 20
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_Answer = TypeVar("_Answer")


def connect(address: str) -> Jobs:
    """A connection to the dashboard at `address`, such as http://head:8265. ClusterError says why there is none."""
    for name in _OVERRIDES:
        if (set_ := os.environ.get(name, "").strip()) and urlsplit(set_).netloc != urlsplit(address).netloc:
            raise ClusterError(f"{name}={set_} overrides {address}.", f"Start the app without {name}.")
    try:
        import ray  # noqa: F401
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise ClusterError(
            f"Ray is not installed here ({error}).",
            "Install requirements-cluster.txt, then start the app again.",
        ) from error

    class Client(JobSubmissionClient):  # type: ignore[misc, unused-ignore]
        """Ray's own, whose requests end."""

        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": TIMEOUT_S, **more})

    return RayJobs(_asked(lambda: Client(address)), address)


class RayJobs:
    """Jobs of one cluster; every method asks its head, and waits `TIMEOUT_S` at most."""

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self._address = address

    def capacity(self) -> Capacity:
        """What the living nodes have."""
        from ray.util.state import list_nodes

        nodes = _asked(
            lambda: list_nodes(
                address=self._address, filters=[("state", "=", "ALIVE")], timeout=int(TIMEOUT_S), detail=True,
                raise_on_missing_output=False,
            )
        )  # fmt: skip
        found = [dict(getattr(node, "resources_total", None) or {}) for node in nodes]
        sums = {name: sum(float(each.get(key, 0.0)) for each in found) for name, key in AMOUNTS.items()}
        return Capacity(nodes=len(found), **sums)

    def look(self, submission_id: str) -> Seen | None:
        """Where a job stands; None if the cluster does not know it."""
        try:
            found = _asked(lambda: self._client.get_job_info(submission_id))
        except ClusterError as error:
            if "status code 404" in error.message:
                return None
            raise
        return Seen(str(found.status), found.driver_exit_code, str(found.message or ""))

    def submit(self, order: Order) -> None:
        """Ask for a job. One that is there already, because an answer was lost, stays as it is."""
        environment = {**order.environment, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
        try:
            _asked(
                lambda: self._client.submit_job(
                    entrypoint=order.entrypoint,
                    submission_id=order.submission_id,
                    entrypoint_num_cpus=order.cpus,
                    entrypoint_num_gpus=order.gpus or None,
                    metadata=dict(order.metadata),
                    runtime_env={"env_vars": environment},
                )
            )
        except ClusterError:
            if self.look(order.submission_id) is None:
                raise

    def stop(self, submission_id: str) -> None:
        """Ask a job to end: SIGTERM to its processes, and SIGKILL after `STOP_WAIT_S`. One that is over stays so."""
        _asked(lambda: self._client.stop_job(submission_id))


def _asked(question: Callable[[], _Answer]) -> _Answer:
    """An answer; Unreachable where nobody answers, ClusterError with what was answered where it is a refusal."""
    from ray.exceptions import AuthenticationError
    from ray.util.state.exception import RayStateApiException, ServerUnavailable
    from requests import exceptions

    try:
        return question()
    except AuthenticationError as error:
        raise ClusterError(
            f"The cluster refuses the token: {_first_line(error)}",
            "Give the app the cluster's: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH.",
        ) from error
    except (exceptions.ConnectionError, exceptions.Timeout, ConnectionError, ServerUnavailable) as error:
        raise Unreachable(_first_line(error)) from error
    except (RuntimeError, exceptions.RequestException, RayStateApiException, ValueError) as error:
        raise ClusterError(_first_line(error), "See the cluster's own log.") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = lines[0] if len(lines) == 1 or not lines[0].endswith("last):") else f"{lines[0]} … {lines[-1]}"
    return said[:400]
