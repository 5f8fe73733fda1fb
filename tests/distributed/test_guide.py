"""The script of the guide to long texts, on two processes by `torchrun`; `test_handbook.py` runs it on one."""

import os
import subprocess
import sys
from pathlib import Path

import pages
from safetensors import safe_open

GUIDE = Path(__file__).parents[2] / "docs" / "distributed.md"


def test_the_script_prints_the_same_on_two_processes(tmp_path):
    script = next(example for example in pages.examples(GUIDE) if "init_process_group" in example.code)
    (tmp_path / "long_context.py").write_text(script.code, "utf-8")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "long_context.py",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert pages.alike(script.prints, done.stdout), done.stdout
    report = done.stdout[: done.stdout.index("step 1")]
    assert report.startswith("context parallel over 2 ranks")
    assert f"```text\n{report}```" in GUIDE.read_text("utf-8")
    with safe_open(tmp_path / "long-context.safetensors", "pt") as saved:
        assert len(list(saved.keys())) > 10
