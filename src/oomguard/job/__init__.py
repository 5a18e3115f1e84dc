"""The job that the user wrote: its plan, command, checkpoints and memory settings."""
