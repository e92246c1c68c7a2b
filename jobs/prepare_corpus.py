r"""Prepares a recipe's corpus on a cluster: reads, cleans, decontaminates, splits.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/prepare_corpus.py jobs/recipes/quickstart.yaml root=s3://bucket/runs
"""

import sys

from stillroom.cli import main

if __name__ == "__main__":
    main("run", *sys.argv[1:], "--until", "corpus")
