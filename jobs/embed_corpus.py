r"""Embeds a recipe's corpus with its teacher on a cluster, after making both.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/embed_corpus.py jobs/recipes/quickstart.yaml root=s3://bucket/runs
"""

import sys

from stillroom.cli import main

if __name__ == "__main__":
    main("run", *sys.argv[1:], "--until", "vectors")
