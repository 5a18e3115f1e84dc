"""memory.jsonl: every report as it was sent, one a line, and files of earlier versions."""

# ruff: noqa: E501  lines as in the file

from __future__ import annotations

from oomguard.evidence.verdict import Phase
from oomguard.process.messages import ByeReport, OomReport, PhaseReport, StepReport
from oomguard.run.recover import _reports
from shell.launches import launch, write_job

#: What a job sends, and what the file holds of it: unknown fields are kept, numbers unchanged.
SENT = """\
{"v":1,"type":"phase","pid":7,"rank":0,"local_rank":0,"world":1,"t":1,"phase":"forward","step":0,"memory":{}}
{"v":1, "type":"step", "pid":7,"rank":0,"local_rank":0,"world":1,"t":2.50,"phase":"forward","step":1, "memory":{"rss_bytes":5,"peak_rss_bytes":6,"data_bytes":4,"cuda":[],"peak_data_bytes":9}, "seconds":0.5, "shapes":{"input_ids":[4, 16]}, "new":[1, null]}
{"v":1,"type":"fault","pid":7,"rank":null,"local_rank":null,"world":null,"t":3.0,"phase":"unknown","step":1,"message":"f\\u00fcr https://me:hunter2hunter2@hub.example/x"}
{"v":1,"type":"step","pid":7}
"""
KEPT = """\
{"v":1,"type":"phase","pid":7,"rank":0,"local_rank":0,"world":1,"t":1,"phase":"forward","step":0,"memory":{}}
{"v":1,"type":"step","pid":7,"rank":0,"local_rank":0,"world":1,"t":2.5,"phase":"forward","step":1,"memory":{"rss_bytes":5,"peak_rss_bytes":6,"data_bytes":4,"cuda":[],"peak_data_bytes":9},"seconds":0.5,"shapes":{"input_ids":[4,16]},"new":[1,null]}
{"v":1,"type":"fault","pid":7,"rank":null,"local_rank":null,"world":null,"t":3.0,"phase":"unknown","step":1,"message":"für https://me:***@hub.example/x"}
"""
#: Lines of the first version: no `data_bytes`, no `peak_data_bytes`.
FIRST_VERSION = """\
{"v":1,"type":"phase","pid":9,"rank":null,"local_rank":null,"world":null,"t":5.1,"phase":"load","step":0,"memory":{"rss_bytes":100,"peak_rss_bytes":120,"cuda":[]}}
{"v":1,"type":"step","pid":9,"rank":null,"local_rank":null,"world":null,"t":5.2,"phase":"optimizer","step":1,"memory":{"rss_bytes":100,"peak_rss_bytes":120,"cuda":[{"device":0,"allocated_bytes":1,"reserved_bytes":2,"peak_allocated_bytes":3,"peak_reserved_bytes":4,"free_bytes":null,"total_bytes":null}]},"seconds":0.1,"shapes":{"0":[2,8]}}
{"v":1,"type":"oom","pid":9,"rank":null,"local_rank":null,"world":null,"t":5.3,"phase":"backward","step":1,"exception":"MemoryError","message":"","uncaught":false,"frames":[],"memory":{},"shapes":{},"device":"cpu","requested_bytes":null,"capacity_bytes":null}
{"v":1,"type":"bye","pid":9,"rank":null,"local_rank":null,"world":null,"t":5.4,"phase":"backward","step":1,"memory":null}
"""


def test_the_file_holds_what_was_sent(tmp_path):
    code = (
        "import socket\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(os.environ['OOMGUARD_SOCKET'])\n"
        f"s.sendall({SENT.encode()!r})\n"
    )
    ended = launch(tmp_path, "--", *write_job(tmp_path, code))
    assert ended.code == 0, ended.err
    assert (ended.run / "attempts" / "001" / "memory.jsonl").read_text() == KEPT


def test_a_file_of_the_first_version_is_read(tmp_path):
    path = tmp_path / "memory.jsonl"
    path.write_text(FIRST_VERSION)
    phase, step, oom, bye = [seen.report for seen in _reports(path)]
    assert isinstance(phase, PhaseReport)
    assert phase.phase is Phase.LOAD
    assert isinstance(step, StepReport)
    assert step.memory is not None
    assert (step.memory.data_bytes, step.memory.cuda[0].peak_allocated_bytes) == (None, 3)
    assert isinstance(oom, OomReport)
    assert oom.shapes == {}
    assert isinstance(bye, ByeReport)


def test_a_name_that_is_not_utf_8_does_not_end_the_run(tmp_path):
    line = FIRST_VERSION.splitlines()[2].replace('"MemoryError"', '"ValueError"')
    line = line.replace('"message":""', r'"message":"no file \udcff.yaml"').replace("cpu", "cuda")
    code = (
        "import socket\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(os.environ['OOMGUARD_SOCKET'])\n"
        f"s.sendall({line.encode()!r} + b'\\n')\n"
    )
    ended = launch(tmp_path, "--", *write_job(tmp_path, code))
    assert ended.code == 0, ended.err
    kept = (ended.run / "attempts" / "001" / "memory.jsonl").read_text()
    assert "no file \ufffd.yaml" in kept
