"""Train only the rows of new tokens, not the whole embedding and output head."""

from oomguard.strategy import (
    NEW_RECIPE,
    TRAINING,
    EmbeddingRows,
    Job,
    Kind,
    Plan,
    Remedy,
    Strategy,
    replace,
)


def change(job: Job, plan: Plan) -> Plan | str:
    """Leave the old rows as they are (PEFT's trainable_token_indices)."""
    if plan.embedding_rows is EmbeddingRows.NEW:
        return "only the new rows are trained already"
    if plan.embedding_rows is None or not job.trained_embeddings:
        return "neither embedding nor output head is trained in full beside an adapter"
    return replace(plan, embedding_rows=EmbeddingRows.NEW)


def tell(job: Job, _before: Plan, _after: Plan) -> str:
    """Return what was trained in full."""
    return f"{' and '.join(job.trained_embeddings)} were trained in full"


STRATEGY = Strategy(
    summary="train only the rows of new tokens in the embedding and the output head",
    fidelity=NEW_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="neither embedding nor output head is trained in full beside an adapter",
    tell=tell,
)
