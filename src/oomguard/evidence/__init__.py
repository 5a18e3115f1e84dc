"""From what was seen of a failure to a verdict: log text, kernel counters, reports from inside."""
