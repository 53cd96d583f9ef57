"""Serves the example application until it is stopped: ``make serve STORE=redis://localhost``."""

import argparse
import os
import sys
from pathlib import Path

import uvicorn

from ratelimit import open_store


def main() -> None:
    """Reads the options and hands over to uvicorn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="memory://", help="where the counters live")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, help="1 for memory://, else 2")
    options = parser.parse_args()
    try:
        open_store(options.store)  # which opens nothing yet: a server may be away for now
    except (ValueError, ImportError) as error:
        sys.exit(f"this store cannot be used: {error}")
    os.environ["STORE"] = options.store
    in_process = options.store.startswith("memory:")
    print(f"the live page: http://127.0.0.1:{options.port}/ratelimit/", flush=True)
    uvicorn.run(
        "app:app",
        app_dir=str(Path(__file__).parent),
        port=options.port,
        workers=options.workers or (1 if in_process else 2),
    )


if __name__ == "__main__":
    main()
