"""``paddock audit verify``: the auditor's command, offline, on a copy of the log or on the log itself.

Trusts: the verifier key, best from another source than the log's own host.
Promises: exit status 0 intact, 1 broken, 2 rolled back or forked against a checkpoint that the auditor holds, 3 key
    unknown.
Not here: the checks (``audit.fsck``).
"""

import json
from pathlib import Path

import msgspec

from appliance.audit.fsck import LogReport, verify_log
from appliance.core.refusals import Fault


def verify(directory: Path, *, vkey: str | None, checkpoint: Path | None, as_json: bool) -> int:
    """Prints the report and returns the exit status."""
    if not directory.is_dir():
        raise Fault(f"there is no log at {directory}")
    if vkey is not None and Path(vkey).is_file():
        vkey = Path(vkey).read_text(encoding="utf-8").strip()
    held = checkpoint.read_bytes() if checkpoint else None
    report = verify_log(directory, vkey, held_checkpoint=held)
    if as_json:
        print(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        _print(report)
    return report.exit_code


def _print(report: LogReport) -> None:
    print(f"{report.verdict}: {report.size} records in the checkpoint, {report.unsigned_tail} after it")
    print(f"key: {report.key}")
    for event, count in sorted(report.events.items()):
        print(f"  {count:8} {event}")
    for label, remarks in (("PROBLEM", report.problems), ("finding", report.findings)):
        for remark in remarks:
            where = "" if remark.seq is None else f" at {remark.seq}"
            print(f"{label}{where}: {remark.what}")
    for request_id in report.open_requests:
        print(f"open: {request_id}")
