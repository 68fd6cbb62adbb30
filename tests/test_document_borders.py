"""From documents to logits: what a model sees of a document when attention is cut at its borders."""

import numpy as np
import pytest
import torch
from tiny_documents import ListedDocuments
from tiny_models import tiny_model

from nima.batches import Batch, Batching, training_batches
from nima.network.decoder import autocast

END, ROW = 1, 16
SIZES = [9, 5, 14, 2, 7, 11, 4, 40, 3, 6]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def documents(changed: int | None = None) -> ListedDocuments:
    """Random documents that end with end-of-text; the text of one may be another of equal length."""
    draw = np.random.default_rng(4)
    contents = [[*draw.integers(2, 40, size - 1).tolist(), END] for size in SIZES]
    if changed is not None:
        contents[changed] = [2 + (token + 3) % 38 for token in contents[changed][:-1]] + [END]
    return ListedDocuments(contents)


def batch_of(tokens: ListedDocuments, batching: Batching, step: int) -> Batch:
    return training_batches(
        tokens,
        np.arange(len(SIZES)),
        seed=2,
        batching=batching,
        mixture={},
        block_tokens=ROW,
        batch_tokens=3 * ROW,
        end_of_text=END,
    ).batch(step)


@torch.no_grad()
def logits(batch: Batch, precision: str, mask: bool) -> torch.Tensor:
    model, documents = tiny_model(), torch.from_numpy(batch.documents)
    with autocast(torch.device("cpu"), precision):
        return model.head(model.hidden(torch.from_numpy(batch.ids), documents_BT=documents if mask else None))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batching", ["blocks", "packed"])
def test_a_changed_document_changes_no_prediction_of_another(batching: Batching, precision: str) -> None:
    reached = {True: 0, False: 0}
    for step in range(4):
        plain = batch_of(documents(), batching, step)
        for changed in range(len(SIZES)):
            other = batch_of(documents(changed), batching, step)
            own = plain.targets != other.targets
            assert np.array_equal(plain.documents, other.documents)
            # Every slot of a document that changed, its end included.
            touched = np.array(
                [np.isin(row, row[cells]) for row, cells in zip(plain.documents, own, strict=True)]
            )
            for mask in reached:
                same = logits(plain, precision, mask) == logits(other, precision, mask)
                reached[mask] += int((~same.all(dim=-1).numpy() & ~touched).sum())
    assert reached[True] == 0
    assert reached[False] > 0


@pytest.mark.parametrize("batching", ["blocks", "packed"])
def test_a_document_that_is_whole_in_a_row_is_predicted_as_in_generation(batching: Batching) -> None:
    """Its logits are those of a text that begins with end-of-text, as prompts do, wherever it stands."""
    found = set()
    model, contents = tiny_model(), [tuple(content) for content in documents().contents]
    for step in range(12):
        batch = batch_of(documents(), batching, step)
        together = logits(batch, "fp32", mask=True)
        for row in range(len(batch.ids)):
            for place in set(batch.documents[row].tolist()):
                slots = batch.documents[row] == place
                if (text := tuple(batch.targets[row][slots].tolist())) in contents:
                    found.add(text)
                    alone = model(torch.tensor([[END, *text[:-1]]]))[0]
                    torch.testing.assert_close(together[row][slots], alone, rtol=1e-3, atol=1e-3)
    assert len(found) >= 8
