// 16-byte vectors: SSE2 on x86-64, NEON on arm64.
#define REPLKNET_ISA base
#define REPLKNET_VECTOR_BYTES 16
#include "kernels.inc"
