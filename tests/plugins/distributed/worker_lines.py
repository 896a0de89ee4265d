"""The command line of a run, with more words for each rank that the environment tells: RANK_WORDS, a list of lists."""

import json
import os
import sys

from framework.cli import main

if __name__ == "__main__":
    sys.exit(main([*sys.argv[1:], *json.loads(os.environ["RANK_WORDS"])[int(os.environ["RANK"])]]))
