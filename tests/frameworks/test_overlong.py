"""What TRL and LLaMA-Factory really keep of texts that are longer than a sequence."""

from __future__ import annotations

import json
import subprocess

from environments import environment
from jobs import _environ

from oomguard.adapters.contract import JobRequest
from oomguard.adapters.registry import adapter_named
from oomguard.job.plan import Overlong
from oomguard.machine.job_tokenizer import JobTokenizer

TRL = """
import json
from datasets import Dataset
from trl import pack_dataset

kept = {}
for strategy in ("bfd", "bfd_split", "wrapped"):
    texts = Dataset.from_dict({"input_ids": [list(range(n)) for n in (5, 40, 100)]})
    packed = pack_dataset(texts, 16, strategy)
    assert max(map(len, packed["input_ids"])) <= 16
    kept[strategy] = sum(map(len, packed["input_ids"]))
print(json.dumps(kept))
"""
LLAMAFACTORY = """
import json
from types import SimpleNamespace
from llamafactory.data.processor.pretrain import PretrainDatasetProcessor

class Words:
    eos_token = " end"
    def __call__(self, texts, truncation=False, max_length=None, **_):
        most = max_length if truncation else None
        return {"input_ids": [list(range(len(text.split())))[:most] for text in texts]}

kept = {}
texts = {"_prompt": [[{"content": "word " * n}] for n in (4, 39, 99)]}
for packing in (True, False):
    for length in (64, 16):
        told = SimpleNamespace(packing=packing, cutoff_len=length, template="default")
        made = PretrainDatasetProcessor(None, Words(), None, told).preprocess_dataset(dict(texts))
        kept[f"{packing} {length}"] = sum(map(len, made["input_ids"]))
print(json.dumps(kept))
"""


def _run(name: str, script: str, folder) -> dict[str, int]:
    python = environment(name)
    done = subprocess.run(
        [python, "-c", script],
        cwd=folder,
        env=_environ(folder, python),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kept: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return kept


def _read(name: str, argv: str) -> Overlong | None:
    request = JobRequest(argv=tuple(argv.split()), cwd="/job")
    return adapter_named(name).read(request).asked.overlong


def test_trls_packing_keeps_what_each_strategy_is_read_as(tmp_path):
    whole = {name: kept == 5 + 40 + 100 for name, kept in _run("trl", TRL, tmp_path).items()}
    assert whole == {"bfd": False, "bfd_split": True, "wrapped": True}
    for name, kept in whole.items():
        read = _read("trl", f"trl sft --packing --packing_strategy {name}")
        assert read is (Overlong.CHUNKED if kept else Overlong.CUT)


def test_llamafactorys_pretraining_loses_nothing_by_a_shorter_sequence_where_it_packs(tmp_path):
    kept = _run("llamafactory", LLAMAFACTORY, tmp_path)
    # A last sequence that is not full is left out; a shorter one leaves less of it.
    assert kept["True 16"] >= kept["True 64"]
    assert 145 - kept["True 16"] < 16
    assert kept["False 16"] < kept["False 64"] < 145
    base = "lmf train --model_name_or_path m --stage pt"
    assert _read("llamafactory", base) is Overlong.CHUNKED
    assert _read("llamafactory", f"{base} --packing False") is Overlong.CUT


TOKENIZER = """
import json, sys
from tokenizers import Tokenizer, models, pre_tokenizers
words = {"[UNK]": 0, "a": 1, "b": 2, "c": 3}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.enable_truncation(4)
tokenizer.enable_padding(length=16)
tokenizer.save("model/tokenizer.json")
print("{}")
"""


def test_tokens_are_counted_in_the_jobs_python_past_what_the_tokenizer_would_cut(tmp_path):
    (tmp_path / "model").mkdir()
    _run("hf", TOKENIZER, tmp_path)
    file = tmp_path / "model" / "tokenizer.json"
    count = JobTokenizer(str(environment("hf")), file)
    assert count(["a b c", "a " * 50, "x"]) == (3, 50, 1)
    file.unlink()
    assert count(["a b c"]) is None
