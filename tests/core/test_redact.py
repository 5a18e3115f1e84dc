from __future__ import annotations

import pytest

from oomguard.redact import redact, redact_argv, redact_env

SECRETS = (
    "HF_TOKEN=hf_abcdefghijklmnopqrstuvwx",
    "--hub_token hf_abcdefghijklmnopqrstuvwx",
    "--hub_token=supersecretvalue",
    "wandb_api_key: 0123456789abcdef0123456789abcdef01234567",
    '"password": "hunter2hunter2"',
    "https://user:hunter2hunter2@host/path",
    "export AWS_SECRET_ACCESS_KEY='hunter2hunter2'",
    "token ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "AKIAABCDEFGHIJKLMNOP",
)


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_masked(text):
    shown = redact(text)
    assert "***" in shown
    for secret in ("hf_abc", "supersecret", "0123456789abcdef", "hunter2", "ghp_abc", "AKIAABC"):
        assert secret not in shown


@pytest.mark.parametrize(
    "text",
    [
        "per_device_train_batch_size: 16",
        "--max_new_tokens 4",
        "tokenizer_name: tiny",
        "add_tokens: <a>,<b>",
        "model_name_or_path: meta-llama/Llama-3-8B",
        "hub_token: null",
        "https://example.org/a:b",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
    ],
)
def test_ordinary_text_stays(text):
    assert redact(text) == text


def test_argv_masks_a_value_that_is_a_word_of_its_own():
    argv = ("train.py", "--hub_token", "abc", "--output_dir", "out", "--api-key=xyzxyz")
    assert redact_argv(argv) == (
        "train.py",
        "--hub_token",
        "***",
        "--output_dir",
        "out",
        "--api-key=***",
    )


def test_env_is_masked_by_name():
    assert redact_env({"HF_TOKEN": "x", "NPROC_PER_NODE": "2"}) == {
        "HF_TOKEN": "***",
        "NPROC_PER_NODE": "2",
    }
