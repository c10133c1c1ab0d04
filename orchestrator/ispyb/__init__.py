"""ISPyB: runs are mirrored to a site's ISPyB, and reprocessing that is asked for there is run.

ISPyB is a status and attachment index, too narrow to be the record: what it can't hold is shortened visibly, and the
whole is attached. Nothing in the service waits for it. Which rows a run becomes is told in ``docs/reference/ispyb.md``.

    tables              the columns that are used; no others are touched
    fitting             text -> text that a column holds; pure
    mapping             RunDetail -> rows; pure
    database            the connection; errors by what helps against them
    schema              version, columns and rights of the ISPyB at hand
    data_collections    which data collection a run is of
    writing             rows -> ISPyB, brought in line in one transaction
    requests            ProcessingJobs that people ask for -> runs
    mirror              the loop's step
"""

from orchestrator.ispyb.mirror import Mirror

__all__ = ["Mirror"]
