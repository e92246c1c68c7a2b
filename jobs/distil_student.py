r"""Distils a recipe's student on a cluster, after making everything that it needs.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/distil_student.py jobs/recipes/quickstart.yaml root=s3://bucket/runs
"""

import sys

from stillroom.cli import main

if __name__ == "__main__":
    main("run", *sys.argv[1:], "--until", "student")
