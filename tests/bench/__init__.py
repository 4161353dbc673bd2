"""Speed (guarantee 15): `python -m tests.bench` from the repository root; docs/performance.md says the rest."""
