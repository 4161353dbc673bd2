"""Guarantee 14: what the completion scripts complete, in the shells that are here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from command import environ, run

ASK = """
source {script}
COMP_WORDS=(pgnotifier {words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$(complete -p pgnotifier | sed 's/.*-F \\([^ ]*\\) .*/\\1/') pgnotifier
echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("li", {"listen"}),
        ("d", {"doctor", "demo"}),
        ("listen --js", {"--json"}),
        ("trigger --ch", {"--channel"}),
        ("completion z", {"zsh"}),
    ],
)
def test_bash(words: str, completed: set[str], tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash
    code, out, err = run("completion", "bash")
    assert (code, err) == (0, "")
    script = tmp_path / "script"
    script.write_text(out)
    done = subprocess.run(
        [bash, "--norc", "-c", ASK.format(script=script, words=words)],
        capture_output=True,
        text=True,
        timeout=20,
        env=environ(),
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == completed


def test_zsh() -> None:
    code, out, err = run("completion", "zsh")
    assert (code, err) == (0, "")
    assert out.startswith("#compdef pgnotifier\n")
    for word in ("listen", "notify", "trigger", "doctor", "demo", "completion", "--json", "--channel"):
        assert word in out
    if zsh := shutil.which("zsh"):
        done = subprocess.run([zsh, "-n"], input=out, capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stderr) == (0, "")
