r"""Trains a recipe's teacher on a cluster, after preparing the corpus.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/train_teacher.py jobs/recipes/quickstart.yaml root=s3://bucket/runs
"""

import sys

from stillroom.cli import main

if __name__ == "__main__":
    main("run", *sys.argv[1:], "--until", "teacher")
