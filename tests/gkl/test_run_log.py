from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta


def test_a_run_tells_the_time_in_utc_wherever_it_is() -> None:
    code = "import logging; from gkl import run_log; run_log.configure(); logging.getLogger('gkl.x').info('epoch 1')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"TZ": "Asia/Kolkata"}, capture_output=True, text=True, check=True
    )
    moment, zone, rest = done.stderr[:19], done.stderr[19:24], done.stderr[24:]
    assert (zone, rest) == (" UTC ", "INFO gkl.x: epoch 1\n")
    told = datetime.strptime(moment, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - told) < timedelta(minutes=1)
