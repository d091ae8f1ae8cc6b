# SPDX-License-Identifier: Apache-2.0
"""Many small files: a row of its own, because it takes its time."""

import hashlib
import os

from row import rows, same

ROWS, row = rows()


@row
def small_files():
    """100 000 files in 100 directories."""
    base = "/var/tmp/many"
    for directory in range(100):
        os.makedirs(f"{base}/{directory}")
        for number in range(1000):
            with open(f"{base}/{directory}/{number}", "wb") as file:
                file.write(b"%d" % (directory * number))

    def digest():
        total = hashlib.sha256()
        for directory in range(100):
            for name in sorted(os.listdir(f"{base}/{directory}")):
                with open(f"{base}/{directory}/{name}", "rb") as file:
                    total.update(name.encode() + b"=" + file.read())
        return total.hexdigest()

    before = digest()
    while True:
        yield
        same(before, digest())
