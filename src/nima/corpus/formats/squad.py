"""Articles of SQuAD (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250) as questions with answers."""

from collections.abc import Iterator
from typing import Any


def questions_of(value: Any) -> Iterator[dict[str, Any]] | None:
    """The questions on an article, each below its paragraph; None if `value` is no article."""
    if not isinstance(value, dict) or not is_list_of_objects(value.get("paragraphs")):
        return None
    if not all(is_list_of_objects(paragraph.get("qas")) for paragraph in value["paragraphs"]):
        return None
    return (
        {
            "question": joined(paragraph.get("context"), asked.get("question")),
            "answer": first_answer(asked.get("answers")),
            "id": asked.get("id"),
        }
        for paragraph in value["paragraphs"]
        for asked in paragraph["qas"]
    )


def is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def joined(context: Any, question: Any) -> Any:
    both = isinstance(context, str) and isinstance(question, str)
    return f"{context}\n\n{question}" if both else question


def first_answer(answers: Any) -> Any:
    """None where the paragraph does not answer the question."""
    if not is_list_of_objects(answers) or not answers:
        return answers or None
    return answers[0].get("text")
