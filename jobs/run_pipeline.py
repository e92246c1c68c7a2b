"""Makes a recipe's artifacts on a cluster.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \\
    python jobs/run_pipeline.py jobs/recipes/quickstart.yaml [section.field=value …]
"""

import sys

from stillroom.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    main()
