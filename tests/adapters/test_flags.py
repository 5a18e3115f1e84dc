from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oomguard.configfile.document import Document, Source
from oomguard.configfile.flags import Flags, Style
from oomguard.configfile.layered import Settings


def args(text: str, style: Style = Style.ARGPARSE) -> Flags:
    return Flags(args=tuple(text.split()), style=style)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("--a 1 --b 2", "b", "2"),
        ("--a=1 --a 3 --b 2", "a", "3"),
        ("--per-device-train-batch-size 4", "per_device_train_batch_size", "4"),
        ("--bf16 --x 1", "bf16", True),
        ("--bf16 True", "bf16", "True"),
        ("--no_packing", "packing", False),
        ("--no-packing", "packing", False),
        ("--lr -1e-3 --b", "lr", "-1e-3"),
        ("train.py --ab 1", "a", None),
        ("--a", "b", None),
    ],
)
def test_argparse_words_are_text(text: str, key: str, value: object) -> None:
    assert args(text).get(key) == value
    assert args(text).has(key) == (value is not None)


@pytest.mark.parametrize(
    ("text", "style", "words"),
    [
        ("--a x y --b z", Style.ARGPARSE, ("x", "y")),
        ("--b z --a x -1 y", Style.ARGPARSE, ("x", "-1", "y")),
        ("--a x --a y z", Style.ARGPARSE, ("y", "z")),
        ("--a=x --b", Style.ARGPARSE, ("x",)),
        ("--a --b z", Style.ARGPARSE, ()),
        ("--b z", Style.ARGPARSE, ()),
        ("a=[x,y]", Style.OMEGACONF, ("x", "y")),
        ("a=x b=[y]", Style.OMEGACONF, ("x",)),
        ("a=null", Style.OMEGACONF, ()),
    ],
)
def test_a_list_has_every_word_up_to_the_next_flag(
    text: str, style: Style, words: tuple[str, ...]
) -> None:
    assert args(text, style).words("a") == words


@pytest.mark.parametrize("spelled", ["[x, y]", "x,y", "x, y", "\n- x\n- y"])
def test_the_items_of_a_list_in_a_file(spelled: str) -> None:
    file = Document.parse(Source(path="train.yaml", text=f"a: {spelled}\n"))
    assert Settings(file=file).words("a") == ("x", "y")
    assert Settings(file=file).words("b") == ()


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("cutoff_len=512 cutoff_len=256", "cutoff_len", 256),
        ("bf16=true", "bf16", True),
        ("deepspeed=null", "deepspeed", None),
        ("name=a=b", "name", "a=b"),
        ("x=[1", "x", "[1"),
    ],
)
def test_omegaconf_words_are_yaml(text: str, key: str, value: object) -> None:
    found = args(text, Style.OMEGACONF)
    assert found.has(key)
    assert found.get(key) == value


def test_jsonargparse_words_are_yaml_with_dots() -> None:
    found = args("ckpt --train.micro_batch_size 4 --quantize null", Style.JSONARGPARSE)
    assert found.get("train.micro_batch_size") == 4
    assert found.has("quantize")
    assert found.get("quantize") is None


@pytest.mark.parametrize(
    ("style", "text", "key", "value", "after"),
    [
        (Style.ARGPARSE, "--a 1 --b 2", "a", 4, "--a 4 --b 2"),
        (Style.ARGPARSE, "--a=1 --b 2", "a", 4, "--a=4 --b 2"),
        (Style.ARGPARSE, "--a 1 --a 2 --b", "a", 4, "--a 1 --a 4 --b"),
        (Style.ARGPARSE, "--b --a 1", "b", False, "--b False --a 1"),
        (Style.ARGPARSE, "--no_b --a 1", "b", True, "--b True --a 1"),
        (Style.ARGPARSE, "--a 1", "b", True, "--a 1 --b True"),
        (Style.ARGPARSE, "--ds x --a 1 --ds=y", "ds", None, "--a 1"),
        (Style.OMEGACONF, "a=1 b=2", "a", True, "a=true b=2"),
        (Style.OMEGACONF, "a=1", "b", None, "a=1 b=null"),
        (Style.JSONARGPARSE, "ckpt --q x", "q", None, "ckpt --q null"),
        (Style.JSONARGPARSE, "ckpt", "t.m", 4, "ckpt --t.m 4"),
    ],
)
def test_an_edit_changes_the_use_that_wins(
    style: Style, text: str, key: str, value: object, after: str
) -> None:
    edited = args(text, style).set(key, value)
    assert edited.args == tuple(after.split())
    assert edited.get(key) in (value, str(value))


_KEY = st.from_regex(r"[a-m][a-z_]{0,8}", fullmatch=True).filter(lambda k: not k.startswith("no_"))


@settings(deadline=None, max_examples=100)  # a busy machine is no failure
@given(
    uses=st.lists(st.tuples(_KEY, st.integers(-5, 99), st.booleans()), max_size=5),
    key=_KEY,
    value=st.integers(0, 99),
    style=st.sampled_from(Style),
)
def test_what_is_set_is_read_and_nothing_else_changes(
    uses: list[tuple[str, int, bool]], key: str, value: int, style: Style
) -> None:
    before = Flags(style=style)
    for name, number, _ in uses:
        before = before.set(name, number)
    after = before.set(key, value)
    assert str(after.get(key)) == str(value)
    for name, _, _ in uses:
        assert name == key or after.get(name) == before.get(name)


def layered() -> Settings:
    text = "a: 1\nb: 1\n"
    return Settings(
        late=args("a=3", Style.OMEGACONF),
        file=Document.parse(Source(path="/x.yaml", text=text)),
        early=args("b=7 c=7", Style.OMEGACONF),
    )


def test_late_words_beat_the_file_and_the_file_beats_early_words() -> None:
    layers = layered()
    assert [layers.get(key) for key in "abcd"] == [3, 1, 7, None]
    assert [str(layers.origin(key)) for key in "abcd"] == [
        "command line, key 'a'",
        "/x.yaml:2, key 'b'",
        "command line, key 'c'",
        "/x.yaml, key 'd'",
    ]


def test_an_edit_goes_where_the_key_wins() -> None:
    layers = layered()
    for key in "abcd":
        layers = layers.set(key, 9)
    assert layers.file is not None
    assert layers.file.text == "a: 1\nb: 9\nd: 9\n"
    assert layers.late.args == ("a=9",)
    assert layers.early.args == ("b=7", "c=9")


def test_without_a_file_a_new_key_is_a_new_word() -> None:
    assert Settings(late=args("--a 1")).set("b", 2).late.args == ("--a", "1", "--b", "2")
