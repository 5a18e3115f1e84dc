"""What was tried against oomguard that is neither an accident nor an attack: odd values, odd files.

`CONFIG_VALUES` is what a config may hold where it should hold the number of samples; it is tried
with each framework, in `CONFIGS`. `COMMAND_LINES` are options and files of the command line. Each
has what must come of it. `python tests/faults/probes.py` writes probes.md from these tables.
"""

from __future__ import annotations

from pathlib import Path

RECORD = Path(__file__).with_name("probes.md")
REFUSED = "refused"

#: A job of each framework; `{}` stands for the micro batch.
CONFIGS = {
    "llamafactory": (
        "model_name_or_path: m\nstage: sft\ndo_train: true\nfinetuning_type: lora\n"
        "template: llama2\ndataset: d\noutput_dir: out\nper_device_train_batch_size: {}\n"
    ),
    "litgpt": (
        "checkpoint_dir: m\nprecision: bf16-true\nlora_r: 8\ntrain:\n  global_batch_size: 64\n"
        "  micro_batch_size: {}\n  max_seq_length: 512\n"
    ),
    "hf_trainer": (
        "oomguard:\n  command: [python, t.py]\nmodel_name_or_path: m\n"
        "per_device_train_batch_size: {}\noutput_dir: out\n"
    ),
    "trl": (
        "oomguard:\n  command: [trl, sft]\nmodel_name_or_path: m\ndataset_name: d\n"
        "per_device_train_batch_size: {}\noutput_dir: out\n"
    ),
    "axolotl": (
        "base_model: m\ndatasets:\n- path: d\n  type: alpaca\nsequence_len: 512\nadapter: lora\n"
        "lora_r: 8\nlora_target_linear: true\nmicro_batch_size: {}\nnum_epochs: 1\n"
    ),
    "ms_swift": "model: m\ntuner_type: lora\ndataset: d\nper_device_train_batch_size: {}\n",
    "torchtune": (
        "model:\n  _component_: torchtune.models.llama2.lora_llama2_7b\n  lora_rank: 8\n"
        "  lora_attn_modules: [q_proj]\ntokenizer:\n  max_seq_len: 512\n"
        "  _component_: torchtune.models.llama2.llama2_tokenizer\ncheckpointer:\n"
        "  _component_: torchtune.training.FullModelHFCheckpointer\n  checkpoint_dir: c\n"
        "optimizer:\n  _component_: torch.optim.AdamW\nbatch_size: {}\ndtype: bf16\n"
    ),
    "qwen": (
        "oomguard:\n  command: [python, finetune.py]\nmodel_name_or_path: m\ndata_path: d\n"
        "use_lora: true\nmodel_max_length: 512\nper_device_train_batch_size: {}\n"
    ),
    "peft_loftq": (
        "oomguard:\n  command: [python, train_gsm8k_llama.py]\nmodel_name_or_path: m\n"
        "per_device_train_batch_size: {}\noutput_dir: out\n"
    ),
}

#: What stands for the micro batch, and what it has to be read as.
CONFIG_VALUES: dict[str, tuple[str, int | str]] = {
    "plain": ("4", 4),
    "in quotes": ('"4"', 4),
    "with a plus": ("+4", 4),
    "hexadecimal": ("0x4", 4),
    "with a leading zero": ("04", 4),
    "with an underscore": ("1_0", 10),
    "with a comment": ("4 # not 8", 4),
    "with a tag": ("!!int 4", 4),
    "with an anchor": ("&a 4", 4),
    "in Arabic digits": ("'٤'", 4),
    "blanks around it": ("' 4 '", REFUSED),
    "octal as YAML 1.2 has it": ("0o4", REFUSED),
    "a float": ("4.0", REFUSED),
    "an exponent": ("4e0", REFUSED),
    "negative": ("-4", REFUSED),
    "zero": ("0", REFUSED),
    "true": ("true", REFUSED),
    "yes": ("yes", REFUSED),
    "a list": ("[4]", REFUSED),
    "a mapping": ("{a: 4}", REFUSED),
    "nan": ("nan", REFUSED),
    "infinity": (".inf", REFUSED),
    "a date": ("2024-01-01", REFUSED),
    "a date of a 13th month": ("2024-13-01", REFUSED),
    "a word": ("four", REFUSED),
    "an expression": ("2*2", REFUSED),
    "a variable of the shell": ("$BATCH", REFUSED),
    "a block of text": ("|\n  4\n", REFUSED),
    "a Python object": ("!!python/object/apply:os.system [true]", REFUSED),
    "an alias of nothing": ("*a", REFUSED),
    "set twice": ("TWICE", REFUSED),
    "a tab before it": ("\t4", REFUSED),
    "5000 digits": ("9" * 5000, REFUSED),
    "a control character": ("4\x07", REFUSED),
    "an emoji": ("😀", REFUSED),
}

#: Words after `launch`, before a job that would be started; the exit code and what is said.
COMMAND_LINES: dict[str, tuple[tuple[str, ...], str]] = {
    "name of two lines": (("--name", "x\ny"), "must have no control characters"),
    "name with a NUL": (("--name", "x\0y"), "must have no control characters"),
    "name that is empty": (("--name", ""), "must be a string, not ''"),
    "name of blanks": (("--name", "  "), "must be a string, not '  '"),
    "name that is too long": (("--name", "a" * 300), "is too long for a folder name: 300 bytes"),
    "name too long in bytes": (("--name", "é" * 120), "is too long for a folder name: 240 bytes"),
    "name of the parent": (("--name", ".."), "'..' is not a valid folder name"),
    "name with a slash": (("--name", "a/b"), "'a/b' is not a valid folder name"),
    "runs from an unset variable": (("--runs", ""), "must be a string, not ''"),
    "runs in a device": (("--runs", "/dev/null"), "cannot write to the run folder"),
    "runs in /proc": (("--runs", "/proc/x"), "cannot write to the run folder"),
    "fits from an unset variable": (("--fits", ""), "must be a string, not ''"),
    "python from an unset variable": (("--python", ""), "must be a string, not ''"),
    "python that is a folder": (("--python", "/"), "there is no such Python"),
    "python that is no program": (("--python", "job.py"), "there is no such Python"),
    "framework from an unset variable": (("--framework", ""), "must be a string, not ''"),
    "framework in capitals": (("--framework", "TRL"), "no framework is called 'TRL'"),
    "grace that is not a number": (("--grace", "nan"), "nan is not a number of seconds"),
    "grace without end": (("--grace", "inf"), "inf is not a number of seconds"),
    "grace below zero": (("--grace", "-1"), "is not in the range"),
    "hang timeout not a number": (("--hang-timeout", "nan"), "is not a number of seconds"),
    "hang timeout of zero": (("--hang-timeout", "0"), "is not in the range"),
    "no attempts": (("--max-attempts", "0"), "is not in the range"),
    "half an attempt": (("--max-attempts", "1.5"), "is not a valid"),
    "memory without a unit": (("--host-memory", "24"), "has no unit"),
    "memory of 400 digits": (("--host-memory", "9" * 400 + "GiB"), "than any machine has"),
    "memory below zero": (("--host-memory", "-1GiB"), "is not a size"),
    "memory not a number": (("--host-memory", "nanGiB"), "is not a size"),
    "memory without end": (("--host-memory", "infGiB"), "is not a size"),
    "memory of nothing": (("--gpu-memory", "0GiB"), "is not a positive size"),
    "ladder from an unset variable": (("--ladder", ""), "must be a string, not ''"),
    "ladder of commas": (("--ladder", ",,"), "no strategy is called ''"),
    "ladder with a typo": (("--ladder", "halve_micro_bach"), "Did you mean"),
    "ladder classic and more": (("--ladder", "classic,classic"), "cannot be combined"),
    "strategies in a device": (("--strategies", "/dev/null"), "does not exist"),
}

#: The text of a user's strategy file, and what is said of it.
STRATEGY_FILES: dict[str, tuple[bytes, str]] = {
    "NUL bytes": (b"\0", "cannot contain null bytes"),
    "not UTF-8": (b"caf\xe9 = 1", "the file does not load: SyntaxError"),
    "a syntax error": (b"def", "the file does not load: SyntaxError"),
    "empty": (b"", "the file defines no STRATEGY"),
    "another type": (b"STRATEGY = 3", "the file defines no STRATEGY"),
    "raises": (b"1/0", "the file does not load: ZeroDivisionError"),
    "without end": (b"def f(): f()\nf()", "the file does not load: RecursionError"),
    "out of memory": (b"raise MemoryError", "the file does not load: MemoryError"),
    "an exception of its own": (b"class X(BaseException): 0\nraise X", "does not load: X"),
    "a change that is none": (b"CHANGE = None", "change is not a function in STRATEGY"),
    "remedies that are none": (b"REMEDIES = [1]", "remedies is not a frozenset of Remedy"),
    "a fidelity in words": (b"FIDELITY = 'same_math'", "fidelity is not SAME_MATH"),
    "a summary that is none": (b"SUMMARY = None", "summary is not a string"),
}

#: Of a strategy whose file loads: its `change`, and why it is skipped.
CHANGES: dict[str, tuple[str, str]] = {
    "raises": ("raise KeyError('x')", "its change failed: KeyError: 'x'"),
    "recurses": ("return change(job, plan)", "its change failed: RecursionError"),
    "another type": ("return 7", "its change returned int, which is not a plan"),
    "a mapping": ("return {}", "its change returned dict, which is not a plan"),
    "the same plan": ("return plan", "it would change nothing"),
    "nothing": ("return None", "it would change nothing"),
}


def table() -> str:
    """Return all probes as Markdown."""
    lines = [
        "# Probes",
        "",
        "What was tried, and what held. `probes.py` has the tables and writes this file,",
        "`test_probes.py` runs them. The scenarios of the other files here are not repeated.",
        "",
        "| what | tried | held |",
        "|---|---|---|",
    ]
    configs = f"config of each of {len(CONFIGS)} frameworks: micro batch"
    for name, (_, meant) in CONFIG_VALUES.items():
        lines.append(f"| {configs} | {name} | {'read as ' * (meant != REFUSED)}{meant} |")
    for name, (words, said) in COMMAND_LINES.items():
        lines.append(f"| option {words[0]} | {name} | refused: {said} |")
    for name, (_, said) in STRATEGY_FILES.items():
        lines.append(f"| strategy file | {name} | refused: {said} |")
    for name, (_, why) in CHANGES.items():
        lines.append(f"| change of a strategy | {name} | skipped: {why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    RECORD.write_text(table())
