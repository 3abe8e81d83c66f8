"""Instructions of the AVX2 kernels, by callgrind. Written by ``python tests/cpu_driver/count.py``."""

from __future__ import annotations

GCC = "12"  # major version of the compiler that the counts are of

#: "problem pass dtype layout kernel" -> instructions of the whole call, packing included.
COUNTS: dict[str, int] = {
    "56-K31 fwd float32 nchw direct_tile": 5489625,
    "56-K31 bwd_input float32 nchw direct_tile": 5493453,
    "56-K31 bwd_weight float32 nchw direct_tile": 5781544,
    "28-K29 fwd float32 nchw direct_tile": 921776,
    "28-K29 bwd_input float32 nchw direct_tile": 926381,
    "28-K29 bwd_weight float32 nchw direct_tile": 1108442,
    "14-K27 fwd float32 nchw direct_tile": 426462,
    "14-K27 bwd_input float32 nchw direct_tile": 434613,
    "14-K27 bwd_weight float32 nchw direct_tile": 597594,
    "7-K13 fwd float32 nchw direct_tile": 83489,
    "7-K13 bwd_input float32 nchw direct_tile": 87441,
    "7-K13 bwd_weight float32 nchw direct_tile": 148592,
    "14-K27 fwd float32 nhwc direct_tile": 424923,
    "14-K27 bwd_input float32 nhwc direct_tile": 433058,
    "14-K27 bwd_weight float32 nhwc direct_tile": 592062,
    "14-K27 fwd bfloat16 nchw direct_tile": 454260,
    "14-K27 bwd_input bfloat16 nchw direct_tile": 462272,
    "14-K27 bwd_weight bfloat16 nchw direct_tile": 658849,
    "56-K7 fwd float32 nchw direct_tile": 760876,
    "56-K7 bwd_input float32 nchw direct_tile": 760790,
    "56-K7 bwd_weight float32 nchw direct_tile": 807095,
    "56-K7 fwd float32 nhwc direct_tile": 759067,
    "56-K7 bwd_input float32 nhwc direct_tile": 759672,
    "56-K7 bwd_weight float32 nhwc direct_tile": 805926,
    "28-K5 fwd float32 nchw direct_tile": 119556,
    "28-K5 bwd_input float32 nchw direct_tile": 119875,
    "28-K5 bwd_weight float32 nchw direct_tile": 161341,
    "14-K3 fwd float32 nhwc direct_tile": 61353,
    "14-K3 bwd_input float32 nhwc direct_tile": 61421,
    "14-K3 bwd_weight float32 nhwc direct_tile": 85227,
    "56-K51x5 fwd float32 nchw direct_tile": 3075930,
    "56-K51x5 bwd_input float32 nchw direct_tile": 3077642,
    "56-K51x5 bwd_weight float32 nchw direct_tile": 2472263,
    "29-K29-C13 fwd float32 nchw direct_tile": 2287429,
    "29-K29-C13 bwd_input float32 nchw direct_tile": 2296665,
    "29-K29-C13 bwd_weight float32 nchw direct_tile": 2388144,
}
