"""The monitor in real processes, with a stand-in for torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitored_job import Ended, fake_torch, run_job
from oomguard import monitor

HOARD = """
import resource
def hoard():
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
    kept = []
    for size in (1 << 20, 1 << 12, 600, 100, 0):  # down to the allocator's last small blocks
        try:
            while True:
                kept.append(bytearray(size))
        except MemoryError:
            pass
    while True:
        kept = [kept]
"""
TOO_LARGE = """
import resource
def too_large():
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    return bytearray(8 << 30)
"""
STEP = """
import torch
from torch.utils.data.dataloader import _BaseDataLoaderIter
optimizer = torch.optim.SGD()
def step(backwards=1):
    for _ in range(backwards):
        torch.autograd.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fake_torch(tmp_path)
    return tmp_path


def only(ended: Ended, type_: str) -> dict[str, object]:
    (line,) = ended.of(type_)
    return line


def test_a_job_without_torch_says_nothing(tmp_path):
    ended = run_job(tmp_path, "import sys; print('oomguard_monitor.install' in sys.modules)")
    assert (ended.code, ended.out, ended.lines, ended.buffered) == (0, "False\n", [], {})


def test_hello_and_bye_frame_an_orderly_job(folder):
    ended = run_job(folder, "import torch; print(torch.__version__)")
    assert (ended.code, ended.out, ended.err) == (0, "2.1.0\n", "")
    assert ended.types == ["hello", "bye"]
    hello, bye = ended.lines
    assert (hello["argv0"], hello["torch"], hello["ppid"]) == ("job.py", "2.1.0", os.getpid())
    assert (hello["v"], hello["phase"], hello["step"]) == (1, "load", 0)
    assert hello["rank"] is hello["local_rank"] is hello["world"] is None
    assert bye["memory"]["peak_rss_bytes"] >= bye["memory"]["rss_bytes"] > 0
    assert bye["memory"]["cuda"] == []


def test_without_its_environment_it_is_inert(folder):
    script = (
        "import sys, torch; print([m for m in sys.modules if m.startswith('oomguard_monitor.')],"
        " [type(f).__name__ for f in sys.meta_path if type(f).__name__ == 'Finder'],"
        " sys.excepthook is sys.__excepthook__)"
    )
    ended = run_job(folder, script, env={"OOMGUARD_SOCKET": "", "OOMGUARD_BUFFER": ""})
    assert ended.out == "[] [] True\n"
    assert ended.lines == []


def test_the_rank_is_that_of_the_moment(folder):
    script = "import os, torch; os.environ.update(RANK='3', LOCAL_RANK='1', WORLD_SIZE='4')"
    hello, bye = run_job(folder, script).lines
    assert hello["rank"] is None
    assert (bye["rank"], bye["local_rank"], bye["world"]) == (3, 1, 4)


def test_a_sitecustomize_behind_runs_once_and_under_its_own_name(folder):
    other = folder / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("print('other'); MINE = 1\n")
    (other / "helper.py").write_text("NAME = 'helper'\n")
    script = "import helper, sitecustomize, torch; print(helper.NAME, sitecustomize.MINE)"
    base = monitor.add_monitor({"PYTHONPATH": str(other)}, socket=Path("s"), buffer=Path("b"))
    ended = run_job(folder, script, env={"PYTHONPATH": base["PYTHONPATH"]})
    assert ended.out == "other\nhelper 1\n"
    assert ended.types == ["hello", "bye"]


@pytest.mark.parametrize("leaves", ["sys.path.remove(here)", "pass"])
def test_a_sitecustomize_that_chains_by_importing_again_ends(folder, leaves):
    other, last = folder / "other", folder / "last"
    for place in (other, last):
        place.mkdir()
    (other / "sitecustomize.py").write_text(
        "import os, sys; print('other')\n"
        f"here = os.path.dirname(__file__); {leaves}\n"
        "sys.modules.pop('sitecustomize', None); import sitecustomize\n"
    )
    (last / "sitecustomize.py").write_text("print('last')\n")
    path = os.pathsep.join([str(monitor.PATH), str(other), str(last)])
    ended = run_job(folder, "import torch", env={"PYTHONPATH": path})
    assert ended.out == ("other\n" if leaves == "pass" else "other\nlast\n")
    assert ended.types == ["hello", "bye"]


def test_a_sitecustomize_that_fails_is_reported_by_site_and_harms_nothing(folder):
    other = folder / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("raise ValueError('theirs')\n")
    path = os.pathsep.join([str(monitor.PATH), str(other)])
    ended = run_job(folder, "import torch", env={"PYTHONPATH": path})
    assert "theirs" in ended.err
    assert (ended.code, ended.types) == (0, ["hello", "bye"])


def test_a_path_twice_on_the_pythonpath_reports_once(folder):
    path = os.pathsep.join([str(monitor.PATH)] * 2)
    assert run_job(folder, "import torch", env={"PYTHONPATH": path}).types == ["hello", "bye"]


def test_steps_count_optimizer_steps_after_a_backward_pass(folder):
    ended = run_job(
        folder, STEP + "step(); step(backwards=3)\noptimizer.step(); optimizer.step()\n"
    )
    assert [line["step"] for line in ended.of("step")] == [1, 2]
    assert ended.lines[-1]["step"] == 2
    assert [line["phase"] for line in ended.of("phase")] == ["backward", "optimizer"]
    assert {line["phase"] for line in ended.of("step")} == {"forward"}


def test_many_fast_steps_make_few_lines(folder):
    ended = run_job(folder, STEP + "for _ in range(5000): step()")
    assert len(ended.of("step")) < 100
    assert ended.lines[-1]["step"] == 5000


def test_a_backward_pass_inside_another_is_one(folder):
    nested = "torch.autograd.backward(lambda: torch.autograd.backward(probe))"
    script = STEP + f"def probe(): torch.save({{}}, 'x')\n{nested}\noptimizer.step()"
    ended = run_job(folder, script)
    assert [line["phase"] for line in ended.of("phase")] == ["backward", "save", "optimizer"]
    assert only(ended, "step")["step"] == 1


def test_shapes_of_the_last_batch_come_with_a_step(folder):
    script = STEP + (
        "class T: shape = (4, 16)\n"
        "for batch in _BaseDataLoaderIter([{'input_ids': T(), 'name': 'x'}]): step()\n"
    )
    assert only(run_job(folder, script), "step")["shapes"] == {"input_ids": [4, 16]}


def test_of_several_batches_the_largest_since_the_last_report_comes_with_a_step(folder):
    script = STEP + (
        "class T:\n    def __init__(self, length): self.shape = (4, length)\n"
        "lengths = iter([8, 64, 16, 32, 8])\n"
        "batches = _BaseDataLoaderIter([T(length) for length in lengths])\n"
        "for fetched in (3, 1, 1):\n    for _ in range(fetched): next(batches)\n    step()\n"
        "step()\n"
    )
    steps = run_job(folder, script).of("step")
    assert [line["shapes"] for line in steps] == [{"0": [4, n]} for n in (64, 32, 8, 8)]


def test_an_uncaught_oom_is_reported_after_the_traceback(folder):
    script = TOO_LARGE + (
        "import sys, torch\n"
        "def hook(*args): sys.stderr.write('printed\\n')\n"
        "sys.excepthook = hook\n"
        "def train(): too_large()\ntrain()\n"
    )
    ended = run_job(folder, script)
    oom = only(ended, "oom")
    assert (ended.code, ended.err) == (1, "printed\n")
    assert (oom["uncaught"], oom["device"], oom["exception"]) == (True, "cpu", "MemoryError")
    assert [frame.split()[-1] for frame in oom["frames"]] == ["<module>", "train", "too_large"]
    assert oom["frames"][-1].startswith(str(folder / "job.py"))


def test_a_process_that_is_full_still_reports(folder):
    ended = run_job(folder, HOARD + "import torch\nhoard()\n")
    oom = only(ended, "oom")
    assert ended.code != 0
    assert (oom["uncaught"], oom["device"]) == (True, "cpu")
    assert oom["memory"]["rss_bytes"] > 0


@pytest.mark.parametrize(
    ("phase", "call"),
    [
        ("backward", "torch.autograd.backward(too_large)"),
        ("optimizer", "optimizer.step(too_large)"),
        ("backward", "optimizer.step(lambda: torch.autograd.backward(too_large))"),
    ],
)
def test_an_oom_is_reported_once_by_its_innermost_hook_and_once_when_it_ends(folder, phase, call):
    ended = run_job(folder, STEP + TOO_LARGE + call)
    assert [(oom["phase"], oom["uncaught"]) for oom in ended.of("oom")] == [
        (phase, False),
        (phase, True),
    ]
    assert "error" not in ended.types


def test_a_caught_oom_is_no_end(folder):
    script = (
        STEP
        + TOO_LARGE
        + (
            "try: torch.autograd.backward(too_large)\n"
            "except MemoryError: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
            "step()\n"
        )
    )
    ended = run_job(folder, script)
    assert ended.code == 0
    assert only(ended, "oom")["uncaught"] is False
    assert ended.lines[-1]["type"] == "bye"
    assert ended.lines[-1]["step"] == 1


@pytest.mark.parametrize("how", ["from error", "from None", ""])
def test_an_oom_behind_another_exception_is_found(folder, how):
    script = TOO_LARGE + (
        "import torch\n"
        f"try: too_large()\nexcept MemoryError as error: raise KeyError('lost') {how}\n"
    )
    oom = only(run_job(folder, script), "oom")
    assert (oom["exception"], oom["uncaught"]) == ("MemoryError", True)


def test_another_exception_is_an_error_with_its_frames(folder):
    ended = run_job(folder, STEP + "torch.autograd.backward(lambda: 1 / 0)")
    error = only(ended, "error")
    assert (error["exception"], error["message"]) == ("ZeroDivisionError", "division by zero")
    assert error["phase"] == "backward"
    assert error["frames"][-1].endswith("<lambda>")
    assert "ZeroDivisionError" in ended.err


def test_an_excepthook_that_keeps_it_to_itself_is_made_up_for_at_exit(folder):
    ended = run_job(
        folder, "import sys, torch; sys.excepthook = lambda *a: None\nraise KeyError(1)"
    )
    assert only(ended, "error")["exception"] == "KeyError"
    assert ended.err == ""


def test_an_excepthook_set_during_training_is_followed_at_once(folder):
    script = STEP + (
        "import atexit, sys\n"
        "step(); sys.excepthook = lambda *a: print('theirs', flush=True); step()\n"
        "atexit._clear()\nraise KeyError(1)\n"
    )
    ended = run_job(folder, script)
    assert ended.out == "theirs\n"
    assert ended.types[-1] == "error"


def test_the_report_follows_the_traceback(folder):
    script = (
        "import pathlib, sys, torch\n"
        "def hook(*args): print(['error' in p.read_text() for p in folder.iterdir()])\n"
        "folder = pathlib.Path('buffer')\n"
        "sys.excepthook = hook; torch.save(1, 'x')\nraise KeyError(1)\n"
    )
    ended = run_job(folder, script, env={"OOMGUARD_SOCKET": ""})
    (lines,) = ended.buffered.values()
    assert ended.out == "[False]\n"
    assert [line["type"] for line in lines] == ["hello", "phase", "error", "bye"]


def test_an_oom_in_a_thread_is_reported(folder):
    script = TOO_LARGE + (
        "import threading, torch\nt = threading.Thread(target=too_large); t.start(); t.join()\n"
    )
    ended = run_job(folder, script)
    assert only(ended, "oom")["uncaught"] is True
    assert "MemoryError" in ended.err


def test_a_fork_says_nothing_of_its_parents(folder):
    script = STEP + ("import os, sys\nstep()\nif os.fork() == 0: sys.exit(0)\nos.wait(); step()\n")
    ended = run_job(folder, script)
    assert len({line["pid"] for line in ended.lines}) == 1
    assert [line["step"] for line in ended.of("step")] == [1, 2]
    assert ended.types.count("bye") == 1


def test_a_fork_that_trains_says_so_itself(folder):
    script = (
        STEP + "import os, sys\nstep(); step()\nif os.fork() == 0: step(); sys.exit(0)\nos.wait()\n"
    )
    ended = run_job(folder, script)
    parent = ended.lines[0]["pid"]
    child = [line for line in ended.lines if line["pid"] != parent]
    assert ended.connections == 2
    assert [(line["type"], line["step"]) for line in child] == [
        ("hello", 1),
        ("step", 1),
        ("bye", 1),
    ]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_oom_of_a_multiprocessing_child_is_reported_by_its_own_pid(folder, method):
    script = TOO_LARGE + (
        "import multiprocessing, torch\n"
        "if __name__ == '__main__':\n"
        f"    child = multiprocessing.get_context('{method}').Process(target=too_large)\n"
        "    child.start(); child.join(); print(child.pid, child.exitcode)\n"
    )
    ended = run_job(folder, script)
    oom = only(ended, "oom")
    assert ended.out == f"{oom['pid']} 1\n"
    assert oom["pid"] != ended.lines[0]["pid"]
    assert ended.types == ["hello", "oom", "bye"]


def test_a_worker_hands_its_oom_over_and_reports_it(folder):
    script = TOO_LARGE + (
        "import os, torch\n"
        "def fetch():\n"
        "    try: too_large()\n"
        "    except Exception: return torch._utils.ExceptionWrapper(where='in DataLoader worker')\n"
        "if os.fork() == 0: fetch(); os._exit(0)\n"
        "os.wait()\n"
    )
    oom = only(run_job(folder, script), "oom")
    assert (oom["phase"], oom["uncaught"]) == ("batch", False)


def test_lines_go_to_a_file_where_there_is_no_socket(folder):
    ended = run_job(folder, STEP + "step()", env={"OOMGUARD_SOCKET": str(folder / "gone")})
    assert ended.lines == []
    (lines,) = ended.buffered.values()
    assert [line["type"] for line in lines] == ["hello", "phase", "phase", "step", "bye"]


def test_lines_go_to_a_file_once_the_socket_is_gone(folder):
    # The job serves its own socket here and hangs up, so that the moment is certain.
    script = (
        "import os, socket\n"
        "server = socket.socket(socket.AF_UNIX); server.bind('own'); server.listen()\n"
        + STEP
        + "import signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "step(); server.accept()[0].close(); server.close(); step()\n"
    )
    ended = run_job(folder, script, env={"OOMGUARD_SOCKET": "own"})
    (lines,) = ended.buffered.values()
    assert (ended.code, ended.err) == (0, "")
    assert [(line["type"], line["step"]) for line in lines] == [("step", 2), ("bye", 2)]


def test_a_descriptor_that_the_job_took_over_is_left_to_it(folder):
    script = STEP + (
        "import os, pathlib\n"
        "(ours,) = [int(n.name) for n in pathlib.Path('/proc/self/fd').iterdir()\n"
        "           if n.is_symlink() and os.readlink(n)[:7] == 'socket:']\n"
        "theirs = os.open('theirs', os.O_RDWR | os.O_CREAT); os.dup2(theirs, ours)\n"
        "step(); os.write(ours, b'data'); print(os.fstat(ours).st_size)\n"
    )
    ended = run_job(folder, script)
    assert (ended.code, ended.out, ended.err) == (0, "4\n", "")
    assert [line["type"] for line in ended.lines] == ["hello"]
    (lines,) = ended.buffered.values()
    assert lines[-1]["type"] == "bye"


def test_a_supervisor_that_does_not_read_stalls_nothing(folder):
    script = (
        "import os, socket\n"
        "server = socket.socket(socket.AF_UNIX); server.bind('own'); server.listen()\n"
        + STEP
        + "class T: shape = (1,) * 1000\n"
        "import oomguard_monitor.reporter as r; r.INTERVAL_S = 0\n"
        "for batch in _BaseDataLoaderIter([{str(n): T() for n in range(20)}] * 500): step()\n"
    )
    ended = run_job(folder, script, env={"OOMGUARD_SOCKET": "own"})
    (lines,) = ended.buffered.values()
    assert ended.code == 0
    assert lines[-1]["type"] == "bye"
    assert lines[-1]["step"] == 500


def test_where_nothing_takes_a_line_it_steps_aside_in_silence(folder):
    nowhere = {"OOMGUARD_SOCKET": str(folder / "gone"), "OOMGUARD_BUFFER": str(folder / "none")}
    script = STEP + "step(); import sys; print(sys.excepthook is sys.__excepthook__)"
    ended = run_job(folder, script, env=nowhere)
    assert (ended.code, ended.out, ended.err) == (0, "True\n", "")
    assert ended.lines == []


def test_a_fault_of_a_hook_is_reported_once_and_the_hooks_are_gone(folder):
    script = STEP + (
        "class Odd:\n"
        "    def items(self): raise LookupError('odd batch')\n"
        "for batch in _BaseDataLoaderIter([Odd(), Odd()]): step()\n"
        "import sys\n"
        "print(torch.autograd.backward.__module__, _BaseDataLoaderIter.__next__.__module__,\n"
        "      hasattr(torch.autograd.backward, '__wrapped__'),\n"
        "      sys.excepthook is sys.__excepthook__,\n"
        "      [f for f in sys.meta_path if type(f).__name__ == 'Finder'])\n"
    )
    ended = run_job(folder, script)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "torch.autograd torch.utils.data.dataloader False True []\n"
    assert "LookupError: odd batch" in only(ended, "fault")["message"]
    assert ended.types[-1] == "fault"


def test_a_wrong_cap_is_a_fault_and_no_failure(folder):
    ended = run_job(folder, "import torch; print('trained')", env={"OOMGUARD_GPU_MEMORY": "24GiB"})
    assert (ended.code, ended.out) == (0, "trained\n")
    assert ended.types == ["hello", "fault"]


def test_phases_of_libraries_are_hooked_when_they_are_imported(folder):
    (folder / "transformers").mkdir()
    (folder / "transformers" / "__init__.py").write_text("")
    (folder / "transformers" / "trainer.py").write_text(
        "class Trainer:\n"
        "    def training_step(self): return self\n"
        "    def evaluation_loop(self): import torch; torch.save(1, 'x'); return 'evaluated'\n"
        "    def save_model(self): pass\n"
    )
    script = (
        "import torch\nfrom transformers.trainer import Trainer\n"
        "t = Trainer(); t.training_step(); print(t.evaluation_loop()); t.save_model()\n"
        "print(Trainer.__module__, type(Trainer.__dict__['save_model']).__name__)\n"
        "import transformers.trainer as m; print(type(m.__loader__).__name__)\n"
    )
    ended = run_job(folder, script)
    assert ended.out == "evaluated\ntransformers.trainer function\nSourceFileLoader\n"
    phases = [line["phase"] for line in ended.of("phase")]
    assert phases[:3] == ["forward", "eval", "save"]


def test_a_pass_over_the_data_says_when_it_is_over(folder):
    (folder / "datasets").mkdir()
    (folder / "datasets" / "__init__.py").write_text("")
    (folder / "datasets" / "arrow_dataset.py").write_text(
        "class Dataset:\n    def map(self): return self\n"
    )
    script = "import torch\nfrom datasets.arrow_dataset import Dataset\nDataset().map()"
    phases = [line["phase"] for line in run_job(folder, script).of("phase")]
    assert phases == ["preprocess", "load"]


def test_a_library_that_is_the_first_to_import_torch_is_hooked(folder):
    (folder / "transformers").mkdir()
    (folder / "transformers" / "__init__.py").write_text("")
    (folder / "transformers" / "trainer.py").write_text(
        "import torch\nclass Trainer:\n    def save_model(self): pass\n"
    )
    ended = run_job(folder, "from transformers.trainer import Trainer; Trainer().save_model()")
    assert only(ended, "phase")["phase"] == "save"


@pytest.mark.parametrize(
    ("calls", "begins"),
    [
        ("t.train(); t.train()", "/out/c-4 None"),
        ("t.train(None); t.train(False)", "/out/c-4 False"),
        ("t.train('/mine'); t.train()", "/mine None"),
        ("t.train(resume_from_checkpoint=True)", "True"),
    ],
)
def test_a_script_that_ignores_its_checkpoint_is_handed_it_once(folder, calls, begins):
    (folder / "transformers").mkdir()
    (folder / "transformers" / "__init__.py").write_text("")
    (folder / "transformers" / "trainer.py").write_text(
        "class Trainer:\n"
        "    def train(self, resume_from_checkpoint=None): print(resume_from_checkpoint, end=' ')\n"
    )
    script = f"import torch\nfrom transformers.trainer import Trainer\nt = Trainer(); {calls}"
    assert run_job(folder, script, env={"OOMGUARD_RESUME": "/out/c-4"}).out.strip() == begins


def test_a_job_that_leaves_at_once_says_no_goodbye(folder):
    ended = run_job(folder, "import os, torch; os._exit(3)")
    assert (ended.code, ended.types) == (3, ["hello"])
