"""LLM judges: asking them about the evaluated responses, reading their verdicts, and metrics from these."""
