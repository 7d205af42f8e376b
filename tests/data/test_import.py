import subprocess
import sys

HEAVY = "torch numpy PIL pyarrow datasets transformers foolbox actkit.store"


def test_import_loads_no_other_library_and_texts_need_none() -> None:
    code = (
        "import sys, actkit.data as data\n"
        "data.text(num_samples=2), data.ioi(3), data.capitals(), data.sentiment(), data.refusal()\n"
        "data.load(['a'])\n"
        f"raise SystemExit(' '.join(m for m in {HEAVY!r}.split() if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "\n")  # SystemExit('') prints an empty line
