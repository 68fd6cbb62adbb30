"""The benchmark for a GPU, at a tiny shape on the CPU: what it writes, and what it needs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from test_varlen import one_by_one

from benchmarks import gpu
from nima.network import varlen
from nima.network.decoder import Decoder

CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--shapes", "tiny", "--compile", "off", "--steps", "2"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_every_model_gets_a_row_with_figures_and_every_check_is_right(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    assert gpu.main([*TINY, "--results", str(results)]) == 0
    text = results.read_text(encoding="utf-8")
    assert "| tiny | Nima, cut by the kernel | no | NotImplementedError: " in text  # which a CPU has not
    for name in ("Nima", "Nima, AdamW", "nanoGPT-shaped", "transformers, Llama", "Nima, cut by a mask"):
        assert re.search(rf"\| tiny \| {name} \| no \| [\d.]+ M \| 4 × 16 \| [\d,]+ \| [\d.]+% \|", text), (
            name
        )
    assert text.count("| right |") == 2 * len(gpu.LIMITS)
    assert "WRONG" not in text
    assert re.search(r"\d{4}-\d\d-\d\d, .*torch \d", text)


def test_a_device_that_computes_something_else_is_called_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Decoder.hidden
    results = tmp_path / "RESULTS.md"
    calls = []

    def hidden(model: Decoder, *arguments: object, **named: object) -> torch.Tensor:
        calls.append(1)  # the first outcome is the CPU's, with four passes; then the device's
        return right(model, *arguments, **named) * (1.0 if len(calls) <= 4 else 1.2)

    monkeypatch.setattr(Decoder, "hidden", hidden)
    monkeypatch.setattr(gpu, "contenders", list)
    assert gpu.main([*TINY, "--results", str(results)]) == 1
    assert "WRONG" in results.read_text(encoding="utf-8")


def test_what_the_kernel_cuts_is_held_against_a_mask_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gpu.outcome(CPU, "fp32", gpu.as_it_is)
    errors = []
    for kernel in (one_by_one, uncut):
        monkeypatch.setattr(varlen, "kernel", lambda kernel=kernel: kernel)
        found = gpu.outcome(CPU, "bf16", gpu.with_segments)
        keys = [key for key in expected if key.startswith("gradient")]
        errors.append(gpu.error_of(found, expected, keys, "bf16"))
    assert errors[0] < gpu.LIMITS["gradient"]["bf16"] < errors[1]


def uncut(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **named: Any) -> torch.Tensor:
    row = gpu.CHECKED.block_tokens
    borders = torch.arange(0, len(q) + 1, row, dtype=torch.int32)
    return one_by_one(q, k, v, borders, borders, row, row, **named)


def test_the_rows_whose_attention_is_cut_have_documents_of_the_mean_length() -> None:
    numbers = gpu.documents_of(64, 1024)
    count = int((numbers[:, 1:] != numbers[:, :-1]).sum())
    assert 64 * 1024 / count == pytest.approx(gpu.DOCUMENT_TOKENS, rel=0.2)


def test_a_contender_that_fails_leaves_its_reason_and_the_others_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(shape: object) -> Decoder:
        raise ValueError("no such kernel\nand more")

    known = gpu.contenders()
    monkeypatch.setattr(
        gpu, "contenders", lambda: [gpu.replace(known[0], name="broken", build=broken), known[2]]
    )
    monkeypatch.setattr(gpu, "checks", lambda *_, **__: [])
    results = tmp_path / "RESULTS.md"
    gpu.main([*TINY, "--results", str(results)])
    text = results.read_text(encoding="utf-8")
    assert "| tiny | broken | no | ValueError: no such kernel |" in text
    assert "| tiny | nanoGPT-shaped | no | 0.0 M |" in text


def test_what_does_not_fit_is_tried_with_half_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def timed(contender: gpu.Contender, figure: gpu.Figure, rows: int, *_: object) -> gpu.Figure:
        tried.append(rows)
        if rows > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return gpu.replace(figure, rows=rows)

    monkeypatch.setattr(gpu, "timed", timed)
    ours = gpu.contenders()[0]
    found = gpu.measure(ours, "tiny", torch.device("cpu"), compiled=False, steps=1, peak=1.0)
    assert (found.rows, tried) == (1, [4, 2, 1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would be measured")
def test_without_a_gpu_the_table_says_not_measured_and_keeps_figures(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\nOthers.\n", encoding="utf-8")
    assert gpu.main(["--results", str(results)]) == 0
    text = results.read_text(encoding="utf-8")
    assert "Others." in text
    assert "not measured" in text
    gpu.write_section(results, "| figures |")
    gpu.main(["--results", str(results)])
    assert "| figures |" in results.read_text(encoding="utf-8")
    assert "not measured" not in results.read_text(encoding="utf-8")


def test_the_script_needs_only_torch_and_numpy_until_transformers_takes_its_turn() -> None:
    code = (
        "import sys, runpy; sys.argv = ['gpu.py', '--help']\n"
        "try: runpy.run_path('benchmarks/gpu.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "ours = {'pydantic', 'psutil', 'dvclive', 'pyarrow', 'safetensors', 'tokenizers', 'rich',"
        " 'ruamel', 'transformers', 'matplotlib'}\n"
        "sys.exit(', '.join(ours & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
