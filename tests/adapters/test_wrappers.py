"""Wrappers are taken off a command and put back as they were, or refused with a way out."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard.adapters.wrappers import WRAPPERS, unwrap, unwrap_script
from oomguard.errors import FrameworkError

COMMAND = ("python", "train.py", "--per_device_train_batch_size", "4")
word = st.text("abz019._/", min_size=1, max_size=6)


@st.composite
def wrapped(draw):
    """Draw a wrapper with options that it has, as it may be written."""
    wrapper = draw(st.sampled_from(WRAPPERS))
    words = list(wrapper.words)
    for option in draw(
        st.lists(st.sampled_from([*sorted(wrapper.bare | wrapper.valued), ""]), max_size=3)
    ):
        if option in wrapper.bare:
            words.append(option)
        elif option and option.startswith("--") and draw(st.booleans()):
            words.append(f"{option}={draw(word)}")
        elif option:
            words += [option, draw(word)]
    if wrapper.words == ("env",):
        words += [
            f"{name}={draw(word)}" for name in draw(st.lists(st.sampled_from("ABC"), max_size=2))
        ]
    if draw(st.booleans()):
        words.append("--")
    return tuple(words)


@given(st.lists(wrapped(), max_size=3), st.lists(word, max_size=3))
def test_a_command_comes_out_of_its_wrappers_and_goes_back_in(wrappers, flags):
    command = (*COMMAND, *flags)
    whole = (*(word for words in wrappers for word in words), *command)
    found = unwrap(whole)
    assert found.argv == command
    assert (*found.wrapper, *found.argv) == whole


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        ("env A=1 B='x y' python t.py", "python t.py"),
        ("env -u HF_HOME python t.py", "python t.py"),
        ("nohup nice -n 10 stdbuf -oL python t.py", "python t.py"),
        ("nice -10 python t.py", "python t.py"),
        ("/usr/bin/time -v -o times python t.py", "python t.py"),
        ("uv run --with trl --extra=gpu torchrun t.py", "torchrun t.py"),
        ("uv run t.py --x 1", "t.py --x 1"),
        ("poetry run python -m trainer", "python -m trainer"),
        ("conda run -n train --no-capture-output python t.py", "python t.py"),
        ("pixi run -e cuda accelerate launch t.py", "accelerate launch t.py"),
        ("uv run env A=1 python t.py", "python t.py"),
        ("python t.py env A=1", "python t.py env A=1"),
    ],
)
def test_known_wrappers_end_where_the_command_begins(line, argv):
    assert unwrap(tuple(shlex.split(line))).argv == tuple(shlex.split(argv))


def test_what_env_sets_and_removes_is_known():
    assert unwrap(("env", "-u", "A", "B=1=2", "python")).env == {"A": None, "B": "1=2"}


def test_a_pythonpath_does_not_hide_the_monitors():
    found = unwrap(("env", "PYTHONPATH=src", "A=1", "python", "t.py"))
    assert found.for_job == (("env", "A=1"), {"PYTHONPATH": "src"})


@pytest.mark.parametrize(
    ("line", "way_out"),
    [
        ("srun -n 1 python t.py", "srun ... oomguard launch -- COMMAND"),
        ("env -i python t.py", "env ... oomguard launch -- COMMAND"),
        ("env -u PYTHONPATH python t.py", "env ... oomguard launch -- COMMAND"),
        ("env -S 'python t.py'", "env ... oomguard launch -- COMMAND"),
        ("nohup sudo python t.py", "nohup sudo ... oomguard launch -- COMMAND"),
        ("uv run --directory x python t.py", "uv ... oomguard launch -- COMMAND"),
        ("conda run --future 1 python t.py", "conda ... oomguard launch -- COMMAND"),
        ("nohup", "oomguard launch -- nohup python train.py ..."),
        ("uv run --frozen", "oomguard launch -- uv run --frozen python train.py ..."),
    ],
)
def test_what_cannot_be_put_back_is_refused_with_the_command_to_write(line, way_out):
    with pytest.raises(FrameworkError) as refused:
        unwrap(tuple(shlex.split(line)))
    assert way_out in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2


def script(text, *arguments, name="run.sh"):
    return unwrap_script(("bash", name, *arguments), lambda _: text)


def test_a_script_of_exports_and_one_command_is_that_command():
    text = (
        "#!/bin/bash\n# mine\nset -euo pipefail\nset -x\n\nexport A=1 B='two words'\n"
        'export C="3"\n'
        "D=4 torchrun --nproc-per-node 2 \\\n    train.py --lr 1e-4  # the rate\n"
    )
    found = script(text)
    assert found.wrapper == ("env", "A=1", "B=two words", "C=3", "D=4")
    assert found.argv == ("torchrun", "--nproc-per-node", "2", "train.py", "--lr", "1e-4")
    assert script("exec uv run python t.py").wrapper == ("uv", "run")
    assert script("exec uv run python t.py").argv == ("python", "t.py")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("python t.py | tee log", 1),
        ("python t.py > log 2>&1 &", 1),
        ("cd there\npython t.py", 1),
        ("export A=$HOME\npython t.py", 1),
        ("A=1\npython t.py", 1),
        ("export A\npython t.py", 1),
        ("python a.py\npython b.py", 2),
        ("for i in 1 2; do python t.py; done", 1),
        ("python t.py \"$@\"", 1),
        ("python t.py ~/data", 1),
        ("python t.py `date`", 1),
        ("python 't.py", 1),
        ("source env/bin/activate\npython t.py", 1),
        ("export A=1\n", None),
        ("", None),
    ],
)  # fmt: skip
def test_any_other_script_is_refused_with_its_line(text, line):
    with pytest.raises(FrameworkError) as refused:
        script(text)
    assert (refused.value.where.file, refused.value.where.line) == ("run.sh", line)
    assert "oomguard launch -- COMMAND" in refused.value.next_step


def test_a_script_with_arguments_is_refused_and_another_program_is_no_script():
    with pytest.raises(FrameworkError, match="it takes arguments"):
        script("python t.py", "--lr", "1")
    assert script("", name="-c") is None
    assert unwrap_script(("python", "t.py"), lambda _: "") is None
