"""Start MLServer on the port in the environment, with the settings in the directory given."""

import os
import sys

port = int(os.environ["PORT"])
os.environ["MLSERVER_HOST"] = "127.0.0.1"
for place, kind in enumerate(("HTTP", "GRPC", "METRICS")):
    os.environ[f"MLSERVER_{kind}_PORT"] = str(port + place)
sys.argv = ["mlserver", "start", sys.argv[1]]

from mlserver.cli import main  # noqa: E402 - it reads the environment when it is imported

main()
