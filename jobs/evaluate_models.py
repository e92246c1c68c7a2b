r"""Measures a recipe's teacher, student and baselines on a cluster, after making the models.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/evaluate_models.py jobs/recipes/quickstart.yaml root=s3://bucket/runs
"""

import sys

from stillroom.cli import main

if __name__ == "__main__":
    main("run", *sys.argv[1:], "--until", "report")
