// Launches the FFT kernels: plan to arguments to grid.
#include "family.h"
#include "fft_kernels.h"
#include "fft_plan.h"
#include "ptx.cuh"
#include "fft_variants.h"

namespace replknet_ext::cuda {

int launch_fft(const Problem& p, const Tensors& t, const DeviceLimits& limits, int variant, void* stream) {
  FftPlan plan;
  if (plan_fft(p, limits, variant, &plan)) return kUnsupported;
  FftArgs a = plan.args;
  const dim3 block(plan.plan.warps * 32), grid(static_cast<unsigned>(plan.plan.blocks));
  a.source[1] = static_cast<const float*>(t.x);
  if (p.pass == Pass::fwd) {
    if (p.n == 0) return 0;
    a.source[0] = static_cast<const float*>(t.w) + (p.flip ? p.kh * p.kw - 1 : 0);
    a.bias = static_cast<const float*>(t.bias);
    a.out = static_cast<float*>(t.out);
    return static_cast<int>(launch_kernel(fft_fwd(variant), grid, block, plan.plan.shared_bytes, stream, a));
  }
  const int64_t elements = p.c * p.kh * p.kw;
  float* partial = static_cast<float*>(t.workspace);
  const bool in_splits = a.splits > 1;
  a.source[0] = static_cast<const float*>(t.grad);
  a.out = in_splits ? partial : static_cast<float*>(t.out);
  a.out_split = elements;
  float* partial_bias = partial + a.splits * elements;
  a.grad_bias = !t.grad_bias || !in_splits ? static_cast<float*>(t.grad_bias) : partial_bias;
  const auto kernel = fft_weight(variant);
  if (const auto e = launch_kernel(kernel, grid, block, plan.plan.shared_bytes, stream, a)) return static_cast<int>(e);
  if (!in_splits) return 0;
  FftReduceArgs r{partial, partial_bias, static_cast<float*>(t.out), static_cast<float*>(t.grad_bias),
                  elements, a.splits, a.channels};
  const dim3 reduce(static_cast<unsigned>((elements + 255) / 256));
  return static_cast<int>(launch_kernel(fft_reduce(), reduce, dim3(256), 0, stream, r));
}

}  // namespace replknet_ext::cuda
