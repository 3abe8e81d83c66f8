// Launches the FFT kernels: plan to arguments to grid.
#include "../family.h"
#include "args.h"
#include "plan.h"
#include "../ptx.cuh"
#include "variants.h"
#include "../weight_sum.cuh"

namespace replknet_ext::cuda {

namespace {
// Two 16-bit values a copy where every row starts at a multiple of 4 bytes.
void set_unit(const Problem& p, const void* tensor, int64_t width, FftWindow* w) {
  const bool aligned = reinterpret_cast<uintptr_t>(tensor) % 4 == 0 && width % 2 == 0;
  w->unit = p.dtype != DType::f32 && !p.channels_last && aligned ? 2 : 1;
}
}  // namespace

int launch_fft(const LaunchPlan& any, const Tensors& t, void* stream) {
  const FftPlan& plan = static_cast<const FftPlan&>(any);
  const Problem& p = plan.problem;
  FftArgs a = plan.args;
  const dim3 block(plan.warps * 32), grid(static_cast<unsigned>(plan.blocks));
  a.source[1] = t.x;
  a.spectra = static_cast<unsigned char*>(t.workspace) + a.spectra_offset;
  set_unit(p, t.x, p.w, &a.from[1]);
  if (p.pass == Pass::fwd) {
    a.source[0] = static_cast<const unsigned char*>(t.w) + (p.flip ? (p.kh * p.kw - 1) * fft_bytes(a.dtype) : 0);
    a.bias = t.bias;
    a.out = t.out;
    return static_cast<int>(launch_kernel(fft_fwd(plan.family_variant), grid, block, plan.shared_bytes, stream, a));
  }
  const int64_t elements = p.c * p.kh * p.kw;
  float* partial = static_cast<float*>(t.workspace);
  const bool in_splits = a.splits > 1;
  a.source[0] = t.grad;
  set_unit(p, t.grad, p.wo, &a.from[0]);
  a.out = in_splits ? partial : t.out;
  a.out_split = elements;
  a.out_dtype = in_splits ? FftDType::f32 : a.dtype;
  float* partial_bias = partial + a.splits * elements;
  a.grad_bias = !t.grad_bias || !in_splits ? t.grad_bias : partial_bias;
  const auto kernel = fft_weight(plan.family_variant);
  if (const auto e = launch_kernel(kernel, grid, block, plan.shared_bytes, stream, a)) return static_cast<int>(e);
  if (!in_splits) return 0;
  const int dtype = static_cast<int>(a.dtype);
  return launch_weight_sum(
      sums_apart(partial, partial_bias, t.out, t.grad_bias, p.c, p.kh * p.kw, a.splits, dtype), stream);
}

}  // namespace replknet_ext::cuda
