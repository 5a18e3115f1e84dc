"""What would settle a verdict that the evidence leaves open: a command to run, or a log to read."""

from __future__ import annotations

from oomguard.evidence.judge import BARE_KILL
from oomguard.evidence.signatures import BY_ID, Reading
from oomguard.evidence.verdict import Cause, Confidence, Kind, Verdict

_WHO_KILLED = (
    "dmesg -T | grep -iE 'killed process|oom-kill'  (on the node; under Slurm: sacct -j JOB"
    " --format=JobID,State,ExitCode,MaxRSS; in Kubernetes: kubectl describe pod POD)"
)
_WHICH_RANK = (
    "oomguard explain LOGS/  (a folder with the log of each rank; torchrun writes one with"
    " --log-dir LOGS --redirects 3)"
)
_WHOLE_OUTPUT = "PYTHONFAULTHANDLER=1 COMMAND 2>&1 | tee log.txt, then oomguard explain log.txt"
_MASKED = "CUDA_LAUNCH_BLOCKING=1 COMMAND, with nvidia-smi --loop=1 beside it for the free memory"

#: What answers a cause, whatever the job.
BY_CAUSE = {
    Cause.FRAGMENTATION: "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment",
    Cause.OTHER_PROCESS: "nvidia-smi, and end the process that holds the memory",
}


def what_settles(verdict: Verdict) -> str | None:
    """Return the command that would gather the missing evidence; None where enough is known."""
    readings = {BY_ID[f.signature].reading for f in verdict.evidence if f.signature in BY_ID}
    if verdict.kind is Kind.UNKNOWN:
        if verdict.root == BARE_KILL or Reading.KILLED in readings:
            return _WHO_KILLED
        return _WHICH_RANK if Reading.WRAPPER in readings else _WHOLE_OUTPUT
    if verdict.confidence is not Confidence.LOW:
        return None
    if verdict.kind is Kind.HOST_OOM:
        return _WHO_KILLED
    return _MASKED if Reading.MASKED in readings else None
