"""What a process does to its own memory."""

from __future__ import annotations

import json
import subprocess
import sys

MEMORY = """
import json, re, resource, sys
import torch
from torchrec_xd.distributed.memory import keep_freed_memory

def flags(address):
    for area in re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read()):
        start, end = (int(edge, 16) for edge in area.split(" ", 1)[0].split("-"))
        if start <= address < end:
            return area.rsplit("VmFlags:", 1)[1].split()

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()
    keep_freed_memory()  # a process may train more than once
resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tensor = torch.ones(16 << 20)
where = flags(tensor.data_ptr() + (8 << 20))
del tensor
faults(32)  # until what is freed lies together and holds a tensor and its alignment
print(json.dumps({"huge": "hg" in where, "faults": faults(4), "resident": resident}))
"""


def test_memory_is_kept_in_huge_pages_and_costs_nothing_until_it_is_used():
    def found(how):
        done = subprocess.run([sys.executable, "-c", MEMORY, how], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    kept, free = found("kept"), found("left alone")
    assert kept["huge"]
    assert not free["huge"]
    assert kept["faults"] < 32 < free["faults"]  # 64 MiB are 16,384 pages of 4 KiB, or 32 huge ones
    assert kept["resident"] < free["resident"] + 20_000  # KiB
