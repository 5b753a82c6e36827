"""``python -I -B -m appliance.validator --degraded a,b`` judges the file on descriptor 0, answers on descriptor 1."""

import sys

from appliance.validator.main import main

if __name__ == "__main__":
    main(sys.argv[1:])
