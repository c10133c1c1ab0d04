"""Active jobs followed to their end: states, progress, results -> store.

One cycle asks the controller once about all active jobs, reads what kernels and jobs left in the runs' directories, and
writes to the store what changed. Evidence is ranked: controller, then accounting, then the job's own end record; a job
that none of them knows is *unknown*, never a success. What comes after the verdict (usage, last lines of a job that was
killed) is still taken in for a while. Whatever is wrong with one run costs that run only, and is said once.

    follower.py       the cycle: who is asked, what is done about the answer
    roster.py         which jobs are active, and what is remembered of each
    files.py          what kernel and job left in the run's directory
    announcing.py     the end of a collection, told to the kernels
    verdicts.py       how a job's end, or its absence, ends its run
    late.py           what comes after the verdict; accounting
"""

from orchestrator.following.follower import Follower
from orchestrator.following.late import LATE_PATIENCE, USAGE_INTERVAL
from orchestrator.following.verdicts import LAST_WORD_PATIENCE

__all__ = ["LAST_WORD_PATIENCE", "LATE_PATIENCE", "USAGE_INTERVAL", "Follower"]
