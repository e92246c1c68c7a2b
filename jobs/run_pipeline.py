r"""Makes a recipe's artifacts on a cluster, up to a release that can be served.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/run_pipeline.py jobs/recipes/quickstart.yaml root=s3://bucket/runs

What exists already is not made again, whichever of these jobs made it.
"""

import sys

from stillroom.cli import main

if __name__ == "__main__":
    main("run", *sys.argv[1:])
