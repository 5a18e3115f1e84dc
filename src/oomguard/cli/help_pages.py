"""The examples at the end of each command's help, and the help pages as one Markdown document."""

from __future__ import annotations

import click

#: By command: what one types, and what for. Each line has to parse, which a test checks.
EXAMPLES = {
    "launch": (
        ("oomguard launch train.yaml", "a config of LLaMA-Factory, LitGPT, axolotl, ..."),
        (
            "oomguard launch --gpu-memory 24GiB -- torchrun --nproc-per-node 2 train.py",
            "a script, as if each GPU had 24 GiB",
        ),
        ("oomguard launch --allow same_math train.yaml", "nothing that changes the loss"),
    ),
    "resume": (("oomguard resume train-20261129-041419-31623", "after a reboot, or a kill -9"),),
    "runs": (("oomguard runs /scratch/runs", "runs that were launched with --runs"),),
    "show": (("oomguard show train-20261129-041419-31623", "its name is in `oomguard runs`"),),
    "diff": (
        ("oomguard diff RUN RUN", "two runs under oomguard-runs"),
        ("oomguard diff theirs/fit-report.json RUN --json", "a report that somebody sent"),
    ),
    "reproduce": (
        ("oomguard reproduce fit-report.json --dry-run", "what differs here, and does it matter?"),
        ("oomguard reproduce theirs/fit-report.json --root ~/finetune", "in a copy of the job"),
    ),
    "report": (
        ("oomguard report RUN", "Markdown, for an issue"),
        ("oomguard report RUN --format html --out fit-report.html", "one page with plots"),
    ),
    "plan": (
        ("oomguard plan train.yaml --gpu 'RTX 3090'", "does it fit, and what makes it fit?"),
        ("oomguard plan train.yaml --gpu a100-80 --gpus 8 --explain-terms", "term by term"),
        ("oomguard plan train.yaml --gpu 3090 --max micro_batch", "the largest that fits"),
        (
            "oomguard plan train.yaml --gpu h100 --sweep sequence_length=512,1024,2048 --csv",
            "a table for a spreadsheet",
        ),
        ("oomguard plan --gpu h100 --compare lora.yaml qlora.yaml", "side by side"),
        ("oomguard plan train.yaml --gpu-memory 24GiB --ci", "fail a pipeline if it does not fit"),
        ("oomguard plan train.yaml --gpu a100-80 --gpus auto", "how many are needed?"),
        ("oomguard plan train.yaml --gpu all", "which GPUs would do? The smallest is named"),
    ),
    "explain": (
        ("oomguard explain slurm-4711.out --exit-code 137", "a killed job"),
        ("oomguard explain logs/", "the logs of all ranks, as one story"),
        ("kubectl logs trainer | oomguard explain -", "from a pipe"),
    ),
    "doctor": (("oomguard doctor --python ~/venv/bin/python", "where the framework is installed"),),
    "ladder": (("oomguard ladder --ladder classic", "the basic six"),),
    "models": (("oomguard models qwen3 8b", "names with both words"),),
    "mcp": (("oomguard mcp", "as a server in the settings of your agent"),),
    "completion": (
        ("oomguard completion bash >> ~/.bashrc", "from the next shell on"),
        ("oomguard completion zsh >> ~/.zshrc", ""),
        ("oomguard completion fish > ~/.config/fish/completions/oomguard.fish", ""),
    ),
}


def epilog_of(name: str) -> str:
    r"""Return the end of a command's help; `\b` keeps click from refilling the lines."""
    lines = ["\b", "Examples:"]
    for typed, purpose in EXAMPLES[name]:
        lines += [f"  # {purpose}"] if purpose else []
        lines.append(f"  {typed}")
    return "\n".join(lines)


def help_pages(group: click.Group) -> str:
    """Return the help of all commands, as `--help` prints it in 80 columns."""
    context = click.Context(
        group, info_name="oomguard", terminal_width=78, help_option_names=["-h", "--help"]
    )
    pages = [f"```console\n$ oomguard --help\n{group.get_help(context)}\n```"]
    for name in group.list_commands(context):
        if (command := group.get_command(context, name)) is None:
            continue
        shown = command.get_help(click.Context(command, info_name=name, parent=context))
        pages.append(f"## oomguard {name}\n\n```console\n$ oomguard {name} --help\n{shown}\n```")
    return "\n\n".join(pages)
