"""Minutes of coverage-guided fuzzing of everything that reads strangers' bytes, by atheris.

    python -m tests.fuzz.run                  all targets in turn, ten minutes together
    python -m tests.fuzz.run --seconds 60 json heads

Each target runs in a process of its own, in the environment of ``requirements/fuzz.txt``; a defect ends it, leaves its
input in ``build/fuzz`` and makes the exit status 1. So does an input that takes longer than five seconds or a gigabyte.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = ROOT / "build" / "fuzz"
INPUT_SECONDS = 5
MEMORY_MIB = 1024
MAX_INPUT_BYTES = 8192
NAMES = ("json", "bodies", "tokens", "proofs", "oauth", "issuers", "proxies", "frames", "heads")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="the targets; all, if none is named")
    options = parser.parse_args()
    if options.only:
        _fuzz(options.only, options.seconds)
    names = options.names or NAMES
    FINDINGS.mkdir(parents=True, exist_ok=True)
    failed = [name for name in names if _in_a_process(name, max(1, options.seconds // len(names)))]
    print(f"defects: {', '.join(failed) or 'none'}", flush=True)
    return 1 if failed else 0


def _in_a_process(name: str, seconds: int) -> bool:
    """Whether the target had a defect."""
    from tests.support.environments import python_of

    paths = [str(ROOT), sysconfig.get_path("purelib")]
    command = [str(python_of("fuzz")), "-m", "tests.fuzz.run", "--only", name, "--seconds", str(seconds)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds + 300).returncode != 0


def _fuzz(name: str, seconds: int) -> None:
    """Does not return."""
    import atheris

    with atheris.instrument_imports(include=["appliance"]):
        from tests.fuzz.targets import TARGETS
    from tests.fuzz.corpus import DICTIONARY, SEEDS

    with tempfile.TemporaryDirectory() as directory:
        corpus, words = Path(directory, "corpus"), Path(directory, "words")
        corpus.mkdir()
        for number, seed in enumerate(SEEDS[name]):
            (corpus / str(number)).write_bytes(seed)
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in DICTIONARY))
        arguments = [
            sys.argv[0], str(corpus), f"-dict={words}", f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS}",
            f"-rss_limit_mb={MEMORY_MIB}", f"-max_len={MAX_INPUT_BYTES}", f"-artifact_prefix={FINDINGS}/{name}-",
            "-print_final_stats=1", "-verbosity=0",
        ]  # fmt: skip
        atheris.Setup(arguments, TARGETS[name])
        atheris.Fuzz()


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())


if __name__ == "__main__":
    sys.exit(main())
