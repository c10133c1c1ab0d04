"""The records in the runs' own directories: written, read back into a database that was lost, and compared with it.

write_due(store, …)        runs whose record is due -> provenance.json
write_waiting(store, …)    runs that wait to be submitted -> plan.json
import_runs(store, …)      provenance.json -> rows
check(store, …)            what doesn't fit together, named
"""

from orchestrator.record_keeping.checking import Finding, check
from orchestrator.record_keeping.importing import Imported, import_runs
from orchestrator.record_keeping.writing import records_folder, write_due, write_waiting

__all__ = ["Finding", "Imported", "check", "import_runs", "records_folder", "write_due", "write_waiting"]
