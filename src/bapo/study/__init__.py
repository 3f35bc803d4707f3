"""Studies: a file that names a grid, the jobs that it needs, and what became of each."""

from bapo.study.counting import with_counted_sizes
from bapo.study.estimate import estimate
from bapo.study.executors import run_here, run_in_processes, run_on_ray
from bapo.study.file import StudyFile, read_study
from bapo.study.grid import Cell, Study, StudyJob, open_study
from bapo.study.ledger import Ledger, State
from bapo.study.page import study_page
from bapo.study.rates import Rates, datasheet_rates, measured_rates
from bapo.study.report import logs_by_method, report
from bapo.study.storage import Storage

__all__ = [
    "Cell",
    "Ledger",
    "Rates",
    "State",
    "Storage",
    "Study",
    "StudyFile",
    "StudyJob",
    "datasheet_rates",
    "estimate",
    "logs_by_method",
    "measured_rates",
    "open_study",
    "read_study",
    "report",
    "run_here",
    "run_in_processes",
    "run_on_ray",
    "study_page",
    "with_counted_sizes",
]
