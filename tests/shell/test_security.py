"""What SECURITY.md promises, promise by promise."""

from __future__ import annotations

import ast
import json
import os
import socket
import stat
import string
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oomguard
from generators import make_job
from oomguard.cli.main import main
from oomguard.cli.prepare import load
from oomguard.configfile.document import Source
from oomguard.errors import ConfigError
from oomguard.evidence.verdict import Kind, Verdict
from oomguard.job.command import Command, File
from oomguard.machine.checkpoint_scan import is_whole
from oomguard.process.messages import receive
from oomguard.process.output_mask import OutputMask
from oomguard.process.report_server import ReportServer
from oomguard.run.attempt import AttemptSpec
from oomguard.run.events import Exited, Finished, Limits, Planned, RunStarted, Started, Status
from oomguard.run.folder import RunFolder, append_json, write_json
from oomguard.run.report import build, to_json
from oomguard.run.state import replay
from oomguard.strategy import Fidelity
from reported import HEAD
from shell.launches import OOMGUARD, launch, write_job

SOURCE = Path(oomguard.__file__).parent
FILES = [*SOURCE.rglob("*.py"), *(SOURCE.parents[1] / "strategies").glob("*.py")]
SECRETS = {
    "flag": "hf_" + "a1B2" * 8,
    "url": "hunter2secret",
    "named": "correct-horse-battery",
    "environment": "0123456789abcdef0123456789abcdef01234567",
    "printed": "ghp_" + "c3D4" * 9,
    "phrase": "it's the SECOND1 word",
    "list": "aaaa1111,SECOND2",
    "plural": "SECOND3-of-two",
    "redis": "SECOND4redis",
    "bearer": "SECOND5bearer",
    "only known by value": "SECOND6 value",
    "prefix": "SECOND7-prefix",
}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """List the calls in a file, each with its dotted name."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_no_shell():
    assert len(FILES) > 100
    for path in FILES:
        for name, call in calls(path):
            assert name not in {"os.system", "os.popen", "subprocess.getoutput", "pty.spawn"}, path
            assert name.rpartition(".")[2] not in {"getstatusoutput", "create_subprocess_shell"}
            for keyword in call.keywords:
                is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert keyword.arg != "shell" or is_false, path


def test_safe_yaml_only(tmp_path):
    unsafe = {"load", "load_all", "unsafe_load", "full_load", "FullLoader", "UnsafeLoader"}
    for path in FILES:
        text = path.read_text()
        for name, call in calls(path):
            if name.startswith("yaml.") and name.partition(".")[2] in unsafe:
                kinds = [ast.unparse(k.value) for k in call.keywords if k.arg == "Loader"]
                kinds += [ast.unparse(argument) for argument in call.args[1:]]
                assert any("Safe" in kind or "Strict" in kind for kind in kinds), (path, name)
            if name.rpartition(".")[2] == "YAML":
                stated = {k.arg: ast.unparse(k.value) for k in call.keywords}
                assert stated.get("typ", "'rt'") in {"'rt'", "'safe'"}, path
        assert "UnsafeLoader" not in text, path
    mark = tmp_path / "mark"
    for tag in ("python/object/apply:os.system", "python/object/new:os.system"):
        config = tmp_path / "train.yaml"
        config.write_text(f"stage: !!{tag} ['touch {mark}']\n")
        with pytest.raises(ConfigError):
            load(config)
    assert not mark.exists()


def test_no_unpickling(tmp_path):
    loaders = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in FILES:
        assert not {name.partition(".")[0] for name in imports(path)} & loaders, path
        assert not {"torch.load", "numpy.load", "np.load"} & {name for name, _ in calls(path)}, path
    mark = tmp_path / "mark"
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    hostile = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    (checkpoint / "optimizer.pt").write_bytes(b"\x80\x04" + hostile)
    (checkpoint / "model.bin").write_bytes(hostile)
    is_whole(checkpoint, 1, ("optimizer.pt",))
    is_whole(checkpoint, 1, ("model.bin",))
    assert not mark.exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secrets")
    code = (
        f"say('pushing with {SECRETS['printed']}')\n"
        "say('connecting as', args[-1], repr(args[-1]))\n"
        f"raise ValueError('https://me:{SECRETS['url']}@hub.example/x, "
        f"password={SECRETS['named']}')"
    )
    _, *rest = write_job(folder, code)
    job = [sys.executable, *rest, "--hub_token", SECRETS["flag"]]
    job += ["--report_to", f"https://me:{SECRETS['url']}@hub.example/"]
    job += ["--db_password", SECRETS["phrase"], f"--smtp_password={SECRETS['list']}"]
    job += ["--tokens", "AAAA", SECRETS["plural"], "--redis", f"redis://:{SECRETS['redis']}@h/0"]
    job += ["--header", f"Authorization: Bearer {SECRETS['bearer']}"]
    job += ["--secret_key", SECRETS["only known by value"]]
    text = (folder / "job.py").read_text()
    (folder / "job.py").write_text("import sys; args, sys.argv = sys.argv, sys.argv[:3]\n" + text)
    env = {"WANDB_API_KEY": SECRETS["environment"], "HF_TOKEN": SECRETS["flag"]}
    return launch(folder, "--", *job, env=env)


def test_run_folders_are_their_owners_alone(run):
    assert run.code == 1, run.err
    for path in (run.run, *run.run.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode & 0o077 == 0, (path, oct(mode))


def test_no_secrets_in_what_one_shows_around(run):
    written = {"events.jsonl", "fit-report.json", "command.json", "verdict.json", "log.txt"}
    paths = [path for path in run.run.rglob("*") if path.is_file() and path.name != "job.json"]
    assert {path.name for path in paths} >= written
    for name, secret in SECRETS.items():
        for path in paths:
            assert secret not in path.read_text(), (name, path)
        assert secret not in run.out + run.err, name
    assert "connecting as ***" in run.out
    assert "ValueError" in run.report["reason"]
    assert SECRETS["environment"] not in (run.run / "job.json").read_text()


def test_no_secrets_in_errors(tmp_path, monkeypatch, capfd):
    secret = SECRETS["prefix"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(f"hub_token: {secret}\n  deeper: [\n")
    for words in (
        ("launch", "--", "some-tool", f"HF_TOKEN={secret}", "t.py"),
        ("launch", "--json", "--", "true", f"--api_key={secret}"),
        ("launch", "--name", f"token={secret}/x", "--", "true"),
        ("plan", "bad.yaml"),
        (f"--password={secret}",),
    ):
        code, (out, err) = main(words), capfd.readouterr()
        assert code == 2, err
        assert secret not in out + err, words


def test_everything_is_printed_through_one_place():
    """Where secrets are masked."""
    for path in (SOURCE / "cli").glob("*.py"):
        if path.name != "output.py":
            assert not {"click.echo", "click.secho", "print"} & {name for name, _ in calls(path)}


def test_only_the_same_user_can_report(tmp_path):
    server = ReportServer(lambda _: None, buffer=tmp_path)
    try:
        assert stat.S_IMODE(server.path.parent.stat().st_mode) == 0o700
        if os.geteuid() != 0:
            pytest.skip("only root can become somebody else")
        code = (
            "import os, socket, sys\nos.setgid(65534); os.setuid(65534)\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\n"
            "try: s.connect(sys.argv[1])\nexcept PermissionError: sys.exit(13)"
        )
        words = [sys.executable, "-c", code, str(server.path)]
        assert subprocess.run(words, check=False).returncode == 13
        server.path.parent.chmod(0o755)
        server.path.chmod(0o777)
        code = code.replace("s.connect(sys.argv[1])", "s.connect(sys.argv[1]); s.sendall(b'{}\\n')")
        hears = code + "\nsys.exit(7 if s.recv(1) == b'' else 0)"
        words = [sys.executable, "-c", hears, str(server.path)]
        assert subprocess.run(words, check=False).returncode in (7, 1)  # closed, or reset
        assert server.refused == 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as own:
            own.connect(str(server.path))
            own.sendall(b"{}\n")
            server.flush(10.0)
            assert server.refused == 1
    finally:
        server.close()


def test_no_code_from_a_model_repository(tmp_path):
    config = tmp_path / "train.yaml"
    config.write_text("stage: sft\nmodel_name_or_path: x\nfinetuning_type: lora\noutput_dir: o\n")
    (tmp_path / "llamafactory-cli").write_text(
        f"#!{sys.executable}\nprint('CUDA out of memory. Tried to allocate 2.00 GiB.')\nexit(1)"
    )
    (tmp_path / "llamafactory-cli").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [*OOMGUARD, "launch", "--name", "r", "--max-attempts", "3", "train.yaml"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    attempts = list((tmp_path / "oomguard-runs" / "r" / "attempts").glob("*/*.yaml"))
    assert len(attempts) > 1, done.stderr
    assert all("trust_remote_code" not in path.read_text() for path in attempts)


CHARACTERS = string.ascii_letters + string.digits + "-_/+.:,;@#!' "
PASSWORDS = st.text(CHARACTERS, min_size=8, max_size=30).filter(
    lambda text: text[0].isalnum() and text[-1].isalnum() and any(map(str.isdigit, text))
)
TELLING = st.sampled_from(["db_password", "client-secret", "passphrase", "apiKey", "WANDB_API_KEY"])


@settings(max_examples=25, deadline=None)
@given(secrets=st.lists(PASSWORDS, min_size=6, max_size=6, unique=True), name=TELLING)
def test_no_random_secret_is_in_what_is_recorded(secrets, name):
    """Wherever a job can carry one: its command, variables, configs, output, reports and errors."""
    flag, env, block, item, printed, raised = secrets
    config = f"lr: 1\n{name}: |\n  {block}\nsecrets:\n  - {json.dumps(item)}\n"
    command = Command(
        argv=("python", "t.py", f"--{name}", flag, "train.yaml"),
        cwd="/job",
        env={name: env},
        files=(File(path="/job/train.yaml", text=config),),
    )
    mask = OutputMask(command.secrets())
    output = mask.feed(f"using {flag}\n{name}={json.dumps(printed)}\n{item} {env}".encode())
    output += mask.close()
    line = {**HEAD, "type": "error", "exception": "E", "frames": [f"{block} in {name}"]}
    text = json.dumps({**line, "message": f"bad {name}: {json.dumps(raised)} ({env})"})
    report = receive(text.encode(), command.secrets())
    assert report is not None
    job = make_job(argv=command.argv, env=command.env, config=Source(path="/job/c", text=config))
    limits = Limits(ladder=(), allow=Fidelity.SAME_MATH, max_attempts=1)
    verdict = Verdict(kind=Kind.NOT_OOM, root=report.report.message)
    events = [
        RunStarted(t=0, run="r", version="0", at="now", job=job, limits=limits),
        Planned(t=1, attempt=1, spec=AttemptSpec(plan=job.asked)),
        Started(t=1, attempt=1, pid=7, command=command.masked().by_hand(), kernel_watched=False),
        Exited(t=2, attempt=1, returncode=1, verdict=verdict),
        Finished(t=3, status=Status.FAILED, reason=f"{name}={json.dumps(raised)}"),
    ]
    with tempfile.TemporaryDirectory() as base:
        folder = RunFolder.create(Path(base), "r")
        for event in events:
            folder.append(event)
        write_json(
            folder.report,
            to_json(build(replay(events))),
        )
        append_json(folder.path / "memory.jsonl", json.loads(report.line))
        folder.close()
        names = ("events.jsonl", "fit-report.json", "memory.jsonl")
        written = "".join((folder.path / one).read_text() for one in names)
    for secret in secrets:
        for shown in (output.decode(), written):
            assert secret not in shown
            assert json.dumps(secret)[1:-1] not in shown
