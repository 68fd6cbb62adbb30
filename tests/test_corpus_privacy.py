import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nima.corpus.cleaning.personal_data import has_check_digit
from nima.corpus.cleaning.privacy import KINDS, masked, private_flaw
from nima.workspace.params.data import PrivacyParams

# Joined here, so that no scanner takes the tests' own inventions for leaks.
RANDOM = "q7Zt4Kp9Xw2Vn8Lc5Rb3Jf6Hd1Gs0MyTaEuWoCi4Nv8Bx2Qe7Lk5Pz3Rj9Df6Hg1Sw0Yt4Um8"
HEX = "9f3c7a1e5b8d2046c3f7e9a1b5d8024f6c1e3a7b9d5f80242e6c8a0b4d7f9135"
UPPER = "Q7ZT4KP7XW2VN6LC5RB3JF6HD2GS"


def encoded(value: dict) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def signed_token(claims: dict) -> str:
    return f"{encoded({'alg': 'HS256', 'typ': 'JWT'})}.{encoded(claims)}.{RANDOM[:43]}"


def key_block(kind: str, body: str) -> str:
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----"


def only(kind: str, treatment: str = "mask") -> PrivacyParams:
    return PrivacyParams(**{kind: treatment})


def masks(kind: str, text: str) -> str:
    return masked(text, only(kind)).text


# -------------------------------------------------------------------------------------------- secrets

TOKENS = [
    "AKIA" + UPPER[:16],
    "ghp_" + RANDOM[:36],
    "github_pat_" + RANDOM[:60],
    "glpat-" + RANDOM[:20],
    "xoxb-" + "2741839560-2741839561-" + RANDOM[:24],
    "AIza" + RANDOM[:35],
    "GOCSPX-" + RANDOM[:28],
    "sk_live_" + RANDOM[:24],
    "sk-proj-" + RANDOM[:48],
    "sk-ant-api03-" + RANDOM[:64],
    "hf_" + "qZtKpXwVnLcRbJfHdGsMyTaEuWoCiNvBxQ",
    "npm_" + RANDOM[:36],
    "pypi-AgEI" + RANDOM[:60],
    "SG." + RANDOM[:22] + "." + RANDOM[:43],
    "dop_v1_" + HEX,
    "hvs." + RANDOM[:24],
    signed_token({"sub": "8391", "role": "admin", "exp": 1893456000}),
    key_block("RSA ", "MIIEow" + RANDOM + "\n" + RANDOM[::-1]),
    key_block("", "MIIEvQ" + RANDOM + "\\n" + RANDOM[::-1]),
]


@pytest.mark.parametrize("token", TOKENS, ids=lambda token: token[:12])
def test_tokens_and_keys_of_known_forms_are_masked_whole(token: str) -> None:
    assert masks("secrets", f"before {token} after") == "before <secret> after"
    assert masks("secrets", f"```\nexport KEY='{token}'\n```") == "```\nexport KEY='<secret>'\n```"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f'"SecretAccessKey": "{RANDOM[:40]}",', '"SecretAccessKey": "<secret>",'),
        (f"aws_secret_access_key = {RANDOM[:40]}\n", "aws_secret_access_key = <secret>\n"),
        (f'{{\\"apiKey\\": \\"{RANDOM[:32]}\\"}}', '{\\"apiKey\\": \\"<secret>\\"}'),
        (f"mysql --password {RANDOM[:20]} -h db", "mysql --password <secret> -h db"),
        (f"export AUTH_TOKEN={HEX[:40]}", "export AUTH_TOKEN=<secret>"),
        (f"client_secret: '{RANDOM[:24]}'", "client_secret: '<secret>'"),
        (f"The token is {RANDOM[:24]}; token={RANDOM[:24]}.", f"The token is {RANDOM[:24]}; token=<secret>."),
        (
            "postgres://app:tr1ckY-pw@db.prod.acme-corp.io:5432/x",
            "postgres://app:<secret>@db.prod.acme-corp.io:5432/x",
        ),
        ("redis://:h7Gk2m@10.0.0.5:6379", "redis://:<secret>@10.0.0.5:6379"),
        (
            "https://hooks.slack.com/services/T02AB3CD4/B05EF6GH7/" + RANDOM[:24],
            "https://hooks.slack.com/services/<secret>",
        ),
        (f"AccountName=x;AccountKey={RANDOM}{RANDOM[:10]}==;End", "AccountName=x;AccountKey=<secret>;End"),
    ],
)
def test_of_an_assignment_only_the_value_is_masked(text: str, hidden: str) -> None:
    assert masks("secrets", text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE and wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        '"SecretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"',
        "password: changeme-please-1234, api_key=YOUR_API_KEY_GOES_HERE_123",
        "token: ${{ secrets.GITHUB_TOKEN_V2 }} and password=$(cat /run/secrets/db2_password)",
        "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx or ghp_" + "0" * 36,
        "sk_test_" + RANDOM[:24],
        '"NextToken": "' + RANDOM[:40] + '", --client-token ' + RANDOM[:32],
        "secret: 123e4567-e89b-12d3-a456-426614174000",
        "arn:aws:secretsmanager:us-west-2:123456789012:secret:MyTestDb-a1B2c3D4e5",
        "password = get_password(user1, host2), token = self.tokenizer2.encode_batch3",
        "commit 9f3c7a1e5b8d2046c3f7e9a1b5d8024f6c1e3a7b, digest sha256:" + HEX,
        "i-1234567890abcdef0 subnet-0bb1c79de3EXAMPLE vpc-0a1b2c3d4e5f60718 task-definition-family",
        "postgres://user:password@localhost/db and https://user:pass@example.com",
        "mongodb://<user>:<password>@host and ftp://me:${FTP_PASSWORD}@files.acme.io",
        key_block("RSA ", "..."),
        key_block("", "MIIEvQIBADANBgkqh EXAMPLE " + RANDOM),
        "-----BEGIN CERTIFICATE-----\n" + RANDOM * 2 + "\n-----END CERTIFICATE-----",
        signed_token({"sub": "1234567890", "name": "John Doe", "iat": 1516239022}),
        "password: correct-horse-battery-staple-2024, token: cluster-eu2-production-blue",
        "postgres://app:tr1ckY-pw@db.example.com/x and amqp://app:tr1ckY-pw@localhost",
        "the secret of a good password is its length-and-randomness",
        "kubectl create secret generic db-credentials --from-literal=username=devuser",
    ],
)
def test_examples_placeholders_and_identifiers_are_no_secrets(text: str) -> None:
    assert masks("secrets", text) == text


def test_a_capital_that_grows_in_lower_case_moves_no_mask() -> None:
    text = f"\u0130stanbul \u0130 password={RANDOM[:24]} \u0130"
    assert masks("secrets", text) == "\u0130stanbul \u0130 password=<secret> \u0130"


# --------------------------------------------------------------------------------------------- e-mail


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("Write to jane.roe+ops@acme-corp.co.uk.", "Write to <email>."),
        ("tessa@mysql.com, testa@somerset.gov.uk", "<email>, <email>"),
        ("<mailto:jane_roe@gmail.com>, Max <max@muster-firma.de>", "<mailto:<email>>, Max <<email>>"),
        ("Author: Jane Roe (jane@roe.dev): wrote it", "Author: Jane Roe (<email>): wrote it"),
        ('git config user.email "jane@roe.io"', 'git config user.email "<email>"'),
    ],
)
def test_mail_addresses_are_masked(text: str, hidden: str) -> None:
    assert masks("emails", text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "jane@example.com, joe@mail.example.org, a@b.example, you@yourcompany.com, user@domain.com",
        "ssh -i key.pem -p 22 admin@web1.acme-corp.com",
        "scp report.pdf jane@files.acme-corp.com:/srv and rsync -a x jane@files.acme-corp.com:backup",
        "git@github.com:acme/tool.git and ssh://git@gitlab.acme.io/x.git",
        "https://jane:pw@files.acme-corp.com/x",
        "systemctl restart getty@tty1.service wg-quick@wg0.service backup@home.timer",
        "npm i react@18.2.0 lodash@latest, icon@2x.png, image@sha256:abcd.ef, @pytest.mark.slow",
        "aes256-gcm@openssh.com, user@host, root@localhost, jane@node.internal",
    ],
)
def test_logins_examples_and_versions_are_no_mail_addresses(text: str) -> None:
    assert masks("emails", text) == text


# --------------------------------------------------------------------------------------- IP addresses


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("from 52.95.4.28 to 91.198.174.192:443.", "from <ip-address> to <ip-address>:443."),
        ('"PublicIp": "3.230.18.248/32"', '"PublicIp": "<ip-address>/32"'),
        (
            "at 2600:1f13:cfe:3650:a1dc:237c:393a:4ba7, or 2a00:1450:4001::200e.",
            "at <ip-address>, or <ip-address>.",
        ),
        ("[2a00:1450:4001::200e]:443", "[<ip-address>]:443"),
    ],
)
def test_public_addresses_are_masked(text: str, hidden: str) -> None:
    assert masks("ip_addresses", text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "10.1.2.3 172.16.0.9 192.168.1.10 127.0.0.1 169.254.169.254",
        "100.64.0.7 0.0.0.0 255.255.255.255 224.0.0.1",
        "192.0.2.10 198.51.100.7 203.0.113.99 2001:db8::1 ::1 fe80::1 fd00::12 ff02::1",
        "8.8.8.8 1.1.1.1 1.2.3.4 2001:4860:4860::8888",
        "52.94.0.0/16 and 3.5.140.0/22 are networks, 2600:1f14::/35 too",
        "Edge/18.17.76.1, version 5.6.10.2, v10.2.33.4, kernel-4.18.0.305, Build: 17.6.3.9",
        "1.3.6.1.4.1.311, 1.2.3.4.5",
        "999.1.1.1 at 12:34:56, 2023:01:02 10:00, aa:bb:cc:dd:ee:ff, std::vector, 2001::x",
    ],
)
def test_private_example_and_no_addresses_stay(text: str) -> None:
    assert masks("ip_addresses", text) == text


# -------------------------------------------------------------------------------------- phone numbers


@pytest.mark.parametrize(
    "number",
    [
        "+1 206 266 1000",
        "+1.2062661000",
        "+1 (206) 266-1000",
        "+49 30 901820-12",
        "+84 24 3825 2916",
        "+442072195000",
    ],
)
def test_international_phone_numbers_are_masked(number: str) -> None:
    assert masks("phone_numbers", f"call {number}, or: {number}") == "call <phone-number>, or: <phone-number>"


@pytest.mark.parametrize(
    "text",
    [
        "+1 206 555 0100 and +15555551234 and +44 7700 900123",
        "+1234567890 and +49 000 0000000 and +12345678901",
        "206 266 1000, 2062661000",
        "a+12062661000, x ++12062661000, 1+12062661000",
        "+0000, 2021-01-01T00:00:00+01:00, +20231231, +999 123 965 7890, +1 999999",
        "+12062661000123456789",
    ],
)
def test_fictional_and_no_phone_numbers_stay(text: str) -> None:
    assert masks("phone_numbers", text) == text


# -------------------------------------------------------------------------------------- payment cards


def with_check_digit(digits: str) -> str:
    return next(f"{digits}{check}" for check in range(10) if has_check_digit(f"{digits}{check}"))


CARDS = [
    with_check_digit("453201738264951"),
    with_check_digit("531094628173504"),
    with_check_digit("37491826350728"),
]


@pytest.mark.parametrize("number", CARDS)
def test_numbers_with_a_right_check_digit_are_masked(number: str) -> None:
    groups = [number[:4], number[4:8], number[8:12], number[12:]]
    if len(number) == 15:
        groups = [number[:4], number[4:10], number[10:]]
    for separator in ("", " ", "-"):
        assert masks("payment_cards", f"card {separator.join(groups)}.") == "card <payment-card>."
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert masks("payment_cards", f"card {wrong}.") == f"card {wrong}."


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1111, 4242424242424242, 5555-5555-5555-4444, 378282246310005, 6011000990139424",
        f"id-{CARDS[0]} x{CARDS[0]} {CARDS[0]}7 0.{CARDS[0]} /{CARDS[0]}/ {CARDS[0]}ab",
        f"{CARDS[0][:5]} {CARDS[0][5:]}",
        "1612345678901234 123456789012 arn:aws:iam::123456789012:role/x",
        with_check_digit("983201738264951"),
    ],
)
def test_test_cards_and_identifiers_stay(text: str) -> None:
    assert masks("payment_cards", text) == text


def test_the_check_digit_is_luhns() -> None:
    assert has_check_digit("79927398713")
    assert not any(has_check_digit(f"7992739871{digit}") for digit in (0, 1, 2, 4, 5, 6, 7, 8, 9))


# ------------------------------------------------------------------------------------------ all kinds

EVERYTHING = (
    f"Mail jane@roe.io or call +1 206 266 1000.\n\n```\nexport TOKEN={RANDOM[:30]}\n"
    f"curl https://jane:h7Gk2m9@52.95.4.28/ # card {CARDS[0]}, jane@roe.io\n```\n"
)
FOUND = {"secrets": 2, "emails": 2, "payment_cards": 1, "ip_addresses": 1, "phone_numbers": 1}
REASONS = {"secrets": "secret", "emails": "email", "payment_cards": "payment_card"}
REASONS |= {"ip_addresses": "ip_address", "phone_numbers": "phone_number"}
ALL = dict.fromkeys(KINDS, "mask")


def test_every_kind_of_the_params_is_looked_for() -> None:
    assert set(KINDS) == set(PrivacyParams.model_fields)


def test_everything_is_masked_and_counted() -> None:
    result = masked(EVERYTHING, PrivacyParams(**ALL))
    assert result.counts == FOUND
    assert result.text == (
        "Mail <email> or call <phone-number>.\n\n```\nexport TOKEN=<secret>\n"
        "curl https://jane:<secret>@<ip-address>/ # card <payment-card>, <email>\n```\n"
    )
    again = masked(result.text, PrivacyParams(**ALL))
    assert again == (result.text, {})


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_masked_dropped_or_kept_by_itself(kind: str) -> None:
    assert masked(EVERYTHING, only(kind)).counts == {kind: FOUND[kind]}
    assert private_flaw(EVERYTHING, only(kind)) is None
    assert masked(EVERYTHING, only(kind, "drop")) == (EVERYTHING, {})
    flaw = private_flaw(EVERYTHING, only(kind, "drop"))
    assert flaw is not None
    assert flaw.reason == REASONS[kind]
    assert masked(EVERYTHING, PrivacyParams()) == (EVERYTHING, {})


def test_a_flaw_names_the_line_and_not_the_secret() -> None:
    flaw = private_flaw(EVERYTHING, only("secrets", "drop"))
    assert flaw == ("secret", "the first in line 4, privacy.secrets is drop")


def test_overlapping_finds_become_one_mask() -> None:
    token = "ghp_" + RANDOM[:36]
    assert masked(f"TOKEN={token}", only("secrets")) == ("TOKEN=<secret>", {"secrets": 1})
    assert masked(f"https://jane:{token}@github.com", only("secrets")).counts == {"secrets": 1}


def test_a_clean_text_stays_the_same_object() -> None:
    text = "The server at 10.0.0.1 runs. See https://example.com/docs?a=1.\n" * 50
    assert masked(text, PrivacyParams(**ALL)).text is text


PIECES = [
    "@",
    "+1",
    "://",
    ":",
    "jane",
    "roe.io",
    "206266",
    "1000",
    ".",
    "52.9",
    "-",
    " ",
    "\n",
    "password",
    "=",
    "'",
]
PIECES += [
    "token",
    "-----BEGIN PRIVATE KEY-----",
    "eyJ",
    "AKIA",
    "\\",
    '"',
    RANDOM[:20],
    "4532 0173",
    "::",
    "2600:1f13",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text())
def test_masking_twice_finds_nothing_new_that_was_hidden(text: str) -> None:
    result = masked(text, PrivacyParams(**ALL))
    assert (result.text == text) == (result.counts == {})
    drop = PrivacyParams(**dict.fromkeys(KINDS, "drop"))
    assert (private_flaw(text, drop) is None) == (result.counts == {})


HOSTILE = ["a" * 300_000 + "@", "a@" * 100_000, "1." * 150_000, "12:" * 100_000, "+1 " * 100_000]
HOSTILE += ["4 " * 150_000, "token=" * 40_000, "://a:b" * 50_000, "ssh -x " * 30_000 + "a@roe.io"]
HOSTILE += ["-----BEGIN PRIVATE KEY-----" * 10_000, "eyJ" + "a" * 300_000, "eyJaaaaaaaaaaa." * 20_000]
HOSTILE += ["password " * 30_000, "4" * 300_000, "a.a@a." * 50_000]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:8])
def test_hostile_texts_take_no_time(text: str) -> None:
    assert masked(text, PrivacyParams(**ALL)).text
