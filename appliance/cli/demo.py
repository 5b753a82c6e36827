"""``paddock demo``: the whole chain on the built-in model, each outcome beside what was expected, nothing left behind.

Everything is real: a fresh state directory with its own keys, the processes that ``paddock serve`` starts, requests
over HTTP.

Trusts: this installation.
Promises: exit status 0 only if every outcome was the expected one; no process and no file remains.
Not here: the outcomes themselves (``demo_steps``), how they are shown (``demo_report``).
"""

import json
import shutil
import tempfile
from pathlib import Path

from appliance.cli import demo_report, demo_steps
from appliance.cli.demo_appliance import Appliance, prepare, serving


def run(*, as_json: bool) -> int:
    """Runs the demo. Returns 0 if every outcome was the expected one, else 1."""
    report = demo_report.Report(live=not as_json)
    directory = Path(tempfile.mkdtemp(prefix="paddock-demo-"))
    try:
        config, config_file = prepare(directory, report)
        with serving(config_file, directory / "serve.log"):
            demo_steps.with_appliance(Appliance(config), report)
        demo_steps.after_stop(config, report)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if as_json:
        print(json.dumps(report.as_object(), indent=2))
    else:
        report.summary()
    return 0 if report.good else 1
