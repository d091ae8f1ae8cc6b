# SPDX-License-Identifier: Apache-2.0
"""Stands for PyTorch where there is no GPU: one number, for which the GPU's device and the driver's library are held open
as PyTorch holds them."""

import mmap


class Tensor:
    def __init__(self):
        self.value = 0
        self.device = open("/dev/nvidia0", "wb", buffering=0)
        with open("/lib/libcuda.so.1", "rb") as library:
            self.mapped = mmap.mmap(library.fileno(), 0, prot=mmap.PROT_READ)

    def __iadd__(self, number):
        assert self.mapped[:] == b"the driver's"
        self.device.write(b"a kernel")
        self.value += number
        return self

    def __int__(self):
        return self.value


def zeros(count, device):
    assert (count, device) == (1, "cuda")
    return Tensor()
