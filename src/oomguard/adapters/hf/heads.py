"""What is computed from a model whose head is for labels, or that has none, instead of words.

Source: transformers 5.6.0, modeling_layers.py (GenericForSequenceClassification); ms-swift 4.6.0,
model/register.py (get_model), model/patcher.py, template/base.py (_embedding_data_collator,
_reranker_data_collator).
"""

from __future__ import annotations

from dataclasses import replace

from oomguard.adapters import fields
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import Head, MemorySettings, Objective
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled

LABELS = fields.number("num_labels", 2)

CLASSIFICATION = Objective(
    method=TrainingMethod.CLASSIFICATION,
    head=Head.SCORE,
    labels=LABELS.default,
    traced="transformers_losses:classification",
)
#: A text and one to compare it with; each further one is a row as well.
EMBEDDING = Objective(
    method=TrainingMethod.EMBEDDING,
    rows=2,
    head=Head.NONE,
    traced="transformers_losses:embedding",
)
#: A query with a document that answers it and one that does not, scored by a label.
RERANKER = replace(CLASSIFICATION, rows=2, labels=1)
#: Scored by two words of the vocabulary, on the hidden states of the last tokens.
GENERATIVE_RERANKER = replace(EMBEDDING, method=TrainingMethod.CLASSIFICATION)


def classifier(found: MemorySettings, settings: Settings) -> MemorySettings:
    """Return memory settings with a classifier's head, of as many labels as the settings say."""
    return replace(found, objective=replace(CLASSIFICATION, labels=LABELS.of(settings)))


def more_rows(key: str, settings: Settings) -> Unmodelled:
    """Return that a sample has as many rows as its data holds texts to compare it with."""
    return Unmodelled(
        key=key,
        effect="a sample is counted as two rows; each further text to compare with is one more",
        direction=Direction.MORE,
        line=settings.origin(key).line,
    )
