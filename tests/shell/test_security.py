"""What SECURITY.md promises, promise by promise."""

from __future__ import annotations

import ast
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import oomguard
from oomguard.cli.main import main
from oomguard.cli.prepare import load
from oomguard.errors import ConfigError
from oomguard.machine.checkpoint_scan import is_whole
from oomguard.process.report_server import ReportServer
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
        ("launch", "--", "env", f"HF_TOKEN={secret}", "python", "t.py"),
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
