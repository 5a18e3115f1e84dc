"""Steps that run out of memory under a real limit and run again in parts, without a relaunch."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
from environments import environment
from jobs import (
    GLOBAL_BATCH,
    axolotl_job,
    cap_bytes,
    hf_job,
    llamafactory_job,
    llamafactory_pairs_job,
    swift_job,
)
from launched import RUN, SAMPLE_BYTES, again, edit, launch, start, wait

from monitored_job import run_job
from shell.process_attempts import needs_cgroup

RUNS = Path(__file__).with_name("split_runs.py")
TRL_RUNS = Path(__file__).with_name("split_trl.py")
PROPERTIES = Path(__file__).with_name("split_properties.py")
#: Cases that end as without a limit, and those whose original error is raised.
SAME = (
    *("fixed", "outlier", "mean", "accumulation", "smoothing", "own_loss", "lora", "packed"),
    *("one_in_300", "evaluation", "vision"),
)
SAME_MORE = (
    *("uneven", "mean_accumulation", "loss_function", "classes", "checkpointing", "nested"),
)
#: The same with TRL's trainers; the others are in `TRL_MORE`.
TRL = ("sft", "dpo")
TRL_MORE = (
    *("sft_outlier", "sft_packed", "sft_padding_free", "sft_smoothing", "sft_checkpointing"),
    *("dpo_accumulation", "dpo_lora", "dpo_ipo", "dpo_precomputed"),
)
RAISED = {
    "contrastive": "the loss of a batch does not add up from that of its rows",
    "single_row": "a single row does not fit",
}


def run(folder: Path, framework: str, script: Path, *words: str):
    """Run a script of several cases as a job."""
    paths = [str(script.parent), str(script.parents[2] / "recipes" / "quickstart")]
    return run_job(
        folder,
        f"import runpy, sys; sys.argv[1:] = {[*words]!r}; sys.path[:0] = {paths!r}\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')",
        python=environment(framework),
        env={
            "OOMGUARD_IN_PLACE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "MALLOC_MMAP_THRESHOLD_": "262144",
            # bf16 kernels of a CPU that has them: kept for each shape, they take all of the room.
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0",
        },
        timeout_s=1800,
    )  # fmt: skip


def printed(ended):
    """Return what a script printed last."""
    assert ended.code == 0, ended.err[-3000:]
    assert "fault" not in ended.types
    return json.loads(ended.out.splitlines()[-1])


def check_same(case, *, weights: float = 2e-6) -> None:
    """Hold a run that was divided against the one without a limit."""
    assert case["split"] > 0
    assert max(case["loss"], case["grad_norm"]) < 1e-6
    assert case["weights"] < weights


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return a function that runs a case, once.

    Each has a process of its own: what earlier ones leave would be room beyond the limit.
    """
    known = {}

    def of(name):
        if name not in known:
            known[name] = run(tmp_path_factory.mktemp(name), "hf", RUNS, name)
        return known[name]

    return of


@pytest.fixture(scope="module")
def case(ended):
    return lambda name: printed(ended(name))[name]


@pytest.mark.parametrize(
    "name", [*SAME, *(pytest.param(name, marks=pytest.mark.extended) for name in SAME_MORE)]
)
def test_losses_gradients_and_weights_are_those_of_a_run_without_a_limit(case, name):
    check_same(case(name))


def test_in_bf16_they_differ_by_its_rounding(case):
    assert case("bf16")["split"] > 0
    assert max(case("bf16")["loss"], case("bf16")["grad_norm"]) < 1e-3


@pytest.mark.parametrize("name", RAISED)
def test_what_cannot_be_divided_raises_the_error_of_the_job(case, ended, name):
    assert case(name)["type"] == "RuntimeError"
    assert "DefaultCPUAllocator: can't allocate memory" in case(name)["error"]
    assert RAISED[name] in [line["reason"] for line in ended(name).of("no_split")]


def test_only_the_step_with_the_outlier_is_divided_and_the_long_row_is_alone(case):
    assert case("outlier")["split"] == 1
    assert case("outlier")["reports"] == [{"failed": 1, "parts": 2, "rows": 1, "width": 256}]


def test_one_outlier_in_300_samples_costs_one_step(case):
    assert case("one_in_300")["split"] == 1
    assert case("one_in_300")["reports"] == [{"failed": 1, "parts": 2, "rows": 1, "width": 256}]


def test_a_packed_row_counts_as_many_rows_as_its_largest_part_has(case):
    report = case("packed")["reports"][0]
    assert report["failed"] == 1
    assert 1 <= report["rows"] < 16
    assert report["rows"] * report["width"] <= 16 * report["width"] // 2


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trl")
    return run(folder, "trl", TRL_RUNS, str(folder / "tokenizer"), *TRL, "dpo_aot")


@pytest.mark.parametrize("name", TRL)
def test_trls_losses_gradients_and_weights_are_those_of_a_run_without_a_limit(trl, name):
    check_same(printed(trl)[name])


def test_a_loss_that_sorts_the_pairs_of_a_batch_is_named_once_and_raised(trl):
    case = printed(trl)["dpo_aot"]
    assert "DefaultCPUAllocator: can't allocate memory" in case["error"]
    reasons = [line["reason"] for line in trl.of("no_split")]
    assert set(reasons) == {"the loss aot sorts the pairs of a batch"}
    assert len(reasons) == 2  # one for each of the two trainings


@pytest.mark.extended
def test_more_of_trls_losses_are_those_of_a_run_without_a_limit(tmp_path):
    words = (str(tmp_path / "tokenizer"), *TRL_MORE, "sft_bf16")
    cases = printed(run(tmp_path, "trl", TRL_RUNS, *words))
    for name in TRL_MORE:  # what LoRA adds is small: its rounding is large beside it
        check_same(cases[name], weights=1e-5)
    assert cases["sft_bf16"]["split"] > 0
    assert max(cases["sft_bf16"]["loss"], cases["sft_bf16"]["grad_norm"]) < 1e-2


def test_the_parts_of_any_batch_join_to_it_and_so_do_their_gradients(tmp_path):
    ended = run(tmp_path, "hf", PROPERTIES, "3", "60")
    divided = printed(ended)
    assert set(divided) == {"plain", "pairs", "grids", "audio", "llava", "packed"}
    assert min(divided.values()) > 30


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    job = hf_job(tmp_path_factory.mktemp("hf"))
    return launch(job, "train.yaml", "--in-place", "--host-memory", str(cap_bytes(job)))


def test_a_job_that_ran_out_at_16_and_8_is_trained_in_one_attempt(split):
    assert split.code == 0, split.err
    assert (split.micro_batches, split.kinds) == ([16], ["ok"])
    assert split.attempts[0]["optimizer_steps"] == 3
    splits = split.attempts[0]["splits"]
    assert (splits["steps"], splits["failed"], splits["rows"]) == (3, 2, 4)
    assert [step["step"] for step in splits["at"]] == [1]
    assert splits["seconds"] > 0
    told = [line for line in split.err.splitlines() if "ran it again in 4 parts" in line]
    assert len(told) == 1


def test_its_final_config_trains_whole_micro_batches_that_small(split):
    report = split.report
    assert report["final"]["micro_batch"] * report["final"]["accumulation"] == GLOBAL_BATCH
    assert report["final"]["micro_batch"] == 4
    assert report["fidelity"] == "same_math"
    text = split.final.read_text()
    assert "per_device_train_batch_size: 4" in text
    assert (report["final_batch"]["outcome"], report["final_batch"]["observed"]) == ("verified", 4)
    assert report["verified"]["samples_per_step"]["observed"] == GLOBAL_BATCH


def test_a_late_outlier_costs_its_step_and_no_relaunch(split, tmp_path):
    job = again(split.job, tmp_path)
    script = Path(__file__).with_name("trainer_script.py")
    lengths = ("16", "16", "256", "16", "16")
    launched = launch(
        job, "--in-place", "--host-memory", str(cap_bytes(job)), "--",
        str(job.python), str(script), "--model_name_or_path", "model", "--output_dir", "out",
        "--use_cpu", "True", "--report_to", "none", "--save_strategy", "no",
        "--per_device_train_batch_size", "16", "--lengths", *lengths, "--max_steps", "5",
    )  # fmt: skip
    assert launched.code == 0, launched.err
    assert launched.kinds == ["ok"]
    splits = launched.attempts[0]["splits"]
    assert [step["step"] for step in splits["at"]] == [3]
    assert (splits["steps"], splits["width"]) == (1, 256)
    assert launched.attempts[0]["optimizer_steps"] == 5


def test_a_script_that_ignores_its_flag_is_trained_and_its_final_config_not_vouched_for(
    split, tmp_path
):
    job = again(split.job, tmp_path)
    launched = launch(
        job, "--in-place", "--host-memory", str(cap_bytes(job)), "--",
        str(job.python), str(Path(__file__).with_name("trainer_script.py")),
        "--model_name_or_path", "model", "--output_dir", "out", "--use_cpu", "True",
        "--report_to", "none", "--save_strategy", "no", "--max_steps", "3",
        "--per_device_train_batch_size", "8", "--own_batch", "16",
        "--lengths", "256", "256", "256",
    )  # fmt: skip
    assert (launched.code, launched.kinds) == (0, ["ok"]), launched.err
    assert launched.attempts[0]["splits"]["steps"] == 3
    check = launched.report["final_batch"]
    assert (check["outcome"], check["expected"], check["observed"]) == ("not_verified", 8, 16)
    assert launched.report["final"]["micro_batch"] == 8
    assert launched.report["changes"] == []
    assert "final config not verified: it keeps the requested micro batch" in launched.err
    assert "the requested config fits" not in launched.err
    command = (launched.run / "final" / "command.txt").read_text()
    assert "# not verified: it keeps the requested micro batch" in command


#: A change that keeps the math and makes no step slower, as a fused loss is on a GPU.
HARMLESS = """
from oomguard.strategy import SAME_MATH, TRAINING, Cause, Kind, Remedy, Strategy, replace


def change(_job, plan):
    return replace(plan, loader_workers=1)


STRATEGY = Strategy(
    summary="load batches in another process",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.HOST_OOM, phases=TRAINING)}),
    change=change,
    worth_a_restart=frozenset(Cause),
)
"""


@pytest.mark.extended
@pytest.mark.parametrize("steps", [100_000, 30])
def test_slow_parts_are_worth_a_restart_early_in_a_run_and_not_late(split, tmp_path, steps):
    """Each pass takes 1 s besides, so that a step in four parts takes 3 s longer than whole."""
    job = again(split.job, tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "015_harmless.py").write_text(HARMLESS)
    process = start(
        job, "--in-place", "--strategies", "own", "--ladder", "harmless,halve_micro_batch",
        "--host-memory", str(cap_bytes(job)), "--",
        str(job.python), str(Path(__file__).with_name("trainer_script.py")),
        "--model_name_or_path", "model", "--output_dir", "out", "--use_cpu", "True",
        "--report_to", "none", "--save_strategy", "no", "--logging_strategy", "no",
        "--per_device_train_batch_size", "16", "--pass_seconds", "1.0", "--disable_tqdm", "True",
        "--lengths", "16", "256", "--max_steps", str(steps),
    )  # fmt: skip
    events = job.folder / "oomguard-runs" / RUN / "events.jsonl"
    while process.poll() is None:
        time.sleep(1.0)
        if events.exists() and {"attempt": 2, "step": 1}.items() <= last_progress(events).items():
            process.send_signal(signal.SIGTERM)
            break
    launched = wait(job, process)
    stopped = [row for row in rows_of(events) if row["event"] == "stopping"]
    if steps == 30:
        assert (launched.code, launched.kinds, stopped) == (0, ["ok"], [])
        figures = launched.attempts[0]["weighed"]
    else:
        assert stopped[0]["reason"] == "cheaper"
        figures = stopped[0]["weighed"]
        assert 8 <= figures["lost_steps"] <= 32
        assert launched.attempts[1]["plan"]["loader_workers"] == 1
        assert launched.attempts[1]["begins"]["mode"] == "restart"
        told = [line for line in launched.err.splitlines() if "restarting with a cheaper" in line]
        assert len(told) == 1
    assert figures["divided_s"] - figures["whole_s"] > 1.5
    assert 0.3 < figures["share"] < 0.7


def rows_of(events: Path) -> list[dict[str, object]]:
    """Return the events of a run so far."""
    return [json.loads(line) for line in events.read_text().splitlines() if line.endswith("}")]


def last_progress(events: Path) -> dict[str, object]:
    """Return the latest report of progress."""
    return next((row for row in reversed(rows_of(events)) if row["event"] == "progress"), {})


def printed_losses(log: Path) -> list[float]:
    """Return the losses in the log of an attempt."""
    return [float(found) for found in re.findall(r"'loss': '?([0-9.e-]+)", log.read_text())]


@pytest.mark.extended
def test_llamafactorys_losses_and_gradients_are_those_of_a_run_without_a_limit(tmp_path_factory):
    job = llamafactory_job(tmp_path_factory.mktemp("job"))
    seen = []
    for limit in (("--host-memory", str(cap_bytes(job))), ()):
        own = again(job, tmp_path_factory.mktemp("run"))
        launched = launch(own, "--in-place", *limit, "train.yaml")
        assert launched.kinds == ["ok"], launched.err
        assert (launched.attempts[0]["splits"] is not None) == bool(limit)
        history = json.loads((own.folder / "out" / "trainer_state.json").read_text())
        steps = history["log_history"][:3]
        seen.append([number for row in steps for number in (row["loss"], row["grad_norm"])])
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)


@pytest.mark.extended
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("make", [swift_job, axolotl_job])
def test_ms_swift_and_axolotl_go_on_with_the_losses_and_gradients_of_a_run_without_a_limit(
    make, tmp_path_factory
):
    """What they count themselves (the accuracy of tokens, tokens so far) is the same too."""
    job = make(tmp_path_factory.mktemp("job"))
    if make is axolotl_job:
        saved = "save_strategy: steps\nsave_steps: 3\ninclude_tkps: true\nseed: 7"
        edit(job, 'save_strategy: "no"', saved)
        adapter = "adapter: lora\nlora_r: 8\nlora_alpha: 16\nlora_target_linear: true\n"
        edit(job, adapter, "")  # its first weights are drawn before the seed is set
    else:  # parts draw other masks
        edit(job, "lora_rank: 8", "lora_rank: 8\nlora_dropout: 0")
    seen = []
    for limit in (("--host-memory", str(cap_bytes(job))), ()):
        own = again(job, tmp_path_factory.mktemp("run"))
        launched = launch(own, "--in-place", *limit, "--", *own.argv)
        assert (launched.code, launched.kinds) == (0, ["ok"]), launched.err
        assert launched.micro_batches == [GLOBAL_BATCH]
        splits = launched.attempts[0]["splits"]
        assert (splits is not None) == bool(limit)
        if splits is not None:
            assert (splits["steps"], splits["rows"], splits["width"]) == (3, 4, 256)
            assert launched.report["final"]["micro_batch"] == 4
            assert launched.report["final_batch"]["outcome"] == "verified"
        assert launched.report["verified"]["samples_per_step"]["observed"] == GLOBAL_BATCH
        state = own.folder / "out" / "checkpoint-3" / "trainer_state.json"
        seen.append(json.loads(state.read_text())["log_history"][:3])
    names = {"loss", "grad_norm", "token_acc" if make is swift_job else "tokens/total"}
    for divided, whole in zip(*seen, strict=True):
        assert names <= set(whole)
        assert {name: divided[name] for name in names} == pytest.approx(
            {name: whole[name] for name in names}, rel=1e-6
        )


@needs_cgroup
def test_a_kill_that_nothing_can_answer_is_followed_by_a_bound_of_tokens(split, tmp_path_factory):
    """The kernel kills without an exception: the one batch with a long sample is divided."""
    seen = []
    for limited in (False, True):
        job = again(split.job, tmp_path_factory.mktemp("run"))
        rows = json.loads((job.folder / "data" / "train.json").read_text())[: 3 * GLOBAL_BATCH]
        short = [{**row, "output": row["output"][:40]} for row in rows[1:]]
        (job.folder / "varied.json").write_text(json.dumps([rows[0], *short]))
        edit(job, "data/train.json", "varied.json")
        words = ["--no-in-place"]
        if limited:
            cap = seen[0].attempts[0]["host_peak_bytes"] - 6 * SAMPLE_BYTES
            words = ["--host-memory", str(cap), "--host-memory-by", "cgroup", "--in-place"]
        ladder = ("--ladder", "bound_tokens,halve_micro_batch")
        seen.append(launch(job, "train.yaml", *ladder, *words))
        assert seen[-1].code == 0, seen[-1].err
    bounded = seen[1]
    assert (bounded.kinds, bounded.micro_batches) == (["host_oom", "ok"], [16, 16])
    assert bounded.attempts[1]["plan"]["token_bound"] == 8 * 256
    splits = bounded.attempts[1]["splits"]
    assert (splits["steps"], splits["failed"], splits["width"]) == (1, 0, 256)
    final = bounded.report["final"]
    assert (final["micro_batch"], final["accumulation"], final["token_bound"]) == (1, 16, None)
    variant = bounded.report["with_splits"]
    assert (variant["plan"]["token_bound"], variant["split_steps"]) == (8 * 256, 1)
    assert (variant["passes"], variant["final_passes"]) == (1, 16)
    assert bounded.report["fidelity"] == "same_math"
    logs = [one.attempt(len(one.attempts)) / "log.txt" for one in seen]
    whole, divided = map(printed_losses, logs)
    assert len(whole) == 3
    assert divided == pytest.approx(whole, rel=1e-3)  # as they are printed


@pytest.mark.extended
def test_llamafactorys_dpo_is_trained_in_one_attempt_with_the_same_losses(tmp_path_factory):
    job = llamafactory_pairs_job("dpo", tmp_path_factory.mktemp("job"))
    seen = []
    for limit in (("--host-memory", str(cap_bytes(job))), ()):
        launched = launch(
            again(job, tmp_path_factory.mktemp("run")), "--in-place", *limit, "train.yaml"
        )
        assert launched.kinds == ["ok"], launched.err
        assert (launched.attempts[0]["splits"] is not None) == bool(limit)
        seen.append(printed_losses(launched.attempt(1) / "log.txt"))
    assert len(seen[0]) == 3
    assert seen[0] == pytest.approx(seen[1], rel=1e-3)  # as they are printed
