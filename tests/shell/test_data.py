"""The lengths of a job's own data, from real files."""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import replace

import pytest

from generators import make_job
from oomguard.dataset.lengths import AUDIO_TOKENS, MARKS, MOST_KEPT, TEMPLATE_TOKENS, with_lengths
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import Plan
from oomguard.machine.job_tokenizer import JobTokenizer

PLAN = Plan(micro_batch=1, accumulation=1, sequence_length=4096, image_pixels=784 * 100)
WORDS = "word" * 100  # 100 tokens by the ratio


@pytest.fixture
def lengths(tmp_path):
    def of(records, name="train.json", model="Qwen/Qwen2.5-VL-7B", plan=PLAN, **recipe):
        path = tmp_path / name
        lines = "\n".join(json.dumps(record) for record in records)
        path.write_text(json.dumps(records) if name.endswith(".json") else lines)
        job = replace(make_job(plan), cwd=str(tmp_path))
        asked = MemorySettings(model=model, data=(str(path),), **recipe)
        return with_lengths(job, asked).lengths

    return of


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": WORDS, "input": "", "output": WORDS},
        {"text": WORDS + WORDS},
        {"messages": [{"role": "user", "content": WORDS}, {"role": "assistant", "content": WORDS}]},
        {"conversations": [{"from": "human", "value": WORDS}, {"from": "gpt", "value": WORDS}]},
        {"instruction": WORDS, "output": "", "history": [[WORDS[:200], WORDS[:200]]]},
        {"prompt": WORDS, "chosen": WORDS, "rejected": WORDS[:200]},
    ],
    ids=["alpaca", "text", "messages", "sharegpt", "history", "pair"],
)
@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_every_layout_is_counted(lengths, record, name):
    found = lengths([record], name)
    assert found.longest == pytest.approx(200, abs=2)
    assert "a guess" in found.counted_by


def test_the_share_that_a_cut_loses(lengths):
    found = lengths([{"text": WORDS * n} for n in (1, 2, 3, 4)])
    assert found.sorted_tokens == (100, 200, 300, 400)
    assert found.lost(400) == 0
    assert found.lost(200) == pytest.approx(0.3)
    assert found.lost(200, whole=True) == pytest.approx(0.7)


def test_many_samples_are_kept_by_an_even_spread_with_the_longest(lengths):
    found = lengths([{"text": "word" * n} for n in range(1, 3001)])
    assert found.samples == 3000
    assert len(found.sorted_tokens) == MOST_KEPT
    assert (found.sorted_tokens[0], found.longest) == (1, 3000)
    assert found.lost(1500) == pytest.approx(0.25, abs=0.01)


def test_a_cut_leaves_each_sample_its_own_media_tokens(lengths):
    image = {"instruction": "<image>" + WORDS, "output": WORDS, "images": ["a.png"]}
    sound = {"instruction": "<audio>" + WORDS, "output": "", "audios": ["a.wav"]}
    assert lengths([{"text": WORDS}]).least == 0

    one = lengths([image, {"text": WORDS * 20}])
    tokens = 100 + MARKS
    assert tokens + TEMPLATE_TOKENS < one.least < tokens + TEMPLATE_TOKENS + 2 * 102
    two = lengths([{**image, "images": ["a.png", "b.png"]}])
    assert two.least > one.least
    assert lengths([sound]).least > AUDIO_TOKENS


@pytest.mark.parametrize(
    ("record", "model"),
    [
        ({"text": "<video>", "videos": ["a.mp4"]}, "Qwen/Qwen2.5-VL-7B"),
        ({"text": "<image>", "images": ["a.png"]}, "somebody/unknown-vision"),
    ],
    ids=["video", "unknown tower"],
)
def test_media_whose_tokens_are_not_known_leave_no_cut_that_is_safe(lengths, record, model):
    assert lengths([record], model=model).least == 0


def test_the_models_own_files_say_how_an_image_becomes_tokens(tmp_path, lengths):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "preprocessor_config.json").write_text('{"patch_size": 28, "merge_size": 2}')
    image = {"text": "<image>", "images": ["a.png"]}
    assert lengths([image], model="model").least < lengths([image]).least
    newer = '{"image_processor": {"patch_size": 7, "merge_size": 2}}'
    (folder / "processor_config.json").write_text(newer)
    assert lengths([image], model="model").least > lengths([image]).least


def test_only_the_columns_that_are_used_count(lengths):
    found = lengths([{"prompt": WORDS, "solution": WORDS}], columns=("prompt",))
    assert found.longest == pytest.approx(100, abs=1)


def test_the_only_file_of_a_folder_is_read(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps({"prompt": WORDS}))
    (folder / "dataset_info.json").write_text("{}")
    job = replace(make_job(PLAN), cwd=str(tmp_path))
    asked = MemorySettings(data=(str(folder),))
    assert with_lengths(job, asked).lengths.longest == 100
    (folder / "more.json").write_text("[]")
    assert with_lengths(job, asked).lengths is None


def test_a_data_set_is_found_by_its_name(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "real.json"}}')
    (tmp_path / "real.json").write_text(json.dumps([{"text": WORDS}]))
    job = replace(make_job(PLAN), cwd=str(tmp_path))
    found = with_lengths(job, MemorySettings(data=(str(tmp_path / "mine"),)))
    assert found.lengths is not None
    assert found.lengths.longest == 100


@pytest.mark.parametrize(
    "text", ["", "[", "{}", "[1, 2]", '{"a": 1}\n{"b"', "\udcff"], ids=range(6)
)
def test_what_cannot_be_read_leaves_the_lengths_unknown(tmp_path, text):
    path = tmp_path / "train.json"
    path.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    job = make_job(PLAN)
    found = with_lengths(job, MemorySettings(data=(str(path), str(tmp_path / "gone"))))
    assert found.lengths is None or found.lengths.samples == 1


def png(folder, name, high, wide):
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", wide, high)
    (folder / name).write_bytes(header)
    return name


def test_the_images_of_the_sample_with_the_most_pixels_are_measured(lengths, tmp_path):
    small, tall, huge = (
        png(tmp_path, *one) for one in (("a", 100, 200), ("b", 300, 100), ("c", 9999, 9999))
    )
    plan = replace(PLAN, image_pixels=40_000)
    records = [
        {"text": "<image>", "images": [huge]},  # 40,000 pixels are left of it
        {"text": "<image><image>", "images": [small, tall]},
        {"text": "none"},
    ]
    assert lengths(records, plan=plan).images == ((100, 200), (300, 100))
    assert lengths(records[:1], plan=plan).images == ((9999, 9999),)


def test_images_that_cannot_be_read_have_no_size(lengths, tmp_path):
    known = png(tmp_path, "a", 100, 200)
    assert lengths([{"text": "", "images": [known, "gone"]}]).images == ()


def by_words(texts):
    return [len(text.split()) for text in texts]


@pytest.fixture
def counted(tmp_path):
    def of(records, count):
        (tmp_path / "train.json").write_text(json.dumps(records))
        job = replace(make_job(PLAN), cwd=str(tmp_path))
        asked = MemorySettings(model="model", data=("train.json",))
        return with_lengths(job, replace(asked, data=(str(tmp_path / "train.json"),)), count)

    return of


def test_the_tokenizer_counts_every_sample_where_it_can(counted):
    records = [{"prompt": "a b c", "output": "d " * n} for n in (1, 2, 30)]
    lengths = counted(records, by_words).lengths
    assert lengths.sorted_tokens == (4, 5, 33)
    assert lengths.is_exact
    assert lengths.at_most == 33 + TEMPLATE_TOKENS


def test_where_it_cannot_a_ratio_is_a_guess(counted):
    lengths = counted([{"prompt": "a b c d"}], lambda _: None).lengths
    assert not lengths.is_exact
    assert lengths.sorted_tokens == (2,)


def test_of_too_much_text_a_part_is_counted_the_longest_included_and_it_says_so(
    counted, monkeypatch
):
    monkeypatch.setattr("oomguard.dataset.lengths.MOST_CHARACTERS", 1000)
    asked = []
    count = lambda texts: asked.extend(texts) or by_words(texts)  # noqa: E731
    lengths = counted([{"prompt": "a " * n} for n in range(1, 101)], count).lengths
    assert (len(asked), lengths.samples) == (9, 100)
    assert lengths.longest == 100
    assert lengths.counted_by == "the tokenizer, on 9 of 100 samples"
    assert not lengths.is_exact
    assert lengths.at_most == 2 * 100 + TEMPLATE_TOKENS


NO_COUNTS = {
    "no_package": "",
    "no_file": "",
    "not_a_tokenizer": "raise ValueError('cannot read it')",
    "too_few": "import sys; print([1]); sys.exit()",
    "other_types": "import sys; print([1, None]); sys.exit()",
    "no_json": "import sys; print('Hello'); sys.exit()",
    "an_exit": "import os; os._exit(3)",
    "slow": "import time; time.sleep(60)",
}


@pytest.mark.parametrize("name", NO_COUNTS)
def test_a_tokenizer_that_does_not_count_is_none(tmp_path, monkeypatch, name):
    file = tmp_path / "tokenizer.json"
    if name != "no_file":
        file.write_text("{}")
    if NO_COUNTS[name]:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        (tmp_path / "tokenizers.py").write_text(NO_COUNTS[name])
    elif name == "no_package":  # one in the working folder is a file of the user's
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tokenizers.py").write_text("open('ran', 'w').close()")
    timeout_s = 1.0 if name == "slow" else 60.0
    assert JobTokenizer(sys.executable, file, timeout_s)(["a", "b"]) is None
    assert not (tmp_path / "ran").exists()


def test_counting_nothing_starts_nothing(tmp_path):
    assert JobTokenizer(str(tmp_path / "no-python"), tmp_path / "no-file")([]) == ()


def test_a_python_that_cannot_be_started_counts_nothing(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert JobTokenizer("/no/python", tmp_path / "tokenizer.json")(["a"]) is None


def test_the_longest_sample_is_known_by_its_file_and_index(tmp_path):
    path = tmp_path / "train.json"
    rows = [{"instruction": "a" * size} for size in (40, 4000, 80)]
    path.write_text(json.dumps(["not a record", *rows]))
    found = with_lengths(make_job(PLAN), MemorySettings(data=(str(path),)))
    assert found.lengths.longest_at == f"{path}, sample 2"
    assert (found.lengths.longest, found.lengths.median) == (1000, 20)
