#if defined(__x86_64__)
#define REPLKNET_ISA avx512
#define REPLKNET_VECTOR_BYTES 64
#if defined(__clang__)
#define REPLKNET_TARGET "avx512f,avx512bw,avx512dq,avx512vl,fma"
#else
#define REPLKNET_TARGET "avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512"
#endif
#include "kernels.inc"
#endif
