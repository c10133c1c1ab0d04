"""Rendering: values reach the shell as they are, or are refused; what isn't allowed is named with its place."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import InvalidTemplate
from orchestrator.records import CollectionStart, JobPlan, Resources, RunTag
from orchestrator.rendering import MAX_SCRIPT_BYTES, render, template_variables
from orchestrator.rendering.shell_quoting import quote
from orchestrator.runs import RunDirectory
from orchestrator.sbatch_options import OPTIONS, PathText, directive

SHIPPED = Path(__file__).parents[2] / "jobtemplates"
RUN_ID = "6c1f5d2e-6a57-5d1c-8a39-3a6e0b9c1f11"
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
NASTY = [
    "", "a b", "$(touch hacked)", "`touch hacked`", "'; touch hacked; '", '"', "\n#SBATCH --time=1\n", "\\", "é€😀",
    "-n", "~", "*", "if", "a=b", "!!", "\r\x1b[31m", "$HOME", "{a,b}", "'", "\\'", "#", "\u202e", "\x02", "]]",
]  # fmt: skip


def plan_of(**changes: Any) -> JobPlan:
    collection = CollectionStart(
        uid="uid-1", beamline="i22", detector="saxs", file=Path("/data/scan 1's.nxs"), dataset="/entry/data/data"
    )
    plan = JobPlan(
        run_id=RUN_ID, recipe="azimuthal", kernel="azimuthal", template="azimuthal.sbatch.j2", launcher="none",
        collection=collection, parameters=(), resources=Resources(), run_directory=Path("/runs/one"),
        python=Path(sys.executable), stall_timeout_s=30.0, appear_timeout_s=60.0,
    )  # fmt: skip
    return replace(plan, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "jobtemplates"))


@pytest.fixture
def rendered(folder: Path) -> Callable[..., str]:
    """Render a template's body with ``plan.modules`` as the values it may use."""

    def rendered(body: str, *values: str, shebang: str = "#!/bin/bash\n", **changes: Any) -> str:
        (folder / "test.sbatch.j2").write_text(shebang + body)
        return render(plan_of(template="test.sbatch.j2", modules=values, **changes), 1, folder).text

    return rendered


def bash(script: str, cwd: Path) -> str:
    done = subprocess.run(["bash"], input=script.encode(), capture_output=True, check=True, cwd=cwd, timeout=20)
    assert done.stderr == b""
    return done.stdout.decode()


# ------------------------------------------------------------------------------------------------------ quoting


EVERY_PLACE = r"""
show() { printf '%s\0' "$@"; }  # it's a comment with a quote
show {{ plan.modules[0] }} "$(echo "a b")"/{{ plan.modules[1] }}; (show {{plan.modules[0]}}) # ${unbalanced
name={{ plan.modules[0] }}
show "$name" --option={{ plan.modules[1] }} pre{{ plan.modules[0] }}{{ plan.modules[1] }}post
show {{ plan.modules }} $((1 + (2 * 3))) ${name:+"}"} $'it\'s'
words=({{ plan.modules }})
show "${words[@]}"
cat <<'END' > /dev/null
it's a here-document with $(unbalanced quotes "
END
case {{ plan.modules[0] }} in {{ plan.modules[0] }}) show same ;; *) show different ;; esac
if [[ $name == "$name" ]]; then show {{ plan.modules[1] }}; fi
"""


@pytest.mark.parametrize("first", NASTY)
def test_bash_sees_exactly_the_values(rendered: Callable[..., str], tmp_path: Path, first: str) -> None:
    assert_shown_in_every_place(rendered, tmp_path, first, "b c")
    assert_shown_in_every_place(rendered, tmp_path, "b c", first)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=TEXTS, second=TEXTS)
def test_bash_sees_exactly_any_values(rendered: Callable[..., str], tmp_path: Path, first: str, second: str) -> None:
    assert_shown_in_every_place(rendered, tmp_path, first, second)


def assert_shown_in_every_place(rendered: Callable[..., str], cwd: Path, a: str, b: str) -> None:
    before = sorted(cwd.iterdir())
    script = rendered(EVERY_PLACE, a, b)
    shown = [a, f"a b/{b}", a, a, f"--option={b}", f"pre{a}{b}post", a, b, "7", "}" if a else None, "it's", a, b,
             "same", b]  # fmt: skip
    assert bash(script, cwd).split("\0")[:-1] == [text for text in shown if text is not None]
    assert sorted(cwd.iterdir()) == before
    assert "#SBATCH" not in [line.strip()[:7] for line in script.split("\n")], "a value begins a line"


FRAGMENTS = [
    "'", '"', "$'", "$(", ")", "`", "${x:-", "}", "$((", "((", "))", "<<E", "<<-'E'", "\n", "\nE\n", " ", "#", " #",
    "\\", "echo ", "[[ ", " ]]", "case x in ", " x) ", ";;", " esac", "a[", "]=1", "=", "; ", "| cat", "(", "$", "1",
    "{", "if ", "then ", "fi\n", "a=([", "#'", "]]", "@(", "<(", "$\"", "\\\n", "<<$'E'", "((1))", "[ ", " ]",
    "' ", " '",
]  # fmt: skip
HARMFUL = [
    "$(touch hacked)", "`touch hacked`", "'$(touch hacked)'", "a[$(touch hacked)]", '"$(touch hacked)',
    "\n touch hacked\n", "; touch hacked;", "}$(touch hacked)", "E\ntouch hacked\n",
]  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(st.sampled_from(FRAGMENTS), max_size=8),
    after=st.lists(st.sampled_from(FRAGMENTS), max_size=8),
    value=st.sampled_from(HARMFUL),
)
def test_in_no_script_that_is_accepted_a_value_is_run(
    rendered: Callable[..., str], tmp_path: Path, before: list[str], after: list[str], value: str
) -> None:
    body = "".join((*before, "{{ plan.modules[0] }}", *after)).replace("{#", "{ #").replace("{{{", "{ {{")
    try:
        script = rendered(body, value)
    except InvalidTemplate:
        return
    subprocess.run(["bash"], input=script.encode(), capture_output=True, check=False, cwd=tmp_path, timeout=20)
    assert not (tmp_path / "hacked").exists(), script


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ("echo '{{ plan.run_id }}'", "inside single quotes"),
        ('echo "x {{ plan.run_id }}"', "inside double quotes"),
        ("echo $'{{ plan.run_id }}'", "inside single quotes"),
        ("echo `ls {{ plan.run_id }}`", "inside backticks"),
        ("echo $(ls {{ plan.run_id }})", "inside a command substitution"),
        ("diff <(ls {{ plan.run_id }}) x", "inside a command substitution"),
        ("echo ${x:-{{ plan.run_id }}}", "inside a parameter expansion"),
        ("echo $((1 + {{ job.attempt }}))", "inside an arithmetic expression"),
        ("((x = {{ job.attempt }}))", "inside an arithmetic expression"),
        ("[[ x -eq {{ job.attempt }} ]]", "inside a [[ ]] test"),
        ("cat <<END\n{{ plan.run_id }}\nEND", "inside the here-document END"),
        ("cat <<-'E D'\n\tx\n\t{{ plan.run_id }}\n\tE D", "inside the here-document E D"),
        ("cat << {{ plan.run_id }}", "as the name of a here-document"),
        ("echo ${{ plan.run_id }}", "as a word behind '$'"),
        ("echo \\{{ plan.run_id }}", "as a word behind a backslash"),
        ("a[{{ job.attempt }}]=1", "inside an array's subscript"),
        ("a[1 + {{ job.attempt }} ]=1", "inside an array's subscript"),
        ("while((x < {{ job.attempt }} ))", "inside an arithmetic expression"),
        ("x=$( ((x = {{ job.attempt }})) )", "inside an arithmetic expression"),
        ("echo {{ plan.run_id }}[0]=1", "as a word before '['"),
        ("echo ~{{ plan.run_id }}", "as a word behind '~'"),
        ("a=([ {{ plan.run_id }} ]=1)", "inside an array's subscript"),
        ("a=(x [1 + {{ plan.run_id }} ]+=1)", "inside an array's subscript"),
        ("[[ 1 -eq ]]{{ plan.run_id }} ]]", "inside a [[ ]] test"),
        ("eval echo {{ plan.run_id }}", "inside a command that takes its words for code"),
        ("true && trap {{ plan.run_id }} EXIT", "inside a command that takes its words for code"),
        ("if let x={{ plan.run_id }}; then :; fi", "inside a command that takes its words for code"),
        ("IFS= read -r {{ plan.run_id }}", "inside a command that takes its words for code"),
        ("declare \\\n  {{ plan.run_id }}=1", "inside a command that takes its words for code"),
        ("local -i x={{ plan.run_id }}", "inside a command that takes its words for code"),
        ("[ ! -v {{ plan.run_id }} ]", "inside a command that takes its words for code"),
        ("printf -v {{ plan.run_id }} x", "inside a command that takes its words for code"),
        ("/bin/sh -ec {{ plan.run_id }}", "inside a command that takes its words for code"),
    ],
)  # fmt: skip
def test_a_value_where_no_quoting_is_right_is_refused_with_its_line(
    rendered: Callable[..., str], body: str, where: str
) -> None:
    with pytest.raises(InvalidTemplate, match=r"test\.sbatch\.j2, line \d+: ") as refused:
        rendered(body)
    assert where in str(refused.value)
    line = (f"#!/bin/bash\n{body}").split("{{")[0].count("\n") + 1
    assert f"line {line}: " in str(refused.value)
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("echo 'a", "never end"),
        ('echo "a $(b', "never end"),
        ("cat <<END\nx", "here-document END has no end"),
        ("echo $(case x in x) echo ;; esac)", "put it into a function"),
        ('echo "${x:-\'}"', "single quote in ${…}"),
        ("echo $[1]", "write $((…))"),
        ("cat <<END\na\\\nEND\nEND", "ends in a backslash"),
        ("x=$(cat <<END)\nEND", "goes on behind it"),
        ("((echo a) ; echo b)", "put a space between"),
        ("((1))# it's", "put a space before the comment"),
        ("a[ # ]=1", "'#' behind an open bracket"),
        ("a=([ # ]=1)", "'#' behind an open bracket"),
        ("ls @(#)", "'#' behind an open bracket"),
        ("[[ a =~ (#) ]]", "'#' behind an open bracket"),
        ("cat <<$'E'\n$E\nE", "write its name as a plain word"),
        ("cat <<'E\\F'\nEF\nE\\F", "write its name as a plain word"),
        ("cat <<E\\\nF\nE\nEF", "write its name as a plain word"),
        ("echo [[ <<E\n'\nE\n ]]", "inside [[ … ]]"),
        ("cat <\\\n<E\n'\nE", "continued in the middle of a word"),
        ("echo $(ca\\\nse x in x) echo ;; esac)", "continued in the middle of a word"),
        ("echo ${x:-<(echo })}", "process substitution in ${…}"),
        ("echo ${ echo '}'; }", "write $(…)"),
        ("echo a\0b", "control character"),
        ("echo a\x1bb", "control character"),
    ],
)
def test_a_script_that_cant_be_followed_is_refused(rendered: Callable[..., str], body: str, complaint: str) -> None:
    with pytest.raises(InvalidTemplate) as refused:
        rendered(body)
    assert complaint in refused.value.full_text
    assert "line " in str(refused.value)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("resources.partition", "is no value"),
        ("resources.requeue", "is true or false"),
        ("plan.environment", "is a dict"),
        ("plan.modules[0]", "contains a NUL"),
        ("plan.modules[1]", "half of a surrogate pair"),
    ],
)
def test_what_is_no_word_is_refused(rendered: Callable[..., str], expression: str, complaint: str) -> None:
    with pytest.raises(InvalidTemplate) as refused:
        rendered(f"\necho {{{{ {expression} }}}}", "\0", "\ud800")
    assert complaint in str(refused.value)
    assert "test.sbatch.j2, line 3" in str(refused.value)


@pytest.mark.parametrize(
    "body",
    [
        'if [ -f {{ plan.modules[0] }} ] && [ "$1" = {{ plan.modules[0] }} ]; then :; fi',
        "f() { local name={{ plan.modules[0] }}; declare -r other={{ plan.modules[0] }}; }; f",
        "[[ -n $HOME ]] && : {{ plan.modules[0] }}",
        ": file[0-9]*.h5 {{ plan.modules[0] }} 2> /dev/null # it's [a note]",
        "((1)) # it's\nbash -n {{ plan.modules[0] }} 2> /dev/null; printf x {{ plan.modules[0] }} > /dev/null",
        'declare -A a=(["x y"]=1)\na["x y"]=2 # note\n: \\\n  {{ plan.modules[0] }}',
        "echo let read eval {{ plan.modules[0] }} | cat -v > /dev/null",
    ],
)
def test_usual_lines_take_values(rendered: Callable[..., str], tmp_path: Path, body: str) -> None:
    before = sorted(tmp_path.iterdir())
    bash(rendered(f"{body}\n", "$(touch hacked)"), tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_behind_a_backslash_no_character_stands_whose_bytes_another_encoding_joins_with_it() -> None:
    """In GBK or Shift JIS a backslash may be the second half of a character, and would escape nothing."""
    assert quote("é'\n") == r"$'\xc3\xa9\'\n'"


def test_a_list_stands_alone(rendered: Callable[..., str]) -> None:
    with pytest.raises(InvalidTemplate, match="must stand alone"):
        rendered("echo --x={{ plan.modules }}", "a", "b")


def test_an_empty_list_is_no_word(rendered: Callable[..., str], tmp_path: Path) -> None:
    assert bash(rendered('set -- {{ plan.modules }} ; echo "$#"'), tmp_path) == "0\n"


def test_a_comment_takes_one_line_of_text_only(rendered: Callable[..., str], tmp_path: Path) -> None:
    assert "# see: it's 'x' $y\n" in rendered("# see: {{ plan.modules[0] }}\n", "it's 'x' $y")
    with pytest.raises(InvalidTemplate, match="newline or control character and stands in a comment"):
        rendered("# see: {{ plan.modules[0] }}\n", "x\ntouch hacked")


@pytest.mark.parametrize(
    "body",
    [
        "{% set x %}{{ plan.modules[0] }}{% endset %}echo {{ x }}",
        "{% macro m(x) %}{{ x }}{% endmacro %}echo {{ m(plan.modules[0]) }}",
        "{% filter upper %}{{ plan.modules[0] }}{% endfilter %}",
        "{% autoescape true %}{{ plan.modules[0] }}{% endautoescape %}",
        "{% import '_sbatch.j2' as other %}",
        "{% block a %}{{ plan.modules[0] }}{% endblock %}{{ self.a() }}",
        "{{ plan.modules[0].__class__ }}",
        "{{ plan.modules.append('x') }}",
    ],
)
def test_ways_around_the_quoting_are_refused(rendered: Callable[..., str], body: str) -> None:
    with pytest.raises(InvalidTemplate, match=r"test\.sbatch\.j2, line 2"):
        rendered(body, "$(touch hacked)")


@pytest.mark.parametrize("tail", ["| safe", "| e", "| string", "~ ''", "| tojson | safe", "| format", "| indent(2)"])
def test_filters_dont_take_the_quotes_off(rendered: Callable[..., str], tmp_path: Path, tail: str) -> None:
    bash(rendered(f"echo {{{{ plan.modules[0] {tail} }}}} >/dev/null", "$(touch hacked); touch hacked"), tmp_path)
    assert not (tmp_path / "hacked").exists()


# --------------------------------------------------------------------------------------------------- templates


def test_an_undefined_variable_names_file_line_and_name(rendered: Callable[..., str]) -> None:
    with pytest.raises(InvalidTemplate, match=r"test\.sbatch\.j2, line 4: .*no attribute 'runid'") as refused:
        rendered("\n\necho {{ plan.runid }}")
    assert "plan" in refused.value.remedy


def test_an_undefined_variable_in_a_condition_is_refused(rendered: Callable[..., str]) -> None:
    with pytest.raises(InvalidTemplate, match=r"line 3: 'bins' is undefined"):
        rendered("\n{% if bins %}x{% endif %}")


def test_a_syntax_error_names_file_and_line(rendered: Callable[..., str]) -> None:
    with pytest.raises(InvalidTemplate, match=r"test\.sbatch\.j2, line 3: .*endfor"):
        rendered("echo\n{% for x in plan.modules %}")


def test_a_fault_in_an_included_template_names_that_one(rendered: Callable[..., str], folder: Path) -> None:
    (folder / "_part.j2").write_text("echo\necho {{ nothing }}\n")
    with pytest.raises(InvalidTemplate, match=r"_part\.j2, line 2: 'nothing' is undefined"):
        rendered("{% include '_part.j2' %}")


def test_an_unknown_template_names_those_there_are(folder: Path) -> None:
    with pytest.raises(InvalidTemplate, match=r"no template 'azimutal.sbatch.j2'") as refused:
        render(plan_of(template="azimutal.sbatch.j2"), 1, folder)
    assert "azimuthal.sbatch.j2" in refused.value.remedy


def test_a_template_outside_the_folder_isnt_read(rendered: Callable[..., str], folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    with pytest.raises(InvalidTemplate, match="no template"):
        rendered("{% include '../secret' %}")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("{% include 'test.sbatch.j2' %}", "nested too deeply"),
        ("{% for x in [1] %}" * 25 + "{% endfor %}" * 25, "nested too deeply"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deeply"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "may not use Pow"),
        ("{% for i in range(1000000000) %}{% endfor %}", "too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", "more than 10000 times"),
        ("{% for i in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}", "may not use recursive"),
        ("{{ 'x' * 100000000000 }}", "for numbers"),
        ("{{ '%1000000000d' % 1 }}", "for numbers"),
    ],
)
def test_a_template_that_would_never_end_or_fill_the_memory_is_refused_at_once(
    rendered: Callable[..., str], body: str, complaint: str
) -> None:
    began = time.process_time()
    with pytest.raises(InvalidTemplate, match=r"test\.sbatch\.j2") as refused:
        rendered(body)
    assert complaint in str(refused.value)
    assert time.process_time() - began < 5


def test_many_values_take_little_time(rendered: Callable[..., str]) -> None:
    began = time.process_time()
    script = rendered("{% for i in range(9000) %}echo {{ i }} # {{ i }}\n{% endfor %}")
    assert "\necho 8999 # 8999\n" in script
    assert time.process_time() - began < 10


def test_what_is_rendered_again_is_the_same_and_an_edited_template_counts_at_once(
    rendered: Callable[..., str], folder: Path
) -> None:
    (folder / "_part.j2").write_text("echo before {{ 'a b' }} {% for n in [1, 2] %}{{ n }} {% endfor %}end\n")
    body = "{% include '_part.j2' %}\necho {{ 'constant $x' }} {{ plan.modules[0] }}\n"
    first, again = rendered(body, "a"), rendered(body, "a")
    assert first == again == "#!/bin/bash\necho before 'a b' 1 2 end\necho 'constant $x' a\n"
    assert rendered(body, "it's") == first.replace(" a\n", " 'it'\\''s'\n")
    (folder / "_part.j2").write_text("echo after\n")
    assert rendered(body, "a") == "#!/bin/bash\necho after\necho 'constant $x' a\n"


def test_arithmetic_with_numbers_is_allowed(rendered: Callable[..., str]) -> None:
    assert "echo 8 1\n" in rendered("echo {{ job.attempt * 8 }} {{ 9 % 2 }}\n")


def test_a_template_that_isnt_utf8_names_file_and_line(rendered: Callable[..., str], folder: Path) -> None:
    (folder / "_part.j2").write_bytes(b"echo\n# caf\xe9\n")
    with pytest.raises(InvalidTemplate, match=r"_part\.j2, line 2: byte 0xe9 isn't UTF-8"):
        rendered("{% include '_part.j2' %}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_template_without_rights_is_named(rendered: Callable[..., str], folder: Path) -> None:
    (folder / "_part.j2").write_text("")
    (folder / "_part.j2").chmod(0)
    with pytest.raises(InvalidTemplate, match=r"_part\.j2: Permission denied"):
        rendered("{% include '_part.j2' %}")


def test_a_script_without_a_bash_line_is_refused(rendered: Callable[..., str]) -> None:
    with pytest.raises(InvalidTemplate, match="doesn't begin with #!/bin/bash"):
        rendered("echo", shebang="#!/bin/sh\n")


def test_a_script_larger_than_slurm_takes_is_refused(rendered: Callable[..., str]) -> None:
    with pytest.raises(InvalidTemplate, match="SLURM takes 4194304"):
        rendered("echo {{ plan.modules[0] }}", "x" * MAX_SCRIPT_BYTES)


def test_the_template_text_holds_all_that_was_read(folder: Path) -> None:
    script = render(plan_of(), 1, folder)
    for name in ("azimuthal.sbatch.j2", "_sbatch.j2", "_begin.j2", "_kernel.j2", "_launch.j2"):
        assert f"---- {name} ----" in script.template_text
        assert (folder / name).read_text() in script.template_text


GUIDE = SHIPPED.parent / "docs" / "how-to" / "write-a-job-template.md"


def test_the_guides_template_renders(rendered: Callable[..., str], tmp_path: Path) -> None:
    example = GUIDE.read_text().partition("    #!/bin/bash\n")[2].partition("\nSee what comes out")[0]
    script = rendered(textwrap.dedent(example))
    assert "export TMPDIR=/scratch/$SLURM_JOB_ID\n" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_every_variable_stands_in_the_guide() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` +\| (.*) \|$", GUIDE.read_text(), re.MULTILINE))
    for name, value in template_variables(plan_of(), 1).items():
        fields = value if isinstance(value, dict) else {}
        assert {field for field in fields if f"`{field}`" not in rows[name]} <= {"template", "run_directory", "ignored"}


# ------------------------------------------------------------------------------------------------------ sbatch


def directives(script: str) -> list[str]:
    return [line for line in script.splitlines() if line.startswith("#SBATCH")]


def test_every_resource_stands_on_a_line_of_its_own(folder: Path) -> None:
    resources = Resources(
        ntasks=3, nodes=2, cpus_per_task=4, memory_mb=500, time_limit_min=24 * 60 + 61, partition="live,debug",
        account="i22", qos="high", constraint="avx512&ib", reservation="night", exclusive=True, requeue=False,
    )  # fmt: skip
    tag = RunTag(run_id=RUN_ID, attempt=2)
    lines = directives(render(plan_of(resources=resources, run_directory=Path("/runs/100%/a b")), 2, folder).text)
    assert lines == [
        f"#SBATCH --job-name={tag.job_name}", f'#SBATCH --comment="{tag.comment}"', '#SBATCH --chdir="/runs/100%/a b"',
        '#SBATCH --output="/runs/100%%/a b/attempts/2/job.log"', "#SBATCH --open-mode=append", "#SBATCH --ntasks=3",
        "#SBATCH --nodes=2", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=500M", "#SBATCH --time=1-01:01:00",
        "#SBATCH --partition=live,debug", "#SBATCH --account=i22", "#SBATCH --qos=high",
        "#SBATCH --constraint=avx512&ib", "#SBATCH --reservation=night", "#SBATCH --exclusive", "#SBATCH --no-requeue",
        "#SBATCH --signal=B:TERM@60", "#SBATCH --export=NONE",
    ]  # fmt: skip


def test_unset_resources_leave_no_line(folder: Path) -> None:
    text = render(plan_of(resources=Resources(time_limit_min=2)), 1, folder).text
    options = {line.removeprefix("#SBATCH --").partition("=")[0] for line in directives(text)}
    assert options.isdisjoint({"partition", "nodes", "mem", "account", "exclusive", "signal"})


def test_sbatch_reads_all_lines_because_no_command_stands_before_them(folder: Path) -> None:
    head = render(plan_of(), 1, folder).text.partition("#SBATCH --export=NONE\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())


@pytest.mark.parametrize("value", ["a\nb", "a\n#SBATCH --uid=0", "a b", "", "-x", 'a"b', "a'b", "a\\b", "a\x1bb", "$x"])
def test_a_partition_that_is_no_name_is_refused_with_template_and_line(folder: Path, value: str) -> None:
    with pytest.raises(InvalidTemplate, match=r"_sbatch\.j2, line \d+: --partition: ") as refused:
        render(plan_of(resources=Resources(partition=value)), 1, folder)
    line = int(str(refused.value).partition("line ")[2].partition(":")[0])
    assert "partition" in (folder / "_sbatch.j2").read_text().splitlines()[line - 1]


@pytest.mark.parametrize("character", ["\n", '"', "\\", "'"])
def test_a_run_directory_that_sbatch_couldnt_read_is_refused(folder: Path, character: str) -> None:
    with pytest.raises(InvalidTemplate, match="--chdir"):
        render(plan_of(run_directory=Path(f"/runs/a{character}b")), 1, folder)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("time", 0), ("time", "5"), ("time", "1:2:3:4"), ("ntasks", 0), ("ntasks", "2"), ("ntasks", True),
        ("mem", "1X"), ("mem", -1), ("output", "relative.log"), ("output", "/log/%q"), ("signal", "term"),
        ("dependency", "after you"),
        ("constraint", "a b"), ("mail-user", "a b"), ("export", "PATH=/x"), ("exclusive", "user"), ("open-mode", "a"),
        ("comment", "a\nb"), ("gres", "gpu 1"), ("nodelist", "node;rm"),
    ],
)  # fmt: skip
def test_a_value_that_isnt_of_the_options_type_is_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"--{option}: "):
        directive(option, value)


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("time", 61, "--time=01:01:00"), ("time", "2-00:00:00", "--time=2-00:00:00"), ("mem", "2G", "--mem=2G"),
        ("output", "/log/%j.out", "--output=/log/%j.out"), ("output", PathText("/log/%j"), "--output=/log/%%j"),
        ("dependency", "afterok:12:13,afterany:14", "--dependency=afterok:12:13,afterany:14"),
        ("comment", "a # b", '--comment="a # b"'), ("gres", "gpu:a100:2", "--gres=gpu:a100:2"),
        ("constraint", "[rack1*2&rack2*4]", "--constraint=[rack1*2&rack2*4]"),
        ("nodelist", "n[1-4,7]", "--nodelist=n[1-4,7]"),
    ],
)  # fmt: skip
def test_a_value_of_the_options_type_stands_on_the_line(option: str, value: object, line: str) -> None:
    assert directive(option, value) == f"#SBATCH {line}"


@given(option=st.sampled_from(sorted(OPTIONS)), value=st.text() | st.integers() | st.text().map(PathText))
def test_no_value_makes_a_second_line_or_ends_its_quotes(option: str, value: object) -> None:
    try:
        line = directive(option, value)
    except ValueError:
        return
    assert line.isprintable()
    assert line.count('"') in {0, 2}
    assert line.startswith(f"#SBATCH --{option}=")


def test_an_unknown_option_names_the_nearest(rendered: Callable[..., str], folder: Path) -> None:
    (folder / "_sbatch.j2").write_text('{{ sbatch("partion", "x") }}\n')
    with pytest.raises(InvalidTemplate, match=r"_sbatch\.j2, line 1: --partion .* did you mean --partition\?"):
        rendered("{% include '_sbatch.j2' %}")


def test_a_literal_directive_is_refused(rendered: Callable[..., str]) -> None:
    with pytest.raises(InvalidTemplate, match=r"line 2 of the script.*literal #SBATCH line") as refused:
        rendered("#SBATCH --time=5\n")
    assert "_sbatch.j2" in refused.value.remedy


def test_a_directive_put_together_in_a_comment_is_refused(rendered: Callable[..., str]) -> None:
    with pytest.raises(InvalidTemplate, match="literal #SBATCH line"):
        rendered("#{{ plan.modules[0] }}\n", "SBATCH --time=5")


def test_only_the_partial_calls_sbatch(rendered: Callable[..., str]) -> None:
    with pytest.raises(InvalidTemplate, match=r"line 2: only _sbatch\.j2 writes #SBATCH lines"):
        rendered("{{ sbatch('time', 5) }}\n")


@pytest.mark.parametrize("body", ["echo first\n{% include '_sbatch.j2' %}", "echo {% include '_sbatch.j2' %}"])
def test_directives_that_sbatch_wouldnt_see_are_refused(rendered: Callable[..., str], body: str) -> None:
    with pytest.raises(InvalidTemplate, match=r"_sbatch\.j2, line \d+: .*(behind the first command|alone on its line)"):
        rendered(body)


# ---------------------------------------------------------------------------------- the shipped script, run by bash

KERNEL = """#!{python}
import json, os, signal, sys, time
if sys.argv[1:3] != ["-m", "mpi_kernels"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
here = os.environ["KERNEL_TEST"]
json.dump(sys.argv[3:], open(here + "/arguments.json", "w"))
if os.environ.get("KERNEL_WAITS"):
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(4))
    open(here + "/waiting", "w").close()
    time.sleep(20)
sys.exit(int(os.environ["KERNEL_CODE"]))
"""


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Start the shipped script with the real fence and a kernel that only notes how it was called."""
    python = tmp_path / "python"
    python.write_text(KERNEL.format(python=sys.executable))
    python.chmod(0o755)

    def start(code: int = 0, *, waits: bool = False, **changes: Any) -> subprocess.Popen[bytes]:
        run = RunDirectory(tmp_path / "it's a run")
        run.attempt(1).path.mkdir(parents=True, exist_ok=True)
        environment = {"KERNEL_TEST": str(tmp_path), "KERNEL_CODE": str(code)} | (
            {"KERNEL_WAITS": "1"} if waits else {}
        )
        plan = plan_of(python=python, run_directory=run.path, environment=environment, **changes)
        # The quote in the run's directory would be refused on #SBATCH lines; bash doesn't read those.
        (templates := tmp_path / "jobtemplates").exists() or shutil.copytree(SHIPPED, templates)
        (templates / "_sbatch.j2").write_text("")
        run.script.write_text(render(plan, 1, templates).text)
        return subprocess.Popen(["/bin/bash", str(run.script)], cwd=run.path)

    return start


def events(tmp_path: Path) -> list[dict[str, Any]]:
    lines = RunDirectory(tmp_path / "it's a run").attempt(1).events.read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_kernel_is_called_with_the_documented_command_line(
    job: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    collection = replace(plan_of().collection, frames_expected=200)
    assert job(collection=collection).wait(20) == 0
    run = RunDirectory(tmp_path / "it's a run")
    assert json.loads((tmp_path / "arguments.json").read_text()) == [
        "azimuthal", "--input", "/data/scan 1's.nxs", "--dataset", "/entry/data/data", "--output", str(run.result),
        "--parameters", str(run.parameters), "--end-file", str(run.collection_end),
        "--progress", str(run.attempt(1).progress), "--expected", "200", "--appear-timeout", "60.0",
        "--stall-timeout", "30.0", "--run-id", RUN_ID, "--resume",
    ]  # fmt: skip


def test_a_requeued_job_has_a_progress_file_of_its_own(
    job: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert job().wait(20) == 0
    attempt = RunDirectory(tmp_path / "it's a run").attempt(1)
    arguments = json.loads((tmp_path / "arguments.json").read_text())
    assert arguments[arguments.index("--progress") + 1] == str(attempt.progress_of(2))


def test_without_an_announced_number_none_is_handed_over(
    job: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    assert job().wait(20) == 0
    assert "--expected" not in json.loads((tmp_path / "arguments.json").read_text())


@pytest.mark.parametrize("code", [0, 1, 4])
def test_the_job_ends_with_the_kernels_code_and_records_it(
    job: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, code: int
) -> None:
    assert job(code).wait(20) == code
    assert [event["kind"] for event in events(tmp_path)] == ["begin", "end"]
    assert events(tmp_path)[-1]["detail"]["exit_code"] == code


def test_a_second_job_for_the_attempt_leaves_without_doing_anything(
    job: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert job(4).wait(20) == 4
    (tmp_path / "arguments.json").unlink()
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    assert job(4).wait(20) == 0
    assert not (tmp_path / "arguments.json").exists()
    assert [event["kind"] for event in events(tmp_path)] == ["begin", "end", "duplicate"]


@pytest.mark.parametrize("launcher", ["none", pytest.param("mpirun", marks=pytest.mark.mpi)])
def test_slurms_term_lets_the_kernel_end_in_order(
    job: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    script = job(waits=True, launcher=launcher, launcher_options=("--oversubscribe",))
    for _ in range(200):
        if (tmp_path / "waiting").exists():
            break
        time.sleep(0.05)
    script.send_signal(signal.SIGTERM)
    assert script.wait(20) == 4
    assert events(tmp_path)[-1]["detail"]["exit_code"] == 4


def test_a_module_that_cant_be_loaded_ends_the_job_before_it_claims_the_attempt(
    job: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    assert job(modules=("no such module",)).wait(20) == 69
    assert not RunDirectory(tmp_path / "it's a run").attempt(1).events.exists()


def test_an_mpirun_beside_the_interpreter_serves_where_the_path_has_none(
    job: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpirun = tmp_path / "mpirun"
    mpirun.write_text(f'#!/bin/bash\n: > {tmp_path}/called\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    mpirun.chmod(0o755)
    monkeypatch.setenv("PATH", "/none/such")
    assert job(4, launcher="mpirun").wait(20) == 4
    assert (tmp_path / "called").exists()
