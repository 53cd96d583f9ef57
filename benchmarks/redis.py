"""What one decision in Redis costs, here and in other libraries, in one run.

``python benchmarks/redis.py`` (README.md beside this file says what is measured, and how). The
program is in redis_run.py and redis_peers.py; this file only keeps its name from hiding redis-py.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

# A script's folder comes first on the path, and `import redis` would find this file. The
# repository's root goes there instead, for tests/support/servers.py.
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if path != str(HERE)), str(HERE)]

if __name__ == "__main__":
    from redis_run import main

    main()
else:
    # A sibling that was run as a script looks for redis-py, and found this file first.
    del sys.modules[__name__]
    import redis  # noqa: F401
