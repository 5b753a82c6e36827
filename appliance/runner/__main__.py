"""``python -I -B -m appliance.runner --channel-fd N [--launcher systemd] [--degraded a,b]`` is one runner."""

import sys

from appliance.runner.main import main

if __name__ == "__main__":
    main(sys.argv[1:])
