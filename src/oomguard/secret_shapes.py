"""What secrets look like, as data: the names before them, and the forms of known tokens."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from itertools import pairwise

#: Words whose value is a secret whatever it looks like, spaces included. A name that ends with one
#: (`dbpassword`) counts too.
SECRET_WORDS = (
    "password", "passwords", "passwd", "passphrase", "passphrases", "passcode", "secret", "secrets",
    "apikey", "apikeys", "accesskey", "secretkey", "privatekey", "credential", "credentials",
    "authorization", "cookie", "cookies",
)  # fmt: skip
#: Headers whose value goes to the end of the line.
HEADERS = ("authorization", "cookie")
#: The same as two words: `api_key`, `apiKey`, `X-API-Key`.
SECRET_PAIRS = frozenset(
    (first, last)
    for last in ("key", "keys")
    for first in (
        "api", "access", "secret", "private", "signing", "encryption", "account", "shared", "auth",
        "master", "subscription", "service", "deploy",
    )
) | {("connection", "string"), ("webhook", "url")}  # fmt: skip
#: Short words that are a secret's name only at the end: `db_pass`, `--pw`.
SHORT_WORDS = frozenset({"pass", "pw", "pwd", "jwt", "sas", "otp", "dsn", "bearer", "auth"})
#: Who hands out keys and tokens: `wandb_key`, `hub_token`. Their values have no spaces.
ISSUERS = frozenset({
    "access", "admin", "anthropic", "api", "app", "auth", "aws", "azure", "bearer", "bot", "client",
    "clearml", "cohere", "comet", "csrf", "dashscope", "db", "deepseek", "gcp", "gemini", "git",
    "github", "gitlab", "google", "groq", "hf", "hub", "hugging", "huggingface", "id", "jupyter",
    "login", "mistral", "mlflow", "modelscope", "ms", "neptune", "nvidia", "oauth", "openai",
    "openrouter", "personal", "redis", "refresh", "replicate", "repo", "security", "session",
    "slack", "ssh", "swanlab", "telegram", "together", "user", "wandb", "wb", "webhook",
})  # fmt: skip
#: Words before `token`, `key` and `pass` that make it an ordinary setting of a training job.
ORDINARY = frozenset({
    "add", "added", "assistant", "audio", "backward", "batch", "begin", "bos", "cache", "cls",
    "column", "completion", "context", "count", "decoder", "dict", "dummy", "each", "encoder",
    "end", "eoh", "eom", "eos", "eot", "every", "extra", "fake", "first", "float", "forward",
    "generated",
    "ignore", "image", "img", "input", "int", "label", "last", "lost", "mask", "max", "mean",
    "message", "messages", "min", "multi", "n", "new", "next", "num", "object", "one", "output",
    "pad", "padding", "per", "placeholder", "positional", "primary", "prompt", "query", "reserved",
    "response", "second", "sep", "single", "sort", "special", "start", "stop", "system", "target",
    "text", "think", "thinking", "total", "train", "trained", "two", "unexpected", "unk", "valid",
    "video", "vision", "visual", "vocab",
})  # fmt: skip
#: Last words of names that point to a secret or count something, and hold none.
POINTERS = frozenset({
    "column", "count", "counts", "dir", "enabled", "env", "field", "file", "filename", "folder",
    "format", "id", "ids", "index", "len", "length", "limit", "name", "names", "num", "path",
    "paths", "per", "ratio", "required", "seen", "size", "type", "types", "url", "var", "variable",
})  # fmt: skip
#: Last words that do not matter: `password_value`, `TOKEN_PROD`.
COUNTED_ENDINGS = frozenset({"value", "val", "str", "prod", "dev", "staging", "old"})
#: Words that make a value a secret only if it looks random.
WEAK_WORDS = frozenset({
    "token", "key", "signature", "sig", "session", "sid", "pat", "webhook", "login", "hmac", "auth",
})  # fmt: skip
#: Names that are telling in the query of a URL or in a connection string only.
URL_WORDS = frozenset({"sig", "signature", "sign", "key", "code", "state", "hmac", "pat"})
#: Settings of no value, which a reader wants to see.
UNSET = frozenset({
    "", "-", "~", "auto", "disabled", "enabled", "env", "false", "n", "no", "none", "null", "off",
    "on", "true", "undefined", "unset", "y", "yes", "|", ">",
})  # fmt: skip

_FORMS = {
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?P<hide>[\s\S]*?)(?:-----END|\Z)",
    "JSON web token": r"\beyJ[\w-]{8,}(?:\.[\w-]{4,}){1,4}",
    "long base64 of a JSON object (Neptune)": r"\beyJ[\w+/-]{40,}={0,2}",
    "header with a scheme": r"(?i:\b(?:bearer|negotiate)\s+(?P<hide>[\w.~+/-]{8,}=*))",
    "basic authorization": r"\bBasic\s+(?P<hide>[A-Za-z0-9+/]{12,}={0,2}(?![\w]))",
    "Hugging Face": r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}",
    "GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})",
    "GitLab": r"\bgl(?:pat|dt|rt|ptt|cbt|ft|soat|imt|agent|oas)-[\w.-]{16,}",
    "OpenAI, Anthropic, DeepSeek, OpenRouter and others": r"\bsk-[\w-]{16,}",
    "Stripe": r"\b[sr]k_(?:live|test)_\w{10,}",
    "AWS key id": r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
    "Google API key": r"\bAIza[\w-]{30,}",
    "Google OAuth": r"\bya29\.[\w.-]{16,}|\bGOCSPX-[\w-]{16,}",
    "Slack": r"\bxox[a-z]-[\w-]{8,}|\bxapp-[\w-]{10,}",
    "Slack, Discord and Telegram webhooks": (
        r"hooks\.slack\.com/(?:services|workflows)/(?P<hide>[\w/]+)"
        r"|discord(?:app)?\.com/api/webhooks/(?P<hide2>[\w/-]+)"
        r"|\bbot(?P<hide3>\d{6,}:[\w-]{20,})"
    ),
    "npm, PyPI, Docker": r"\bnpm_\w{20,}|\bpypi-[\w-]{20,}|\bdckr_[a-z]+_[\w-]{16,}",
    "SendGrid": r"\bSG\.[\w-]{16,}\.[\w-]{16,}",
    "Databricks, DigitalOcean": r"\bdapi[0-9a-f]{24,}|\bdo[oprt]_v1_[0-9a-f]{32,}",
    "Groq, Replicate, NVIDIA, xAI, Perplexity, Together, Fireworks, Tavily": (
        r"\b(?:gsk_|r8_|tgp_v1_|fw_)\w{16,}|\b(?:nvapi|xai|pplx|tvly)-[\w-]{16,}"
    ),
    "Weights & Biases, LangSmith": r"\bwandb_v\d_\w{16,}|\blsv2_[a-z]{2}_\w{16,}",
    "Vault, age, Shopify, Linear, Notion": (
        r"\bhv[sb]\.[\w-]{16,}|\bAGE-SECRET-KEY-1\w{20,}|\bshp(?:at|ss|ca|pa)_\w{16,}"
        r"|\blin_api_\w{16,}|\bntn_\w{20,}"
    ),
    "Alibaba, Tencent key ids; ModelScope": (
        r"\bLTAI[A-Za-z0-9]{12,}|\bAKID[A-Za-z0-9]{13,}"
        r"|\bms-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    ),
    "a user's password for curl, or a password for sshpass": (
        r"(?<!\S)(?:-u|--user)[ =](?P<hide>(?!\d+:\d+(?!\S))[^\s:/]+:\S+)"
        r"|\bsshpass\s+-p\s*(?P<hide2>\S+)"
    ),
}
#: Tokens that are known by their form; each hides its `hide` groups, or all of itself.
FORMS = {what: re.compile(form) for what, form in _FORMS.items()}

#: In lower case, what every text with a secret has somewhere: a cheap test before the others.
_SUSPECT = (
    *("passw", "passp", "passc", "_pass", "-pass", "pass=", "pass:", "pass ", 'pass"', "pass'"),
    *("pwd", "pw=", "pw:", "pw ", "secret", "token", "key", "credential", "auth", "cookie"),
    *("bearer", "basic ", "connection", "webhook", "jwt", "sas", "otp", "dsn", "sig", "code="),
    *("state=", "hmac", "pat=", "session", "sid", "login", "://", "eyj", "hf_", "api_org_", "ghp_"),
    *("gho_", "ghu_", "ghs_", "ghr_", "github_pat", "glpat-", "gldt-", "glrt-", "glptt-", "glcbt-"),
    *("glft-", "glsoat-", "glimt-", "glagent-", "gloas-", "sk-", "sk_", "rk_", "akia", "asia"),
    *("abia", "acca", "aiza", "ya29.", "gocspx", "xox", "xapp", "slack", "discord", "bot", "npm_"),
    *("pypi-", "dckr_", "sg.", "dapi", "_v1_", "gsk_", "r8_", "fw_", "nvapi", "xai-", "pplx-"),
    *("tvly-", "wandb_v", "lsv2_", "hvs.", "hvb.", "shpat", "shpss", "shpca", "shppa", "lin_api"),
    *("ntn_", "ltai", "akid", "ms-", "-u ", "-u=", "--user", "sshpass"),
)


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    """Return the pattern of all words, by their first letters: one test for most positions."""
    first = sorted({word[0] for word in words})
    ends = ("|".join(re.escape(w[1:]) for w in words if w[0] == letter) for letter in first)
    groups = (f"{re.escape(letter)}(?:{end})" for letter, end in zip(first, ends, strict=True))
    return re.compile("|".join(groups))


_SUSPICION = _any_of(_SUSPECT)


def may_hide(text: str) -> bool:
    """Return whether a secret may be in a text; quick, and False for most lines of a log."""
    return _SUSPICION.search(text.lower()) is not None


class Telling(Enum):
    """How much a name says about its value."""

    ANYTHING = "the value is a secret, whatever it looks like, with spaces too"
    ONE_WORD = "the value is a secret of one word, unless it is a number or the like"
    IF_RANDOM = "the value is a secret if it looks random"
    NOTHING = "the value is ordinary"


_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NUMBER = re.compile(r"[+-]?[\d.,_]+(?:[eE][+-]?\d+)?[kKmMgG%]?")
#: A token of a vocabulary: <|im_end|>, [PAD].
_SPECIAL = re.compile(r"<[^<>]*>|\[[A-Z]+\]")
#: A mask, a number too short for a secret, or a reference to where the value is.
_NO_VALUE = re.compile(r"\*+|\d{1,3}|\$[A-Z_][A-Z0-9_]*|\$\{[^{}]*\}|\$?\{\{[^{}]*\}\}")
_VARIABLE = re.compile(r"[A-Z]+(?:_[A-Z]+)+")
#: What a traceback shows of code: where a value comes from, and not the value.
_CODE = re.compile(r"(?:os|self|cls|args|cfg|config|settings|getpass)\.\w\S*")
_CALL = re.compile(r"\w+(?:\.\w+)*\(.*")
_RANDOM = re.compile(r"[A-Za-z0-9+=_.~\-]{16,}")
_HEX = re.compile(r"[0-9a-fA-F]+")
#: Bits a character of a random value has at least: words of a language have fewer.
_RANDOM_BITS = 3.0
#: So many letters alone are a token rather than a word; so many digits, rather than a number.
_LONG_WORD = 16
_LONG_NUMBER = 12


@lru_cache(maxsize=8192)
def telling(name: str, *, setting: bool = True) -> Telling:
    """Return how much a name says about its value; `setting`: in a config or on a command line."""
    words = [word.lower() for word in _WORDS.findall(name)]
    while len(words) > 1 and words[-1] in COUNTED_ENDINGS:
        words.pop()
    last, before = ["", "", *words][-1], ["", "", *words][-2]
    if last in POINTERS and (before, last) not in SECRET_PAIRS:
        return Telling.NOTHING
    pairs = pairwise(words)
    if any(word.endswith(SECRET_WORDS) for word in words) or any(p in SECRET_PAIRS for p in pairs):
        return Telling.ANYTHING
    if last in SHORT_WORDS:
        return Telling.NOTHING if before in ORDINARY or name == "PWD" else Telling.ANYTHING
    for ending in ("tokens", "token", "keys", "key"):
        if last.endswith(ending):
            return _by_owner(ending, last.removesuffix(ending) or before, setting=setting)
    return Telling.IF_RANDOM if WEAK_WORDS & {*words} else Telling.NOTHING


def _by_owner(ending: str, owner: str, *, setting: bool) -> Telling:
    """Return what a name that ends with token or key says, by the word before it."""
    if owner in ORDINARY or (ending in ("key", "keys") and not owner):
        return Telling.NOTHING
    if owner in ISSUERS or ending == "token" or (ending == "tokens" and setting and not owner):
        return Telling.ONE_WORD
    return Telling.IF_RANDOM


def looks_random(value: str) -> bool:
    """Return whether a value is long and has letters and digits as if by chance."""
    if not _RANDOM.fullmatch(value) or not re.search(r"\d", value):
        return False
    counts = Counter(value.lower() if _HEX.fullmatch(value) else value)
    bits = -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())
    return bits >= _RANDOM_BITS and bool(re.search(r"[A-Za-z]", value))


def is_secret(how: Telling, value: str, *, setting: bool) -> bool:
    """Return whether a value behind a name is a secret."""
    if value.lower() in UNSET or _NO_VALUE.fullmatch(value) or _names_another(value):
        return False
    if how is Telling.ANYTHING:
        return setting or not _CODE.fullmatch(value)
    if how is Telling.ONE_WORD:
        word = value.isalpha() and len(value) < _LONG_WORD
        plain = not setting and (word or _CODE.fullmatch(value) or _CALL.fullmatch(value))
        count = _NUMBER.fullmatch(value) and len(value) < _LONG_NUMBER
        return not (count or _SPECIAL.fullmatch(value) or plain)
    return how is Telling.IF_RANDOM and looks_random(value)


def _names_another(value: str) -> bool:
    """Return whether a value is the name of a variable that holds a secret: HF_TOKEN."""
    return bool(_VARIABLE.fullmatch(value)) and telling(value) in (
        Telling.ANYTHING,
        Telling.ONE_WORD,
    )


def tells_in_url(name: str) -> bool:
    """Return whether a parameter of a URL holds a secret."""
    how, words = telling(name), {word.lower() for word in _WORDS.findall(name)}
    return how in (Telling.ANYTHING, Telling.ONE_WORD) or bool(URL_WORDS & words)
