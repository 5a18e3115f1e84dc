"""`oomguard mcp` as an agent uses it: a client of the official SDK, over stdin and stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters

from oomguard.cli.main import main
from oomguard.errors import ExitCode

LLAMAFACTORY = """
model_name_or_path: Qwen/Qwen2.5-7B
stage: sft
do_train: true
finetuning_type: full
dataset: mine
template: qwen
cutoff_len: 512
per_device_train_batch_size: 2
bf16: true
output_dir: out
"""
#: Runs out of memory at more than 2 samples.
TOY = """
import sys
if int(sys.argv[sys.argv.index("--per_device_train_batch_size") + 1]) > 2:
    sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
print("{'train_runtime': 1.0}")
"""
Ask = Callable[[Client], Awaitable[Any]]


def asked(ask: Ask) -> Any:
    """Return what a client gets from a server of its own."""
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "oomguard", "mcp"], env=dict(os.environ)
    )

    async def run() -> Any:
        async with Client(server) as client:
            return await ask(client)

    return anyio.run(run)


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    async def ask(client: Client) -> Any:
        return await client.call_tool(tool, arguments)

    result = asked(ask)
    assert not result.is_error, result.content
    return json.loads(result.content[0].text)


def test_its_tools_say_what_they_are_for() -> None:
    async def ask(client: Client) -> Any:
        return await client.list_tools()

    tools = {tool.name: tool for tool in asked(ask).tools}
    assert set(tools) == {"plan", "explain", "launch", "show"}
    assert all(tool.description for tool in tools.values())
    properties = tools["launch"].input_schema["properties"]
    assert properties["allow"]["default"] == "same_math"


def test_a_config_is_planned(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(LLAMAFACTORY)
    found = call("plan", folder=str(tmp_path), train="train.yaml", gpu="RTX 3090")
    assert found["exit_code"] == 0
    assert (found["framework"], found["method"]) == ("llamafactory", "sft")
    assert found["asked"]["fits"] == "no"


def test_an_error_is_an_answer(tmp_path: Path) -> None:
    found = call("plan", folder=str(tmp_path), train="none.yaml", gpu="RTX 3090")
    assert found["exit_code"] == ExitCode.USAGE
    assert "none.yaml" in str(found["error"])


def test_a_log_is_explained(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text("step 3\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.\n")
    found = call("explain", log=str(log))
    assert found["kind"] == "device_oom"


def test_a_run_goes_on_without_the_server_and_is_shown(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TOY)
    words = [sys.executable, "train.py", "--per_device_train_batch_size", "4"]
    started = call("launch", folder=str(tmp_path), command=words)
    report = tmp_path / started["run"] / "fit-report.json"
    until = time.monotonic() + 60
    while not report.exists() and time.monotonic() < until:
        time.sleep(0.2)
    assert report.exists(), (tmp_path / started["log"]).read_text()
    found = call("show", folder=str(tmp_path), run=started["run"])
    assert (found["exit_code"], found["status"], found["fidelity"]) == (0, "fit", "same_math")
    assert [one["plan"]["micro_batch"] for one in found["attempts"]] == [4, 2]


def test_without_the_sdk_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    assert main(["mcp"]) == ExitCode.USAGE
    assert "pip install 'oomguard[mcp]'" in capsys.readouterr().err
