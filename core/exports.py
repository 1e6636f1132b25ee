"""What pages ask about exports of runs: one room of the service (core/service.py)."""

from pathlib import Path

from core import board
from core.jobs import exporting
from core.jobs.export_source import both_stages
from core.jobs.exporting import ExportChoice, ExportStatus
from core.jobs.supervisor import Supervisor


class ExportsOfRuns:
    """Part of the Service."""

    home: Path

    def _owner(self) -> Supervisor:
        raise NotImplementedError

    def export_stages(self, run_id: str) -> tuple[str, ...]:
        """`recovered` and `pruned` where a run keeps both models; else nothing."""
        return both_stages(board.existing(self.home, run_id))

    def export_choices(self, run_id: str, stage: str = "") -> list[ExportChoice]:
        """Forms in which a run's model, by default the last, can be exported; none where it kept no model."""
        return exporting.choices(board.existing(self.home, run_id), stage)

    def exports(self, run_id: str) -> list[ExportStatus]:
        """Exports of a run, running and done. What says that it lies elsewhere than with the run is left out."""
        run = board.existing(self.home, run_id)
        folder = run.path / "export"
        found = exporting.exports(run)
        return [each for each in found if not each.path or Path(each.path).resolve().is_relative_to(folder)]

    def start_export(self, run_id: str, format_: str, dtype: str, stage: str = "") -> None:
        """Export in a process of its own; `exports` says where it stands."""
        self._owner()
        exporting.start(board.existing(self.home, run_id), self.home, format_, dtype, stage)

    def cancel_export(self, run_id: str, name: str) -> None:
        """Ask a running export (`gguf-q8_0`) to stop."""
        self._owner()
        exporting.cancel(board.existing(self.home, run_id), name)
