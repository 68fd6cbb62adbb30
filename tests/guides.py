"""The guides in docs/, followed as a reader would: the commands of their console blocks, their Python."""

import re
from collections.abc import Mapping

from conftest import ROOT, Project


def blocks(guide: str, language: str) -> list[str]:
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return found


def with_names(text: str, names: Mapping[str, str]) -> str:
    """The example's addresses and names, replaced by those of a test."""
    for name, real in names.items():
        text = text.replace(name, real)
    return text


def follow(project: Project, block: str, names: Mapping[str, str]) -> str:
    """Give each command of a console block. Returns all that they print."""
    lines = with_names(block, names).splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    assert commands, block
    return "".join(project.run("bash", "-c", command).stdout for command in commands)
