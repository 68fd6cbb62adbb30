"""E-mail addresses, IP addresses, phone numbers and payment cards in text.

In doubt nothing is found: a document that loses its examples is worth less. So what documentation shows
stays (example.com, 192.0.2.1, +1 206 555 0100, test cards), and so do logins such as `ssh user@host` and
`git@github.com:name`, which are no mailboxes.
"""

import ipaddress
import re
from collections.abc import Iterator

Span = tuple[int, int]
"""[start, end) in a text, in characters."""

# ---------------------------------------------------------------------------------------------- e-mail

MAX_LOCAL_CHARS = 64
LOCAL_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*$")
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
DOMAIN = re.compile(rf"(?:{LABEL}\.){{1,8}}(?P<top>[A-Za-z]{{2,24}})(?![A-Za-z0-9-]|\.[A-Za-z0-9])")
# Endings of files and units that look like countries' domains.
NO_COUNTRY = "js|ts|go|hs|cs|vb|kt|db|gz|bz|xz|rb|el|ex|hh"
GENERIC = "com|org|net|edu|gov|mil|int|info|biz|name|pro|mobi|coop|aero|museum|jobs|travel|asia|cat|xyz"
GENERIC += "|online|site|store|shop|tech|dev|app|cloud|email|agency|company|systems|solutions|academy|blog"
GENERIC += "|news|club|world|life|live|group|team|network|digital|media|studio|design|consulting|services"
GENERIC += "|software|technology|energy|health|bank|finance|legal|law|global|international|foundation"
GENERIC += "|university|education|school|training|support|center|capital|partners|ventures"
TOP_DOMAIN = re.compile(rf"(?!(?:{NO_COUNTRY})$)(?:[a-z]{{2}}|{GENERIC})", re.IGNORECASE)
EXAMPLE_DOMAIN = re.compile(
    r"(?:.*\.)?(?:example|test|invalid|localhost|local|internal|lan|home|corp)"
    r"|(?:.*\.)?example[a-z-]*\.[a-z.]+"
    r"|(?:.*\.)?(?:your|my|some|any)-?(?:domain|company|corp|org|organization|site|app|mail|email|server|host)"
    r"\.[a-z.]+"
    r"|(?:.*\.)?(?:domain|company|email|mail|foo|bar|acme|contoso|fabrikam)\.(?:com|org|net)"
    r"|(?:openssh|libssh)\.(?:com|org)"  # names of algorithms
)
EXAMPLE_LOCAL = re.compile(
    r"(?:example|your|dummy|fake).*|test\d*|test[._-].*|user(?:name)?\d*|name|first\.?last|someone|somebody|nobody"
    r"|me|you|foo|bar"
)
LOGIN_COMMAND = re.compile(
    r"\b(?:ssh|scp|sftp|rsync|mosh|ssh-copy-id)(?:[ \t]+[^\s.;!?][^\s;!?]*){0,8}[ \t]+$"
)


def emails_in(text: str) -> Iterator[Span]:
    for at in places(text, "@"):
        local = LOCAL_PART.search(text, max(at - MAX_LOCAL_CHARS, 0), at)
        domain = DOMAIN.match(text, at + 1) if local else None
        if local and domain and is_mailbox(text, local, domain):
            yield local.start(), domain.end()


def is_mailbox(text: str, local: re.Match[str], domain: re.Match[str]) -> bool:
    if not TOP_DOMAIN.fullmatch(domain["top"]) or EXAMPLE_DOMAIN.fullmatch(domain[0].lower()):
        return False
    return not EXAMPLE_LOCAL.fullmatch(local[0].lower()) and not is_login(text, local.start(), domain.end())


def is_login(text: str, start: int, end: int) -> bool:
    """Whether `user@host` at this place is part of a URL, of `host:path`, or of a command such as ssh."""
    before = text[max(text.rfind("\n", 0, start) + 1, start - 200) : start]
    if "://" in before.rpartition(" ")[2] or before.endswith(("/", "@")):
        return True
    is_path = text.startswith(":", end) and not text[end + 1 : end + 2].isspace() and end + 1 < len(text)
    return is_path or LOGIN_COMMAND.search(before) is not None


# --------------------------------------------------------------------------------------- IP addresses

# From the first dot or colon on, because a search for one character is fast.
AFTER_FIRST_OCTET = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d{1,3}", re.ASCII)
FIRST_OCTET = re.compile(r"(?<![\w.-])\d{1,3}$", re.ASCII)
AFTER_FIRST_GROUP = re.compile(r":(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}")
FIRST_GROUP = re.compile(r"(?<![\w:.-])[23][0-9A-Fa-f]{3}$", re.ASCII)
VERSION = re.compile(r"(?:version|release|build|engine)\w*[\"'`\\\s:=]*$|[a-z]/$", re.IGNORECASE)
CONTINUES = re.compile(r"[\w-]|[.:]\w")
NETWORK = re.compile(r"/(?!32\b|128\b)\d")
# Public name servers, and what everybody writes for just any address.
WELL_KNOWN = re.compile(
    r"1\.1\.1\.1|1\.0\.0\.1|8\.8\.8\.8|8\.8\.4\.4|9\.9\.9\.9|149\.112\.112\.112|208\.67\.22[02]\.22[02]"
    r"|2001:4860:4860::88(?:88|44)|2606:4700:4700::1[01]{3}"
    r"|1\.2\.3\.4|4\.3\.2\.1|2\.3\.4\.5|5\.6\.7\.8|(\d)\.\1\.\1\.\1|11\.22\.33\.44|12\.34\.56\.78"
)


def ip_addresses_in(text: str) -> Iterator[Span]:
    """Public addresses of single machines; no networks (`/24`), no version numbers."""
    for first_part, rest in ((FIRST_OCTET, AFTER_FIRST_OCTET), (FIRST_GROUP, AFTER_FIRST_GROUP)):
        for match in rest.finditer(text):
            first = first_part.search(text, max(match.start() - 4, 0), match.start())
            if first and is_public(first[0] + match[0]) and is_address(text, first.start(), match.end()):
                yield first.start(), match.end()


def is_address(text: str, start: int, end: int) -> bool:
    """Whether what stands around the numbers leaves them an address; a port may follow."""
    if CONTINUES.match(text, end) and not (text[end] == ":" and text[end + 1].isdigit()):
        return False
    return not NETWORK.match(text, end) and not VERSION.search(text[max(start - 24, 0) : start])


def is_public(address: str) -> bool:
    """Whether it is one machine's on the internet: no private, local, reserved, example or known one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not parsed.is_global or parsed.is_multicast or address.endswith(".0"):
        return False
    return WELL_KNOWN.fullmatch(address.lower()) is None


# -------------------------------------------------------------------------------------- phone numbers

PHONE = re.compile(r"\+(?:\([1-9]\d{0,2}\)|[1-9])(?:[ .\u00a0-]?\(?\d\)?){7,14}(?![\w(])", re.ASCII)
MIN_PHONE_DIGITS, MAX_PHONE_DIGITS = 10, 15
# Country codes of ITU-T E.164.
COUNTRY = r"1|7|2(?:0|7|1[1-368]|[2346]\d|5[0-8]|9[01789])|3(?:[0123469]|5\d|7\d|8[0-35-79])"
COUNTRY += r"|4(?:[013-9]|2[013])|5(?:[1-8]|0\d|9\d)|6(?:[0-6]|7[02-9]|8[0-35-9]|9[0-2])"
COUNTRY += r"|8(?:[1246]|5[02356]|8[06])|9(?:[0-58]|6[0-8]|7[0-7]|9[2-68])"
COUNTRY_CODE = re.compile(COUNTRY)
NORTH_AMERICAN = re.compile(r"1[2-9]\d\d[2-9]\d{6}")
# Numbers that nobody has: 555 in North America, Ofcom's ranges for drama, rows of one digit, 1234567.
FICTIONAL = re.compile(
    r"1(?:555|\d{3}555)\d+|44(?:7700900|2079460|1632960|1[1-6]1[0-9]960)\d+|\d*(?:(\d)\1{5}|1234567|7654321)\d*"
)


def phone_numbers_in(text: str) -> Iterator[Span]:
    """Numbers in international form, with a plus sign."""
    for at in places(text, "+"):
        match = PHONE.match(text, at)
        if match and is_phone("".join(filter(str.isdigit, match[0]))) and not follows_word(text, at):
            yield match.span()


def is_phone(digits: str) -> bool:
    if not MIN_PHONE_DIGITS <= len(digits) <= MAX_PHONE_DIGITS or not COUNTRY_CODE.match(digits):
        return False
    if digits.startswith("1") and not NORTH_AMERICAN.fullmatch(digits):
        return False
    return FICTIONAL.fullmatch(digits) is None


def follows_word(text: str, at: int) -> bool:
    before = text[max(at - 1, 0) : at]
    return before.isalnum() or before in ("_", "+", ")", "]")


# -------------------------------------------------------------------------------------- payment cards

CARD = re.compile(r"\d\d{3}(?:([ -]?)\d{4}\1\d{4}\1\d{2,7}|([ -])\d{6}\2\d{4,5})(?!\d)", re.ASCII)
ISSUER = re.compile(
    r"4\d{15}(?:\d{3})?|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
MIN_CARD_DIGITS = 5
"""Different digits in a real number; the numbers for tests have fewer, but for those below."""
TEST_CARDS = re.compile(
    r"37(?:82822463100|14496353984|87344936710)\d\d|60110009901394\d\d|30569309025904|38520000023237"
    r"|3566002020360505|2223003122003222|4532015112830366|4539578763621486|5425233430109903|36227206271667"
)


def payment_cards_in(text: str) -> Iterator[Span]:
    """Numbers of the known issuers with a right check digit."""
    for match in CARD.finditer(text):
        digits = match[0].replace(" ", "").replace("-", "")
        if is_card(digits) and not is_part_of_more(text, *match.span()):
            yield match.span()


def is_card(digits: str) -> bool:
    if not ISSUER.fullmatch(digits) or len(set(digits)) < MIN_CARD_DIGITS or TEST_CARDS.fullmatch(digits):
        return False
    return has_check_digit(digits)


def has_check_digit(digits: str) -> bool:
    """Luhn's test (ISO/IEC 7812-1, annex B)."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def is_part_of_more(text: str, start: int, end: int) -> bool:
    """Whether letters or signs tie a number to its neighbours: an identifier, a decimal, a path."""
    before, after = text[max(start - 1, 0) : start], text[end : end + 2]
    return bool(re.search(r"[\w.:/+=-]", before) or re.match(r"[\w/+=-]|\.\w", after))


def places(text: str, sign: str) -> Iterator[int]:
    """Where `sign` stands in `text`, ascending."""
    at = text.find(sign)
    while at >= 0:
        yield at
        at = text.find(sign, at + 1)
