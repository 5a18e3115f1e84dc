from __future__ import annotations

import json
import shlex
import string

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from oomguard.process.output_mask import OutputMask
from oomguard.redact import (
    MASK,
    found_in,
    redact,
    redact_argv,
    redact_config,
    redact_document,
    redact_env,
)
from oomguard.secret_shapes import FORMS, Telling, may_hide, telling

S = "hunter2hunter2"
#: Text as a job prints it; each holds `S`, or a token that is known by its form.
PRINTED = (
    f"--hub_token {S}",
    f"--hub_token={S}",
    f"wandb_api_key: {S}",
    f'"password": "{S}"',
    f"{{'clientSecret': '{S}'}}",
    f'{{"a": "{{\\"password\\": \\"{S}\\"}}"}}',
    f"export AWS_SECRET_ACCESS_KEY='{S}'; python train.py",
    f"command line, key 'env HF_TOKEN={S}': no known framework is recognised",
    f"passphrase = correct horse {S}",
    f"ValueError: wrong password: correct horse {S}",
    f"login(token='{S}', add_to_git_credential=False)",
    f"Authorization: Bearer {S}",
    f'curl -H "X-Api-Key: {S}" https://example.org',
    f"Cookie: a=b; session={S}",
    f"Set-Cookie: id={S}; HttpOnly",
    f"curl -u me:{S} https://example.org",
    f"sshpass -p {S} ssh host",
    f"https://user:{S}@host/path",
    f"redis://:{S}@host/0",
    f"postgres://bob:a/{S}@host/db",
    f"https://{S}@github.com/a/b",
    f"https://x.blob.core.windows.net/c?sv=2020&sig={S}&se=2030",
    f"s3://bucket/key?X-Amz-Signature={S}",
    f"wss://host/socket?access_token={S}",
    f"AccountName=x;AccountKey={S}==;EndpointSuffix=core.windows.net",
    f"https://hooks.slack.com/services/T00/B00/{S}",
    f"https://discord.com/api/webhooks/1/{S}",
    f"\x1b[31mpassword={S}\x1b[0m",
    f"-----BEGIN RSA PRIVATE KEY-----\n{S}\n-----END RSA PRIVATE KEY-----",
    "swanlab_key=0123456789abcdef0123456789abcdef",
    "unknown_key: 0123456789abcdef0123456789abcdef",
)
FORMS_OF_TOKENS = (
    "hf_abcdefghijklmnopqrstuvwx", "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_11AAAAAAA0abcdefghijkl_mnop", "glpat-abcdefghij1234567890", "AKIAABCDEFGHIJKLMNOP",
    "sk-proj-abcdefghijklmnopqrst", "sk-ant-api03-abcdefghijklmno", "rk_live_abcdefghijklmnop",
    "AIzaSyA1234567890abcdefghijklmnopqrstuvw", "ya29.a0AfH6SMBabcdefghijk",
    "xoxb-123456789-abcdef", "npm_abcdefghijklmnopqrstuvwxyz0123456789", "r8_abcdefghijklmnopqrst",
    "pypi-AgEIcHlwaS5vcmcabcdefgh", "dckr_pat_abcdefghijklmnopqrstuvw", "hvs.CAESIabcdefghijklmno",
    "SG.abcdefghijklmnopqrst.uvwxyzabcdefghijkl", "dapi0123456789abcdef0123456789abcdef",
    "nvapi-abcdefghijklmnopqrst", "wandb_v1_abcdefghijklmnopqrstuv", "LTAI5tabcdefghijklmnop",
    "lsv2_pt_0123456789abcdef01234567", "bot1234567:AAabcdefghijklmnopqrstuvwxyz",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "ms-01234567-89ab-cdef-0123-456789abcdef",
)  # fmt: skip
#: What is ordinary in the configs, commands and logs of training jobs.
ORDINARY = (
    "per_device_train_batch_size: 16",
    "--max_new_tokens 4 --include_tokens_per_second true",
    "--num_tokens 12 --save_safetensors --hub_private_repo",
    "tokenizer_name: tiny",
    "tokenizer_name_or_path: meta-llama/Llama-3-8B",
    "add_tokens: <a>,<b>",
    "tokens: ['<|im_start|>', '<|im_end|>']",
    'pad_token: "<|end_of_text|>"',
    "special_tokens: {bos_token: <s>, eos_token: </s>}",
    "image_key: images\nprompt_key: instruction\nlabel_key: output\nkey: value",
    "key_points: 4",
    "model_name_or_path: meta-llama/Llama-3-8B",
    "hub_token: null\nuse_auth_token: true\npush_to_hub: false",
    "hub_token: ${HF_TOKEN}\npassword: $DB_PASSWORD",
    "hub_token: <your token>",
    "password_file: /run/secrets/db\ntoken_path: ~/.cache/token\nsecret_name: hub",
    "https://example.org/a:b",
    "ssh://git@github.com/a/b",
    "abfss://container@account.dfs.core.windows.net/data",
    "/cache/models--a--b/snapshots/0123456789abcdef0123456789abcdef01234567/config.json",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
    "{'loss': 1.5, 'num_tokens': 512.0, 'tokens/s': 1234, 'train_tokens_per_second': 3.5}",
    " 10%|#         | 1/10 [00:01<00:09, 12.3 tokens/s]",
    "secretary: Basic training, the author signed",
    "forward_pass: 3, num_pass: 2",
    "PWD=/home/me",
)
ORDINARY_LOG = (
    "tokens = tokenizer(text, return_tensors='pt')",
    'token = os.environ["HF_TOKEN"]',
    "self.token = self.config.token",
    "Unexpected token: identifier",
    "sample tokens: hello world",
)


@pytest.mark.parametrize("text", PRINTED)
def test_secrets_in_text_are_masked(text):
    shown = redact(text)
    assert MASK in shown
    assert S not in shown
    assert "0123456789abcdef" not in shown
    assert redact(shown) == shown


@pytest.mark.parametrize("token", FORMS_OF_TOKENS)
def test_tokens_are_known_by_their_form(token):
    shown = redact(f"pushing with {token}, done")
    assert MASK in shown
    assert token.split(":")[-1] not in shown
    assert shown.endswith(", done")


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays(text):
    assert redact(text) == text
    assert redact_config(text) == text


@pytest.mark.parametrize("text", ORDINARY_LOG)
def test_ordinary_lines_of_a_log_stay(text):
    assert redact(text) == text


@pytest.mark.parametrize("text", [*PRINTED, *FORMS_OF_TOKENS])
def test_the_cheap_test_lets_no_secret_pass(text):
    assert may_hide(text)


def test_each_form_is_tried():
    text = "\n".join([*PRINTED, *FORMS_OF_TOKENS, "Basic dXNlcjpwYXNzd29yZA=="])
    text += "\neyJhcGlfYWRkcmVzcyI6Imh0dHBzOi8vYXBwLm5lcHR1bmUuYWkifQ=="
    assert [what for what, form in FORMS.items() if not form.search(text)] == []


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("hub_token", Telling.ONE_WORD),
        ("HF_TOKEN", Telling.ONE_WORD),
        ("wandbApiKey", Telling.ANYTHING),
        ("X-API-Key", Telling.ANYTHING),
        ("dbpassword", Telling.ANYTHING),
        ("DB_PASS", Telling.ANYTHING),
        ("some_key", Telling.IF_RANDOM),
        ("max_tokens", Telling.NOTHING),
        ("tokenizer", Telling.NOTHING),
        ("token_type_ids", Telling.NOTHING),
        ("eos_token_id", Telling.NOTHING),
        ("remove_invalid_token", Telling.ONE_WORD),
    ],
)
def test_what_a_name_says(name, how):
    assert telling(name) is how


CONFIG = f"""\
password: first {S}
client_secret: "a, {S}"  # kept
api_key: |
  {S}
  second {S}

  third {S}
learning_rate: 1e-4
tokens: [aaaa, {S}]
hub_token: >-
  {S}
secrets:
- {S}
- name: {S}
credentials:
  user: {S}
  url: {S}
cutoff_len: 512
nested:
  - api_key:
      {S}
    keep: this
  - {{password: {S}, other: x}}
passphrase: "first
  {S}"
last: 1
"""


def test_blocks_and_lists_of_a_config_are_masked():
    shown = redact_config(CONFIG)
    assert S not in shown
    assert "second" not in shown
    for kept in ("# kept", "learning_rate: 1e-4", "cutoff_len: 512", "keep: this", "last: 1"):
        assert kept in shown
    assert redact_config(shown) == shown


def test_argv_masks_values_that_are_words_of_their_own():
    argv = ("train.py", "--hub_token", "abc", "--output_dir", "out", "--api-key=xyz", "a.pw=q r")
    argv += ("--tokens", "one", "two", "--lr", "1", "--password", "-x y", "env", "TOKEN=abc")
    assert redact_argv(argv) == (
        *("train.py", "--hub_token", MASK, "--output_dir", "out", f"--api-key={MASK}"),
        *(f"a.pw={MASK}", "--tokens", MASK, MASK, "--lr", "1", "--password", MASK),
        *("env", f"TOKEN={MASK}"),
    )


def test_env_is_masked_by_name():
    assert redact_env({"HF_TOKEN": "xy", "NPROC_PER_NODE": "2", "DB": f"x://a:{S}@h"}) == {
        "HF_TOKEN": MASK,
        "NPROC_PER_NODE": "2",
        "DB": f"x://a:{MASK}@h",
    }


def test_documents_are_masked_by_key():
    document = {
        "config": {"api_key": S, "max_tokens": 4, "credentials": {"user": S, "n": None}},
        "argv": ["x", "--password", S],
        "path": f"token={S}",
    }
    assert redact_document(document, keep=frozenset({"path"})) == {
        "config": {"api_key": MASK, "max_tokens": 4, "credentials": {"user": MASK, "n": None}},
        "argv": ["x", "--password", MASK],
        "path": f"token={S}",
    }


# --- Random secrets ---

NAMES = st.sampled_from(
    ["password", "db_password", "HF_TOKEN", "hub_token", "wandb_api_key", "secret-key", "apiKey",
     "passphrase", "client_secret", "auth_token", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"]
)  # fmt: skip
#: At least one letter and one digit, so that it is no ordinary word or number.
TOKENS = st.text(string.ascii_letters + string.digits + "-_/+.", min_size=12, max_size=40).filter(
    lambda text: any(map(str.isdigit, text)) and any(map(str.isalpha, text)) and text[0].isalnum()
)
PHRASES = st.text(string.ascii_letters + string.digits + " '\"\\,;:#@!", min_size=12).filter(
    lambda text: any(map(str.isdigit, text)) and text[0].isalnum() and text[-1].isalnum()
)


@given(name=NAMES, secret=TOKENS)
def test_random_tokens_are_masked_in_every_line(name, secret):
    for line in (
        f"{name}={secret}",
        f"{name}: {secret}",
        f'{{"{name}": "{secret}", "x": 1}}',
        f"{{'{name}': '{secret}'}}",
        f"--{name} {secret} --lr 1",
        f"ValueError: bad {name}={secret}, try again",
        f"export {name}='{secret}'",
        f"postgres://me:{secret}@host/db",
        f"Authorization: Bearer {secret}",
    ):
        assert secret not in redact(line), line
        assert secret not in redact_config(line), line


@given(name=NAMES, secret=PHRASES)
@example(name="password", secret="it's-SECOND3")
@example(name="hub_token", secret="first SECOND1")
def test_random_phrases_are_masked_in_commands_and_configs(name, secret):
    argv = ("python", "t.py", f"--{name}", secret, f"--{name}={secret}", f"{name}={secret}", "end")
    shown = redact_argv(argv)
    assert secret not in " ".join(shown)
    assert shown[-1] == "end"
    assert secret not in redact(shlex.join(shown))
    assert secret not in str(redact_document({"a": {name: secret, "argv": list(argv)}}))
    quoted = json.dumps(secret)
    for config in (f"{name}: {quoted}\nx: 1\n", f'{{"{name}": {quoted}, "x": 1}}'):
        assert quoted[1:-1] not in redact_config(config)
    single = secret.replace("'", "''")
    assert single not in redact_config(f"{name}: '{single}'\n")
    block = redact_config(f"{name}: |\n  {secret}\nx: 1\n")
    assert secret not in block
    assert "x: 1" in block


@given(name=NAMES, secret=PHRASES, data=st.data())
def test_what_a_job_was_given_is_masked_in_its_output(name, secret, data):
    """However it is cut into chunks, and in whatever form it is printed."""
    assume(not secret.isalpha())
    known = found_in(argv=("t.py", f"--{name}", secret), texts=[f"{name}: |\n  {secret}\n"])
    text = (
        f"step 1\nusing {secret} now\n{secret!r} {json.dumps(secret)}\r 10%|# {shlex.quote(secret)}"
    )
    output = text.encode()
    mask, shown = OutputMask(known), b""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(output)), max_size=6)))
    for begin, end in zip([0, *cuts], [*cuts, len(output)], strict=True):
        shown += mask.feed(output[begin:end])
    shown += mask.close()
    assert secret not in shown.decode()
    assert json.dumps(secret)[1:-1] not in shown.decode()
    assert shown.startswith(b"step 1\nusing ")


@given(output=st.binary(max_size=400), data=st.data())
def test_other_output_stays_byte_for_byte(output, data):
    assume(redact(output.decode("latin-1")) == output.decode("latin-1"))
    mask, shown = OutputMask(), b""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(output)), max_size=6)))
    for begin, end in zip([0, *cuts], [*cuts, len(output)], strict=True):
        shown += mask.feed(output[begin:end])
    assert shown + mask.close() == output


def test_ordinary_lines_are_passed_on_at_once():
    mask = OutputMask()
    assert mask.feed(b"\r 10%|#  | 1/10 it/s") == b"\r 10%|#  | 1/10 it/s"
    assert mask.feed(b" password") == b""
    assert mask.feed(b"=abc\n") == b" password=***\n"


def test_a_private_key_is_masked_over_several_lines():
    mask = OutputMask()
    mask.feed(b"-----BEGIN PRIVATE KEY-----\n")
    assert mask.feed(b"MIIEvQIBADAN\nabc\n") == b"***\n***\n"
    assert mask.feed(b"-----END PRIVATE KEY-----\nstep 2\n").endswith(b"\nstep 2\n")
