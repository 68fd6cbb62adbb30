"""Secrets in text: keys and tokens of known forms, passwords in URLs, random values that are given to a name.

The forms are those that providers document so that leaked ones can be found. What documentation shows in
their place is no secret: examples (AKIAIOSFODNN7EXAMPLE), placeholders, keys for tests.
"""

import base64
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Iterator

from nima.corpus.cleaning.personal_data import Span, places

# How each provider's tokens begin, and their form.
TOKENS = (
    ("AKIA|ASIA|ABIA|ACCA", r"A[A-Z]{3}[A-Z2-7]{16}"),  # AWS
    ("ghp_|gho_|ghu_|ghs_|ghr_", r"gh[pousr]_[A-Za-z0-9]{36,255}"),  # GitHub
    ("github_pat_", r"github_pat_[A-Za-z0-9_]{36,255}"),
    ("glpat-|gldt-|glrt-", r"gl(?:pat|dt|rt)-[A-Za-z0-9_-]{20,64}"),  # GitLab
    ("xoxa-|xoxb-|xoxe-|xoxo-|xoxp-|xoxr-|xoxs-", r"xox[abeoprs]-[A-Za-z0-9-]{20,255}"),  # Slack
    ("xapp-", r"xapp-[0-9]-[A-Z0-9]+-[0-9]+-[a-f0-9]{32,}"),
    (
        "hooks.slack.com/",
        r"hooks\.slack\.com/(?:services|workflows)/(T[A-Z0-9]{6,}/[A-Z0-9]{6,}/[A-Za-z0-9]{20,})",
    ),
    ("AIza", r"AIza[A-Za-z0-9_-]{35}"),  # Google
    ("GOCSPX-", r"GOCSPX-[A-Za-z0-9_-]{28}"),
    ("ya29.", r"ya29\.[A-Za-z0-9_-]{30,}"),
    ("sk_live_|rk_live_", r"[rs]k_live_[A-Za-z0-9]{20,255}"),  # Stripe
    ("whsec_", r"whsec_[A-Za-z0-9+/=]{30,}"),
    ("sk-", r"sk-(?:proj-|svcacct-|admin-|ant-[a-z0-9]+-)?[A-Za-z0-9_-]{40,255}"),  # OpenAI, Anthropic
    ("hf_", r"hf_[A-Za-z]{34}"),  # Hugging Face
    ("npm_", r"npm_[A-Za-z0-9]{36}"),
    ("pypi-AgEI", r"pypi-AgEI[A-Za-z0-9_-]{50,}"),
    ("SG.", r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),  # SendGrid
    ("SK", r"SK[0-9a-f]{32}"),  # Twilio
    ("AccountKey=|SharedAccessKey=", r"\w+=([A-Za-z0-9+/]{43,88}={1,2})"),  # Azure
    ("dop_v1_|doo_v1_|dor_v1_", r"do[opr]_v1_[0-9a-f]{64}"),  # DigitalOcean
    ("dapi", r"dapi[0-9a-f]{32}(?:-[0-9])?"),  # Databricks
    ("shpat_|shpca_|shppa_|shpss_", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),  # Shopify
    ("dckr_pat_", r"dckr_pat_[A-Za-z0-9_-]{27,}"),  # Docker
    ("hvs.|hvb.", r"hv[bs]\.[A-Za-z0-9_-]{24,}"),  # Vault
    ("ATATT3", r"ATATT3[A-Za-z0-9_=-]{50,}"),  # Atlassian
    ("lin_api_", r"lin_api_[A-Za-z0-9]{40}"),  # Linear
    ("NRAK-", r"NRAK-[A-Z0-9]{27}"),  # New Relic
    ("glsa_|glc_", r"(?:glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}|glc_[A-Za-z0-9+/=]{32,})"),  # Grafana
    ("AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
)
FORMS = [
    (sign, re.compile(rf"(?<![A-Za-z0-9_]){form}(?![A-Za-z0-9_])"))
    for signs, form in TOKENS
    for sign in signs.split("|")
]
PRIVATE_KEY = re.compile(
    r"-----BEGIN (?P<kind>[A-Z0-9 ]{0,24}PRIVATE KEY(?: BLOCK)?)-----"
    r"(?P<body>[^-]{64,20000})-----END (?P=kind)-----"
)
JSON_WEB_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}")
USER_INFO = re.compile(
    r"://[^\s:/?#@\"'`<>]{0,64}:(?P<password>[^\s/@\"'`<>]{3,128})@(?P<host>[A-Za-z0-9.-]+)"
)
NAMES: tuple[str, ...] = (
    "password",
    "passwd",
    "secret",
    "token",
    "credential",
    "api_key",
    "apikey",
    "api-key",
    "access_key",
)
NAMES += ("accesskey", "access-key", "private_key", "account_key", "auth_key")
VALUE = r"[A-Za-z0-9+/=_.~!@#$%^*-]{16,2048}"
# What stands between a name and its value, as in `"secretKey": "..."`, `TOKEN=...`, `--password ...`.
GIVEN = re.compile(
    r"(?:[_-]?(?:access)?[_-]?key|s)?\\?[\"']?(?:[ \t]*(?::=|=>|[:=])[ \t]*|[ \t]+)"
    rf"\\?[\"']?(?P<value>{VALUE})",
    re.IGNORECASE,
)
# Tokens that lead through a listing or name a request open no door.
HARMLESS = re.compile(
    r"(?:next|continuation|page|paging|pagination|client|request|idempotency|start|starting|sync|upload|task"
    r"|state|lock|delete|change|callback|poll|publish|update|purchase|product|unit|marker|identity)[ _-]?$",
    re.IGNORECASE,
)
EXAMPLE = re.compile(
    r"example|sample|placeholder|your|change|replace|insert|redacted|dummy|fake|secret|passw|token|credential"
    r"|x{4}|\*{3}|\.{3}|<|\{\{|\$\{|\$\(|1234567|7654321|abcdef|abcd1234|1234abcd|a1b2c3|0{6}|test[_-]|[_-]test"
    r"|some[_-]|this[_-]?is|my[_-]",
    re.IGNORECASE,
)
EXAMPLE_HOST = re.compile(
    r"(?:.*\.)?(?:example(?:\.[a-z.]+)?|invalid|test|localhost|local)|127\.[\d.]+|host(?:name)?|server"
)
EXAMPLE_PASSWORD = re.compile(
    r"pass|pwd|pw|user|admin|root|guest|foo|bar|postgres|mysql|redis|mongo|rabbitmq", re.IGNORECASE
)
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
CHANGE = re.compile(r"[A-Za-z](?=[0-9])|[0-9](?=[A-Za-z])|[a-z](?=[A-Z])")
MIN_TOKEN_CHARS = 20
MIN_TOKEN_BITS, MIN_VALUE_BITS, MIN_KEY_BITS = 2.5, 3.5, 4.0
"""Entropy, bits a character: names and placeholders lie below, random characters above."""


def secrets_in(text: str) -> Iterator[Span]:
    """[start, end) of each secret; they may overlap. Of a password or an assignment it is the value only."""
    yield from tokens_in(text)
    if "PRIVATE KEY" in text:
        yield from (match.span() for match in PRIVATE_KEY.finditer(text) if is_key(match["body"]))
    if "eyJ" in text:
        yield from (match.span() for match in JSON_WEB_TOKEN.finditer(text) if is_signed_token(match[0]))
    yield from url_passwords(text)
    yield from given_values(text)


def tokens_in(text: str) -> Iterator[Span]:
    # Only long words can hold a token, and they are a small part of most texts.
    long_words = " ".join([word for word in text.split() if len(word) >= MIN_TOKEN_CHARS])
    for sign, form in FORMS:
        for at in places(text, sign) if sign in long_words else ():
            match = form.match(text, at)
            if match:
                token = match[match.lastindex or 0]
                if not EXAMPLE.search(token.removeprefix(sign)) and entropy_bits(token) >= MIN_TOKEN_BITS:
                    yield match.span(match.lastindex or 0)


def url_passwords(text: str) -> Iterator[Span]:
    for at in places(text, "://"):
        match = USER_INFO.match(text, at)
        if match and not is_example_login(match["password"], match["host"].lower()):
            yield match.span("password")


def is_example_login(password: str, host: str) -> bool:
    is_placeholder = EXAMPLE.search(password) or EXAMPLE_PASSWORD.fullmatch(password) or password[0] in "$%{"
    return bool(is_placeholder or EXAMPLE_HOST.fullmatch(host))


def given_values(text: str) -> Iterator[Span]:
    """Random values behind a name that says that they are secret."""
    lower = text.lower()
    if len(lower) != len(text):  # one letter becomes two: the capital dotted I
        lower = text.replace("\u0130", "I").lower()
    for name in NAMES:
        for at in places(lower, name) if name in lower else ():
            match = GIVEN.match(text, at + len(name))
            if match and is_secret_value(match["value"]) and not is_harmless(text, at, name):
                start = match.start("value")
                yield start, start + len(without_end_marks(match["value"]))


def is_harmless(text: str, at: int, name: str) -> bool:
    """Whether what stands before the name takes the secrecy away; `:secret:` is a part of an ARN."""
    before = text[max(at - 16, 0) : at]
    return before.endswith(":") or (name == "token" and HARMLESS.search(before) is not None)


def is_secret_value(value: str) -> bool:
    if EXAMPLE.search(value, 0, 128) or value.endswith("...") or UUID.fullmatch(value):
        return False
    value = without_end_marks(value)
    # Names and paths change between letters, digits and cases at word borders only; random text all the time.
    num_changes = len(CHANGE.findall(value))
    return num_changes >= len(value) / 8 and has_digit(value) and entropy_bits(value) >= MIN_VALUE_BITS


def has_digit(value: str) -> bool:
    return any(map(str.isdigit, value))


def without_end_marks(value: str) -> str:
    return value.rstrip(".!*")


def is_key(body: str) -> bool:
    """Whether a key stands between the borders, not dots or words in its place."""
    content = re.sub(r"\\[nrt]|\s", "", body)
    return len(content) >= 64 and not EXAMPLE.search(content[:64]) and entropy_bits(content) >= MIN_KEY_BITS


def is_signed_token(token: str) -> bool:
    """Whether the header names an algorithm, and the content is not an example."""
    header, content = (json_object(part) for part in token.split(".")[:2])
    said = json.dumps(content)
    return "alg" in header and "John Doe" not in said and not EXAMPLE.search(said)


def json_object(part: str) -> dict[str, object]:
    try:
        value = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def entropy_bits(text: str) -> float:
    """Shannon's entropy of the characters, bits a character."""
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)
