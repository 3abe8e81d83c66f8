#if defined(__x86_64__)
#define REPLKNET_ISA avx2
#define REPLKNET_VECTOR_BYTES 32
#define REPLKNET_TARGET "avx2,fma"
#include "kernels.inc"
#endif
