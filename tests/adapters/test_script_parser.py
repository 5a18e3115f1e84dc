"""A script whose own parser takes no other flags is given none that it ends at."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard.adapters.contract import JobRequest
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.hf.script_parser import own_flags
from oomguard.job.training_job import Job

PARSER = "import argparse\nap = argparse.ArgumentParser()\n"
OWN = PARSER + "ap.add_argument('--bs', '-b', type=int, default=16)\na = ap.parse_args()\n"
IN_GROUPS = """
from argparse import ArgumentParser
def parse():
    parser = ArgumentParser(description="x")
    parser.add_argument("data")
    group = parser.add_argument_group("model")
    group.add_argument("--bs", type=int)
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--fast", action="store_true")
    parser.set_defaults(fast=True)
    return parser.parse_args()
"""
OPEN = {
    "parse_known_args": OWN.replace("parse_args", "parse_known_args"),
    "no parser": "print('x')\n",
    "no script": "",
    "no Python": "def (",
    "two parsers": OWN + OWN.replace("ap", "bp"),
    "it is handed on": OWN.replace("a = ", "add_more(ap)\na = "),
    "it is returned": PARSER + "def get():\n    return ap\nap.parse_args()\n",
    "it is kept": PARSER + "self.parser = ap\nap.parse_args()\n",
    "it has parents": OWN.replace("ArgumentParser()", "ArgumentParser(parents=[base])"),
    "it is made by others": "ap = HfArgumentParser((A, B))\nap.parse_args()\n",
    "it is passed at once": "f(argparse.ArgumentParser())\n" + OWN,
    "other words are parsed": OWN.replace("parse_args()", "parse_args(words)"),
    "names are computed": PARSER + "ap.add_argument('--' + name)\nap.parse_args()\n",
    "names in a loop": PARSER + "for n in names: ap.add_argument(n)\nap.parse_args()\n",
    "another method": OWN.replace("a = ", "ap.register('x', y, z)\na = "),
    "subcommands": OWN.replace("a = ", "sub = ap.add_subparsers()\na = "),
}


def test_its_flags_are_those_that_it_declares():
    assert own_flags(OWN) == ("--bs",)
    assert own_flags(IN_GROUPS) == ("--bs", "--fast")


@pytest.mark.parametrize("name", OPEN)
def test_a_parser_that_may_take_others_is_not_closed(name):
    assert own_flags(OPEN[name]) is None


names = st.text("abc_", min_size=4, max_size=4).map("--f{}".format)  # none abbreviates another


@given(st.lists(names, unique=True, max_size=4), names)
def test_argparse_takes_just_these(declared, tried):
    lines = "".join(f"ap.add_argument({flag!r})\n" for flag in declared)
    code = f"{PARSER}{lines}ap.parse_args()\n"
    own = own_flags(code)
    assert own == tuple(declared)
    before, sys.argv = sys.argv, ["train.py", tried, "1"]
    stream, sys.stderr = sys.stderr, open("/dev/null", "w")  # noqa: PTH123, SIM115
    try:
        exec(code, {})
        ends = False
    except SystemExit:
        ends = True
    finally:
        sys.stderr.close()
        sys.argv, sys.stderr = before, stream
    assert ends == (tried not in own)


def job_of(code: str, *flags: str) -> Job:
    files = {"/job/train.py": code}
    argv = ("python", "train.py", *flags)
    return HFTrainer().read(JobRequest(argv=argv, cwd="/job", source=None, files=files))


def test_a_plan_whose_flags_it_does_not_take_is_refused_with_them():
    job = job_of(OWN, "--bs", "16")
    halved = replace(job.asked, micro_batch=4, accumulation=2)
    assert HFTrainer().refusal(job, job.asked) is None
    assert HFTrainer().refusal(job, halved) == (
        "the script does not take --per_device_train_batch_size, --gradient_accumulation_steps"
    )
    (warning,) = HFTrainer().warnings(job)
    assert warning.startswith("train.py does not take --per_device_train_batch_size (its own ")
    assert "(its own flags: --bs)" in warning
    assert "its batch is not known and cannot be changed; 8, the Trainer's default" in warning


def test_one_that_it_takes_is_not_and_a_variable_is_no_flag():
    both = "--per_device_train_batch_size", "--gradient_accumulation_steps"
    lines = "".join(f"ap.add_argument({flag!r}, type=int)\n" for flag in both)
    job = job_of(f"{PARSER}{lines}ap.parse_args()\n", both[0], "16")
    halved = replace(job.asked, micro_batch=8, accumulation=2)
    assert HFTrainer().refusal(job, halved) is None
    assert HFTrainer().warnings(job) == ()
    checkpointing = replace(halved, checkpointing=True)
    refused = HFTrainer().refusal(job, checkpointing)
    assert refused is not None
    assert refused.startswith("the script does not take --gradient_checkpointing")


@pytest.mark.parametrize("name", OPEN)
def test_any_other_script_is_given_the_trainers_flags(name):
    job = job_of(OPEN[name], "--bs", "16")
    assert HFTrainer().refusal(job, replace(job.asked, micro_batch=4, accumulation=2)) is None
    assert HFTrainer().warnings(job) == ()
