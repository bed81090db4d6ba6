"""Does training work on this machine's GPU, and how fast? `python -m tools.gpu_check --out report.json`."""
