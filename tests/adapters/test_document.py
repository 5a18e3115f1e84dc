from __future__ import annotations

import difflib
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from oomguard.configfile.document import Document, Files, Source
from oomguard.errors import ConfigError

LLAMAFACTORY = """\
### model
model_name_or_path: Qwen/Qwen2.5-VL-7B-Instruct
image_max_pixels: 262144
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: full
freeze_vision_tower: true  # 冻结视觉编码器
deepspeed: "examples/deepspeed/ds_z2_config.json"   # choices: [ds_z0, ds_z2, ds_z3]

### dataset
dataset: mllm_demo,identity,alpaca_en_demo  # video: mllm_video_demo
template: qwen2_vl
cutoff_len: 2048

### train
per_device_train_batch_size: 16
learning_rate: 1.0e-5
warmup_ratio: 1e-1
bf16: yes
report_to: none  # choices: [none, wandb]
"""
LITGPT = """\

# The path to the base model's checkpoint directory (type: <class 'Path'>)
checkpoint_dir: checkpoints/meta-llama/Meta-Llama-3-8B
quantize:
devices: auto
data:
  class_path: litgpt.data.Alpaca2k
  init_args:
    mask_prompt: false
    val_split_fraction: 0.05
    prompt_style: alpaca

train:

  # Number of samples between optimizer steps (type: int, default: 64)
  global_batch_size: 8
  micro_batch_size: 1   # per device
  max_seq_length: 512

optimizer:
  class_path: torch.optim.AdamW
  init_args:
    betas:
      - 0.9
      - 0.95
"""
WINDOWS = "a: 1\r\nb: \"two\"\r\n\r\nc: 'three'\r\n"
NO_LAST_NEWLINE = "a: 1\nb: 2"
FLOW = "{a: 1, train: {micro_batch_size: 4, x: [1, 2]}, 'b c': 2} # end\n"
ANCHORS = """\
defaults: &defaults {epochs: 3}
size: &size 8
train:
  <<: *defaults
  micro_batch_size: *size
  nodes: 1
eval_size: 4
"""
BLOCKS = "note: |\n  two\n  lines\nfolded: >-\n  some\n  text\nlast: 1\n# the end\n"
INDENTED = "    a: 1\n    # why\n    b:\n      - 1\n      - 2\n    c: 3\n"
MARKED = "---\n# head\na: 1\nb: 2\n...\n"
JSON = '{\n\t"a": 1,\n\t"train": {"micro_batch_size": 4},\n\t"path": "C:\\\\x \\u00e9"\n}\n'
TEXTS = {
    "llamafactory.yaml": LLAMAFACTORY,
    "litgpt.yaml": LITGPT,
    "windows.yaml": WINDOWS,
    "open.yaml": NO_LAST_NEWLINE,
    "flow.yaml": FLOW,
    "anchors.yaml": ANCHORS,
    "blocks.yaml": BLOCKS,
    "indented.yaml": INDENTED,
    "marked.yaml": MARKED,
    "bom.yaml": "\ufeff" + NO_LAST_NEWLINE,
    "args.json": JSON,
}
#: Keys of anchors.yaml that stand in two places.
BOUND = {"size", "defaults", "defaults.epochs", "train", "train.epochs"}


def parse(name: str, text: str | None = None) -> Document:
    return Document.parse(Source(path=f"/x/{name}", text=TEXTS[name] if text is None else text))


def leaves(values: object, prefix: str = "") -> list[str]:
    if not isinstance(values, dict):
        return [prefix]
    inner = [leaves(value, f"{prefix}.{key}".lstrip(".")) for key, value in values.items()]
    return [name for names in inner for name in names] + ([prefix] if prefix else [])


def changed_lines(before: str, after: str) -> tuple[list[str], list[str]]:
    lines = list(difflib.ndiff(before.splitlines(keepends=True), after.splitlines(keepends=True)))
    return [x[2:] for x in lines if x[0] == "-"], [x[2:] for x in lines if x[0] == "+"]


CASES = [
    (name, key)
    for name in TEXTS
    for key in leaves(parse(name).values)
    if name != "anchors.yaml" or key not in BOUND
]


@pytest.mark.parametrize(("name", "key"), CASES)
@pytest.mark.parametrize("value", [7, True, None, "/a b/c.json", "yes"])
def test_an_edit_touches_its_own_lines_only(name: str, key: str, value: object) -> None:
    before = parse(name)
    after = before.set(key, value)
    assert after.get(key) == value
    gone, new = changed_lines(before.text, after.text)
    held = before.get(key)
    block = isinstance(held, dict | list) or "|" in before.text
    assert len(new) == 1 or (value == held and not new)
    assert len(gone) == len(new) or block
    others = [k for k in leaves(before.values) if not f"{k}.".startswith(f"{key}.")]
    for other in others:
        assert isinstance(before.get(other), dict) or after.get(other) == before.get(other)


def test_comment_quotes_and_spaces_of_the_edited_line_stay() -> None:
    after = parse("llamafactory.yaml").set("deepspeed", "/runs/1/ds.json")
    assert 'deepspeed: "/runs/1/ds.json"   # choices: [ds_z0, ds_z2, ds_z3]\n' in after.text
    after = parse("litgpt.yaml").set("train.micro_batch_size", 4)
    assert "  micro_batch_size: 4   # per device\n" in after.text


@pytest.mark.parametrize(
    ("name", "key", "line"),
    [
        ("llamafactory.yaml", "gradient_accumulation_steps", "gradient_accumulation_steps: 2\n"),
        ("litgpt.yaml", "train.epochs", "  epochs: 2\n"),
        ("litgpt.yaml", "eval.interval", "eval: {interval: 2}\n"),
        ("windows.yaml", "d", "d: 2\r\n"),
        ("indented.yaml", "d", "    d: 2\n"),
        ("args.json", "b", '\t"b": 2\n'),
    ],
)  # fmt: skip
def test_a_new_key_is_one_new_line(name: str, key: str, line: str) -> None:
    before = parse(name)
    after = before.set(key, 2)
    assert after.get(key) == 2
    gone, new = changed_lines(before.text, after.text)
    assert line in [x.replace("    \t", "\t") for x in new] or name.endswith("json")
    assert gone == [] or name.endswith("json")


def test_a_new_key_in_an_open_last_line_and_in_flow_mappings() -> None:
    assert parse("open.yaml").set("c", 3).text == "a: 1\nb: 2\nc: 3\n"
    assert parse("flow.yaml").set("train.y", 3).text == FLOW.replace("[1, 2]}", "[1, 2], y: 3}")
    assert parse("args.json", "{}").set("a", True).text == '{"a": true}'
    assert json.loads(parse("args.json").set("b", 2).text)["b"] == 2


def test_a_new_key_follows_an_alias() -> None:
    after = parse("x.yaml", "a: &x 1\nb: *x  # as a\n# end\n").set("c", 2)
    assert after.text == "a: &x 1\nb: *x  # as a\nc: 2\n# end\n"


def test_a_null_mapping_gets_its_first_key() -> None:
    after = parse("x.yaml", "train:\nother: 1\n").set("train.micro_batch_size", 4)
    assert yaml.safe_load(after.text) == {"train": {"micro_batch_size": 4}, "other": 1}


def test_a_merged_key_is_stated_beside_the_merge() -> None:
    after = parse("anchors.yaml").set("train.epochs", 5)
    assert after.get("train.epochs") == 5
    assert after.get("defaults.epochs") == 3


def test_an_alias_is_replaced_and_its_anchor_stays() -> None:
    after = parse("anchors.yaml").set("train.micro_batch_size", 4)
    assert after.text == ANCHORS.replace("*size", "4")


def test_what_others_refer_to_is_not_edited() -> None:
    with pytest.raises(ConfigError, match="size cannot be changed in place") as caught:
        parse("anchors.yaml").set("size", 4)
    assert str(caught.value.where) == "/x/anchors.yaml:2, key 'size'"


def test_numbers_keep_the_meaning_that_pyyaml_gives_them() -> None:
    document = parse("llamafactory.yaml")
    assert document.get("learning_rate") == 1.0e-5
    assert document.get("warmup_ratio") == "1e-1"  # YAML 1.1
    assert document.get("bf16") is True


@pytest.mark.parametrize(
    ("name", "text", "line", "message"),
    [
        ("x.yaml", "a: 1\nb: 2\na: 3\n", 3, "a is set here and on line 1"),
        ("x.yaml", "t:\n  a: 1\n  a: 1\n", 3, "a is set here and on line 2"),
        ("x.json", '{"a": 1,\n "a": 2}', 2, "a is set here and on line 1"),
        ("x.yaml", "a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("x.yaml", "a: [1, 2\nb: 3\n", 2, "not valid YAML"),
        ("x.yaml", "a: *nowhere\n", 1, "undefined alias"),
        ("x.yaml", "a: !!python/object/apply:os.system [ls]\n", 1, "not valid YAML"),
        ("x.yaml", "- a\n- b\n", 1, "not a mapping"),
        ("x.yaml", "", 1, "is empty"),
        ("x.yaml", "just text\n", 1, "not a mapping"),
        ("x.yaml", "a: 1\n---\nb: 2\n", 2, "not valid YAML"),
        ("x.yaml", "b: 1\na: 2024-99-99\n", 2, "not valid YAML"),
        ("x.yaml", "a: \x07\n", 1, "not valid YAML"),
        ("x.yaml", "a: " + "[" * 5000 + "]" * 5000, None, "nested too deeply"),
        ("x.yaml", "a: 1\n? {c: 1}\n: 2\n", 2, "unhashable"),
        ("x.json", '{"a": }', 1, "not valid JSON"),
        ("x.json", "[1]", 1, "not a mapping"),
        ("x.json", '{"a": ' + "[" * 5000 + "]" * 5000 + "}", None, "not JSON that can be"),
    ],
)
def test_a_broken_file_is_named_with_its_line(
    name: str, text: str, line: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(name, text)
    assert caught.value.where is not None
    assert caught.value.where.file == f"/x/{name}"
    assert caught.value.where.line == line


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a: 1\noomguard:\n  x: 1\n\n  # why\n  y: 2\nb: 2\n", "a: 1\n\n\n\n\n\nb: 2\n"),
        ("oomguard: {x: 1}  # ours\nb: 2\n", "\nb: 2\n"),
        ("b: 2\r\noomguard:\r\n  x: 1", "b: 2\r\n\r\n"),
        ("b: 2\n", "b: 2\n"),
        ("{a: 1, oomguard: {x: 1}, b: 2}", "{a: 1, " + " " * len("oomguard: {x: 1},") + " b: 2}"),
        ("{a: 1, oomguard: {x: 1}}", "{a: 1" + " " * len(", oomguard: {x: 1}") + "}"),
    ],
)
def test_a_block_is_taken_out_without_moving_a_line(text: str, left: str) -> None:
    assert parse("x.yaml", text).without("oomguard") == left


_KEYS = st.sampled_from(["a", "b", "micro_batch_size", "x-y", "深"])
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 99), st.text(max_size=12), st.floats(0, 9)
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=100)  # a busy machine is no failure
@given(
    values=st.dictionaries(_KEYS, _VALUES, min_size=1),
    flow=st.sampled_from([True, False, None]),
    style=st.sampled_from([None, "'", '"', "|", ">"]),
    key=_KEYS,
    value=_SCALARS,
)
def test_any_file_reads_back_as_it_was_with_one_value_changed(
    values: dict[str, object], flow: bool | None, style: str | None, key: str, value: object
) -> None:
    text = yaml.safe_dump(
        values, default_flow_style=flow, default_style=style, allow_unicode=True, sort_keys=False
    )
    before = Document.parse(Source(path="/x.yaml", text=text))
    assert before.set(key, value).values == {**before.values, key: value}


def test_referenced_files_are_parsed_once_and_by_the_format_of_their_reader():
    files = Files({"/a/z.json": '{"x": 1e5}', "/a/zero": '{"x": 1e5}', "/a/b.yaml": "x: [1\n"})
    assert files.document(None) is None
    assert files.document("/a/none.json") is None
    assert files.document("/a/z.json") is files.document("/a/z.json", is_json=True)
    assert files.document("/a/zero", is_json=True).values == {"x": 1e5}
    assert files.document("/a/zero").values == {"x": "1e5"}  # YAML 1.1 reads a string
    with pytest.raises(ConfigError, match="not valid YAML"):
        files.document("/a/b.yaml")
    assert Files.of(files) is files


def test_an_edited_document_is_a_source_that_is_parsed_already():
    document = Document.parse(Source(path="x.yaml", text="a: 1\n")).set("a", 2)
    assert document.source == Source(path="x.yaml", text="a: 2\n")
    assert document.source.document is document
