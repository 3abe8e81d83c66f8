// Launches the FMA kernels: plan to arguments to grid.
#include "../family.h"
#include "args.h"
#include "plan.h"
#include "variants.h"
#include "../ptx.cuh"
#include "../weight_sum.cuh"

namespace replknet_ext::cuda {
namespace {

constexpr int64_t kMostBlocksY = 65535;

FmaStrides strides(bool channels_last, int64_t c, int64_t h, int64_t w) {
  return channels_last ? FmaStrides{h * w * c, 1, w * c, c} : FmaStrides{c * h * w, h * w, w, 1};
}
}  // namespace

int launch_fma(const LaunchPlan& any, const Tensors& t, void* stream) {
  const FmaPlan& plan = static_cast<const FmaPlan&>(any);
  const Problem& p = plan.problem;
  const bool weight = p.pass == Pass::bwd_weight, f64 = p.dtype == DType::f64;
  const int64_t size = f64 ? 8 : 4, taps = p.kh * p.kw;
  FmaArgs a = plan.args;
  a.x = t.x;
  a.xs = strides(p.channels_last, p.c, p.h, p.w);
  const bool split = weight && plan.splits > 1;
  void* partial_bias = split ? static_cast<char*>(t.workspace) + plan.splits * p.c * taps * size : nullptr;
  if (weight) {
    a.f = t.grad, a.fs = strides(p.channels_last, p.c, p.ho, p.wo);
    a.out = split ? t.workspace : t.out, a.os = {p.c * taps, taps, p.kw, 1};
    a.grad_bias = split && t.grad_bias ? partial_bias : t.grad_bias;
  } else {
    a.f = static_cast<const char*>(t.w) + (p.flip ? (taps - 1) * size : 0);
    a.fs = p.flip ? FmaStrides{0, taps, -p.kw, -1} : FmaStrides{0, taps, p.kw, 1};
    a.bias = t.bias;
    a.out = t.out, a.os = strides(p.channels_last, p.c, p.ho, p.wo);
  }
  a.out_vec = a.os.x == 1 && a.ow % 4 == 0 && reinterpret_cast<uint64_t>(a.out) % 16 == 0 ? 4 : 1;
  const auto kernel = f64 ? fma_f64(weight) : fma_f32(weight, plan.family_variant);
  const int64_t columns = (p.c + (1 << a.channels_log2) - 1 >> a.channels_log2) * a.tiles;
  const int images_a_launch = static_cast<int>(kMostBlocksY) << a.images_log2;
  for (int64_t left = plan.splits; left > 0; left -= kMostBlocksY, a.image0 += images_a_launch) {
    const dim3 grid(static_cast<unsigned>(columns), static_cast<unsigned>(left < kMostBlocksY ? left : kMostBlocksY));
    if (const auto e = launch_kernel(kernel, grid, dim3(plan.warps * 32), plan.shared_bytes, stream, a))
      return static_cast<int>(e);
  }
  if (!split) return 0;
  return launch_weight_sum(sums_apart(t.workspace, partial_bias, t.out, t.grad_bias, p.c, taps,
                                      static_cast<int>(plan.splits), f64 ? 3 : 0), stream);
}

}  // namespace replknet_ext::cuda
