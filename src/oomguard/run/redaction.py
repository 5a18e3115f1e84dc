"""Masks secrets in events, jobs and verdicts before they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from oomguard.configfile.document import Source
from oomguard.evidence.verdict import Finding, Verdict
from oomguard.job.training_job import Job
from oomguard.redact import redact, redact_argv, redact_env
from oomguard.run.events import CutShort, Event, Exited, Finished, Noticed, RunStarted


def mask_event(event: Event) -> Event:
    """Mask what looks like a secret in an event; flag a job whose secrets were masked."""
    match event:
        case RunStarted():
            job = mask_job(event.job)
            return replace(event, job=job, masked=job != event.job)
        case Noticed():
            return replace(event, finding=_mask_finding(event.finding))
        case Exited() | CutShort():
            return replace(event, verdict=mask_verdict(event.verdict))
        case Finished():
            return replace(event, reason=redact(event.reason))
    return event


def mask_job(job: Job) -> Job:
    """Mask what looks like a secret in a job: command, environment, config files."""
    config = job.config and Source(path=job.config.path, text=redact(job.config.text))
    return replace(
        job,
        argv=redact_argv(job.argv),
        env=redact_env(job.env),
        config=config,
        files={path: redact(text) for path, text in job.files.items()},
        output_dir=job.output_dir and redact(job.output_dir),
    )


def mask_verdict(verdict: Verdict) -> Verdict:
    """Mask what looks like a secret in a verdict's root and evidence."""
    evidence = tuple(_mask_finding(found) for found in verdict.evidence)
    return replace(verdict, root=redact(verdict.root) if verdict.root else None, evidence=evidence)


def mask_values(document: Mapping[str, object]) -> dict[str, object]:
    """Mask what looks like a secret in the texts of a flat JSON object."""
    return {name: redact(v) if isinstance(v, str) else v for name, v in document.items()}


def _mask_finding(finding: Finding) -> Finding:
    return replace(finding, text=redact(finding.text))
