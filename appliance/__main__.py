"""``python -m appliance`` is the ``paddock`` command."""

from appliance.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
