r"""Mines a recipe's hard negatives on a cluster, after making everything that it needs.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/mine_negatives.py jobs/recipes/quickstart.yaml root=s3://bucket/runs
"""

import sys

from stillroom.cli import main

if __name__ == "__main__":
    main("run", *sys.argv[1:], "--until", "negatives")
