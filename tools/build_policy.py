"""Compiles policies/*.rego to appliance/data/policy/policy.wasm with OPA. The same sources give the same bytes.

    python tools/build_policy.py            compile and write
    python tools/build_policy.py --check    compile and compare; exit status 1 when the committed module is stale

OPA's version is part of the result, so exactly one is accepted. It is looked for in $PADDOCK_OPA, on PATH and in
~/go/bin; ``go install github.com/open-policy-agent/opa@v<OPA_VERSION>`` puts it there.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

OPA_VERSION = "1.22.2"
ENTRYPOINT = "paddock/decision"
ROOT = Path(__file__).resolve().parent.parent
POLICIES = ROOT / "policies"
MODULE = ROOT / "appliance" / "data" / "policy" / "policy.wasm"
TIME_LIMIT_SECONDS = 120


def find_opa() -> str | None:
    """The opa binary, or None."""
    named = os.environ.get("PADDOCK_OPA")
    if named:
        return named
    return shutil.which("opa") or shutil.which("opa", path=str(Path.home() / "go" / "bin"))


def opa_version(opa: str) -> str:
    """What ``opa version`` calls itself."""
    output = subprocess.run([opa, "version"], capture_output=True, text=True, check=True, timeout=TIME_LIMIT_SECONDS)
    return next(line.removeprefix("Version:").strip() for line in output.stdout.splitlines() if "Version:" in line)


def build(opa: str, sources: Path = POLICIES, entrypoint: str = ENTRYPOINT) -> bytes:
    """Rego sources (tests apart) -> the module's bytes. Raises ``CalledProcessError`` with OPA's words."""
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "bundle.tar.gz"
        # "." and not a path, so that no path of this machine can find its way into the module.
        command = [opa, "build", "--target", "wasm", "--entrypoint", entrypoint, "--ignore", "*_test.rego"]
        subprocess.run(
            [*command, "--output", str(bundle), "."],
            cwd=sources,
            check=True,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_SECONDS,
        )
        with tarfile.open(fileobj=io.BytesIO(bundle.read_bytes())) as files:
            module = files.extractfile("/policy.wasm")
            if module is None:
                raise FileNotFoundError("OPA's bundle has no policy.wasm")
            return module.read()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed module, write nothing")
    options = parser.parse_args()
    opa = find_opa()
    if opa is None:
        print(f"opa is missing; go install github.com/open-policy-agent/opa@v{OPA_VERSION}", file=sys.stderr)
        return 2
    if opa_version(opa) != OPA_VERSION:
        print(f"{opa} is version {opa_version(opa)}; the module is made with {OPA_VERSION}", file=sys.stderr)
        return 2
    try:
        module = build(opa)
    except subprocess.CalledProcessError as problem:
        print(problem.stderr or problem.stdout, file=sys.stderr)
        return 1
    if options.check:
        if MODULE.is_file() and MODULE.read_bytes() == module:
            return 0
        print(
            "appliance/data/policy/policy.wasm is not what policies/ compile to: run tools/build_policy.py",
            file=sys.stderr,
        )
        return 1
    MODULE.parent.mkdir(parents=True, exist_ok=True)
    MODULE.write_bytes(module)
    print(f"{MODULE.relative_to(ROOT)}: {len(module)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
