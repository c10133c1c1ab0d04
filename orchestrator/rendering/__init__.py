"""A plan and the job templates become the script that is submitted, byte for byte.

    render(plan, attempt, templates) -> BatchScript
    rerun_script(plan, script, …) -> the script that makes the run again

`script` does the first, `rerun` the second; `template_folder` reads templates and says what they may consist of;
`shell_quoting` knows where in a script a value stands and how it must be written there.
"""

from __future__ import annotations

from orchestrator.rendering.rerun import rerun_script
from orchestrator.rendering.script import (
    MAX_SCRIPT_BYTES,
    compile_template,
    render,
    render_recorded,
    template_variables,
)
from orchestrator.rendering.template_folder import template_names

__all__ = [
    "MAX_SCRIPT_BYTES",
    "compile_template",
    "render",
    "render_recorded",
    "rerun_script",
    "template_names",
    "template_variables",
]
