"""What the scripts that try out large sizes share."""

import sys
from pathlib import Path


def require(condition, text):
    if not condition:
        sys.exit(f"FAILED: {text}")


def peak_bytes(pid):
    """The most memory that a process has held so far; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
