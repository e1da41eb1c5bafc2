"""glibc's allocator, told to keep what it has.

A network takes and gives back the same large tensors all the time. glibc returns each of them to the kernel
and faults its pages in again, which took up to half of a step under ZeRO-3 and a fifth of a scoring pass.
Pieces of 32 MiB and more (the threshold can be no higher) go back all the same: kept, they break up its
memory.
"""

KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
