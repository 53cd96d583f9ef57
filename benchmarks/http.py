"""What rate limiting adds to one HTTP request, here and in other libraries, in one run.

``python benchmarks/http.py`` (README.md beside this file says what is measured, and how). The
program is in http_run.py and http_apps.py; this file only keeps its name from hiding Python's own.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

# A script's folder comes first on the path, and `import http` would find this file. The
# repository's root goes there instead, for tests/support/servers.py.
others = [path for path in sys.path if Path(path).resolve() != HERE]
sys.path[:] = [str(HERE.parent), *others, str(HERE)]

if __name__ == "__main__":
    from http_run import main

    main()
else:
    # A sibling that was run as a script looks for Python's module, and found this file first.
    del sys.modules[__name__]
    import http  # noqa: F401
