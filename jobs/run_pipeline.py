r"""Makes every artifact of a recipe on a cluster, up to a release that can be served:

synthetic → corpus → teacher → vectors → negatives → student → report → release

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/run_pipeline.py jobs/recipes/quickstart.yaml root=s3://bucket/runs

Artifacts that exist are not made again, whichever job made them.
"""

import sys

from stillroom.cli import main

if __name__ == "__main__":
    main("run", *sys.argv[1:])
