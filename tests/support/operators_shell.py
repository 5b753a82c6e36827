"""Run as a process: an operator's commands, each a line of JSON on stdin, answered by [status, stdout, stderr]."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout

from appliance.cli.main import main

for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(json.loads(line))
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
