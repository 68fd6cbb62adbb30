import pytest

from nima.corpus.quality.languages import MIN_LETTERS, foreign_language
from nima.workspace.errors import UserError
from nima.workspace.params.data import LanguageParams

ENGLISH = [
    "Please read the manual before you use the device.",
    "I don't know what to do with this server here any more.",
    "The server runs normally and there are no errors in its log.",
    "Restart the pods in the namespace and wait until they are ready.",
]
VIETNAMESE = [
    "Hãy đọc kỹ hướng dẫn sử dụng trước khi dùng thiết bị này.",
    "Tôi không biết phải làm gì với cái máy chủ này nữa, bạn ạ.",
    "Để triển khai ứng dụng lên Kubernetes, trước tiên bạn cần tạo một Deployment.",
    "Cấu hình nginx nằm trong tệp /etc/nginx/nginx.conf và có thể được thay đổi.",
]
OTHERS = {
    "de": "Bitte lesen Sie die Anleitung, bevor Sie das Gerät zum ersten Mal benutzen.",
    "fr": "Veuillez lire attentivement le manuel avant d'utiliser cet appareil chez vous.",
    "es": "Por favor, lea el manual con atención antes de usar el dispositivo en su casa.",
    "ru": "Пожалуйста, внимательно прочитайте руководство перед использованием устройства.",
    "ja": "このデバイスを使用する前に、必ずマニュアルをお読みください。そのあとで電源を入れてください。",
    "zh": "请在使用本设备之前仔细阅读说明书。如果您有任何疑问,请联系我们的客服人员,我们将尽快给您答复,谢谢。",
}


def verdict(text: str, *keep: str, min_confidence: float = 0.5) -> str | None:
    return foreign_language(text, LanguageParams(keep=list(keep), min_confidence=min_confidence))


@pytest.mark.parametrize(("code", "texts"), [("en", ENGLISH), ("vi", VIETNAMESE)])
def test_short_english_and_vietnamese_texts_are_recognised(code: str, texts: list[str]) -> None:
    for text in texts:
        assert verdict(text, code) is None
        assert verdict(text, "de") is not None


@pytest.mark.parametrize("code", OTHERS)
def test_other_languages_are_told_apart(code: str) -> None:
    assert verdict(OTHERS[code], code) is None
    found = verdict(OTHERS[code], "en", "vi")
    assert found is not None
    assert found.startswith(f"{code} (")
    assert found.endswith("), keep is en, vi")


def test_several_languages_can_be_kept_together() -> None:
    mixed = f"{ENGLISH[1]} {OTHERS['de']}"
    assert verdict(mixed, "de", min_confidence=0.9) == "de (0.54), min_confidence is 0.9"
    assert verdict(mixed, "en", "de", min_confidence=0.9) is None


def test_few_letters_get_no_verdict() -> None:
    german = OTHERS["de"].replace(" ", "")[:MIN_LETTERS].replace(",", "x")
    spaced = " ".join(german[at : at + 8] for at in range(0, MIN_LETTERS, 8))
    assert verdict(spaced, "vi") is not None
    assert verdict(spaced[:-1], "vi") is None
    assert verdict("1234 / 5678 " * 50, "vi") is None
    assert verdict("", "vi") is None


def test_commands_and_identifiers_are_no_language() -> None:
    technical = "``describe-db-parameter-groups`` --query 'Groups[0].Name' arn:aws:rds:eu-west-1 /etc/hosts "
    assert verdict(technical * 20, "vi") is None
    assert verdict(f"{technical * 3} {ENGLISH[0]} {technical * 3}", "en") is None


def test_a_long_text_is_sampled_at_its_beginning_middle_and_end() -> None:
    german, english = f"{OTHERS['de']} " * 60, f"{ENGLISH[3]} " * 60
    assert verdict(german + english + english, "en") is None
    found = verdict(english[:300] + german * 3 + english[:300], "en", min_confidence=0.99)
    assert found is not None


def test_a_confidence_below_the_limit_is_a_flaw() -> None:
    text = "To deploy with Terraform, write a plan and apply it to the account."
    assert verdict(text, "en", min_confidence=0.9) is None
    assert verdict(text, "en", min_confidence=1.0) == "en (0.98), min_confidence is 1"


def test_verdicts_repeat_themselves() -> None:
    assert len({verdict(OTHERS["fr"], "en") for _ in range(5)}) == 1


def test_an_unknown_language_is_named_with_those_that_are_known() -> None:
    with pytest.raises(UserError, match=r"prepare\.quality\.language\.keep: 'qq' .*, en, .*, vi, "):
        verdict("text", "en", "qq")
