"""``python -m lazymoe``."""

import sys

from lazymoe.cli import main

sys.exit(main())
