// Launches the kernels of rt_weight and adds the partial sums of the batch's parts.
#include "family.h"
#include "ptx.cuh"
#include "rt_weight_kernels.h"
#include "rt_weight_plan.h"

namespace replknet_ext::cuda {
namespace {

struct ReduceArgs {
  const float* partial;  // [split][c][taps + 1]
  void *out, *grad_bias;
  int64_t total;  // c * (taps + 1)
  int taps, splits, dtype;
};

__device__ __forceinline__ void store_result(void* to, int64_t i, float v, int dtype) {
  if (dtype == 0) static_cast<float*>(to)[i] = v;
  else static_cast<uint16_t*>(to)[i] = dtype == 1 ? ptx::from_float<false>(v) : ptx::from_float<true>(v);
}

// One thread a tap; the splits in order.
__global__ void __launch_bounds__(256) rt_weight_reduce(const __grid_constant__ ReduceArgs a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= a.total) return;
  const int64_t channel = i / (a.taps + 1);
  const int tap = static_cast<int>(i - channel * (a.taps + 1));
  if (tap == a.taps && !a.grad_bias) return;
  float v = a.partial[i];
  for (int s = 1; s < a.splits; ++s) v += a.partial[s * a.total + i];
  if (tap == a.taps) store_result(a.grad_bias, channel, v, a.dtype);
  else store_result(a.out, channel * a.taps + tap, v, a.dtype);
}

int lowest_bit(uint64_t m) { return static_cast<int>(m & (~m + 1)); }

// Bytes of the widest access that every row of a tensor allows (NCHW), or every pixel (channels_last).
int access_bytes(const Problem& p, const void* tensor, int64_t width) {
  const int64_t element = p.dtype == DType::f32 ? 4 : 2;
  const int64_t run = (p.channels_last ? p.c : width) * element;
  return lowest_bit(reinterpret_cast<uint64_t>(tensor) | static_cast<uint64_t>(run) | 16);
}

}  // namespace

int launch_rt_weight(const Problem& p, const Tensors& t, const DeviceLimits& limits, int variant, void* stream) {
  RtwPlan plan;
  if (plan_rt_weight(p, limits, variant, &plan)) return kUnsupported;
  if (p.n == 0) return 0;
  const int number = plan.plan.variant;
  RtwArgs a = plan.args;
  a.tensor[0].p = t.x, a.tensor[1].p = t.grad, a.out = t.out, a.grad_bias = t.grad_bias;
  set_access(p, number, a.block_channels, access_bytes(p, t.x, p.w), &a.tensor[0]);
  set_access(p, number, a.block_channels, access_bytes(p, t.grad, p.wo), &a.tensor[1]);
  if (a.splits > 1) a.partial = static_cast<float*>(t.workspace);
  const auto kernel = (p.dtype == DType::f32 ? rt_weight_f32 : p.dtype == DType::f16 ? rt_weight_f16 : rt_weight_bf16)(number);
  const dim3 grid(static_cast<unsigned>(plan.plan.blocks / a.splits), static_cast<unsigned>(a.splits));
  if (const auto e = launch_kernel(kernel, grid, dim3(plan.plan.warps * 32), plan.plan.shared_bytes, stream, a))
    return static_cast<int>(e);
  if (a.splits == 1) return 0;
  const ReduceArgs r{a.partial, a.out, a.grad_bias, p.c * (p.kh * p.kw + 1), static_cast<int>(p.kh * p.kw), a.splits, a.dtype};
  return static_cast<int>(launch_kernel(&rt_weight_reduce, dim3(static_cast<unsigned>((r.total + 255) / 256)), dim3(256), 0, stream, r));
}

}  // namespace replknet_ext::cuda
