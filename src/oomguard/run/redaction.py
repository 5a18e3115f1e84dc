"""Masks secrets in the events of a run before they are written."""

from __future__ import annotations

from dataclasses import replace

from oomguard.configfile.document import Source
from oomguard.job.training_job import Job
from oomguard.redact import redact_config, redact_document
from oomguard.run.events import Event, RunStarted, event_to_json

#: What a resumed run has to find again as it was: paths, marks and keys.
_KEPT = frozenset(
    {"path", "before", "damaged", "cgroup", "mark", "lessons", "strategies", "folder"}
)


def mask_event(event: Event) -> dict[str, object]:
    """Return an event as JSON, secrets masked; flag a job whose secrets were masked."""
    if isinstance(event, RunStarted):
        job = _mask_files(event.job)
        event = replace(event, job=job, masked=job != event.job)
    plain = event_to_json(event)
    masked = redact_document(plain, keep=_KEPT)
    assert isinstance(masked, dict)  # noqa: S101 # as `plain` is
    if isinstance(event, RunStarted):
        masked["masked"] = event.masked or masked["job"] != plain["job"]
    return masked


def _mask_files(job: Job) -> Job:
    """Mask the secrets in a job's config files, whose structure the other texts do not have."""
    return replace(
        job,
        config=job.config and Source(path=job.config.path, text=redact_config(job.config.text)),
        files={path: redact_config(text) for path, text in job.files.items()},
    )
