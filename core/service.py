"""The only door for pages: every question a page asks, and everything it may do, is one method here.

Light: nothing here, nor anything it imports, loads torch, transformers, peft, lm_eval or datasets.
Safe to call from many threads at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from core.views import ChatModel, Preview, RunDetail, StatusLine

if TYPE_CHECKING:
    import pandas as pd

    from core.chat.client import ChatClient
    from core.data.corpora import CorpusInfo
    from core.experiment import Experiment
    from core.models.catalogue import Entry
    from core.models.sizes import Architecture
    from core.pruning.registry import Method

__all__ = ["ChatModel", "Preview", "RunDetail", "Service", "StatusLine", "close_service", "get_service"]


class Service:
    """One per process and home. `supervisor=False` shows a home without running its queue."""

    def __init__(self, home: Path | None = None, supervisor: bool = True) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Stop the supervisor's thread (workers go on) and close the store."""

    # What can be chosen -------------------------------------------------------------------------------------------
    def catalogue(self) -> list[Entry]: ...
    def architecture(self, model_name: str, trust: bool = False) -> Architecture: ...
    def methods(self) -> list[Method]: ...
    def corpora(self) -> list[CorpusInfo]: ...
    def tasks(self) -> list: ...  # the entries of core.data.tasks

    # Before a run -------------------------------------------------------------------------------------------------
    def preview(self, experiment: Experiment) -> Preview: ...
    def quick_look(self) -> list[Experiment]: ...

    # The queue ----------------------------------------------------------------------------------------------------
    def submit(self, experiments: list[Experiment], with_baseline: bool = False) -> list[str]: ...
    def cancel(self, run_id: str) -> None: ...
    def retry(self, run_id: str) -> str: ...
    def delete(self, run_id: str) -> None: ...
    def move(self, run_id: str, by: int) -> None: ...
    def pause(self, paused: bool = True) -> None: ...
    def status_line(self) -> StatusLine: ...

    # Runs ---------------------------------------------------------------------------------------------------------
    def run_list(self) -> pd.DataFrame: ...  # columns of runs + position, stage, done, total, unit, eta_s
    def run_detail(self, run_id: str) -> RunDetail: ...
    def log_tail(self, run_id: str, n: int = 200) -> str: ...

    # Compare ------------------------------------------------------------------------------------------------------
    def runs(self) -> pd.DataFrame: ...
    def metrics(self, run_ids: list[str]) -> pd.DataFrame: ...
    def layers(self, run_ids: list[str]) -> pd.DataFrame: ...
    def baseline_for(self, run_id: str) -> str | None: ...

    # Chat ---------------------------------------------------------------------------------------------------------
    def chat_models(self) -> list[ChatModel]: ...
    def chat_client(self) -> ChatClient: ...


def get_service() -> Service:
    """The process's one Service (made on first call, thread-safe)."""
    raise NotImplementedError


def close_service() -> None:
    """Close the process's Service, if there is one."""
