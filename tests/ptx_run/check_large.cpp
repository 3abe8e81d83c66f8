#include "check.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

#include "runtime.h"
#include "values.h"

namespace ptx_run {
namespace rc = replknet_ext::cuda;
namespace {

double element(uint64_t i, uint64_t seed) {  // of a tensor
  uint64_t v = (i + seed * 0x51ed270b) * 0x9e3779b97f4a7c15;
  v ^= v >> 29, v *= 0xbf58476d1ce4e5b9, v ^= v >> 32;
  return static_cast<double>(static_cast<int64_t>(v % 33) - 16) / 32;
}

struct LargeTensor {
  unsigned char* data;
  size_t bytes;
  Tensor view;  // set and get
  LargeTensor(int64_t count, DType t, const char* name, bool writable, uint64_t seed)
      : bytes(static_cast<size_t>(count * size_of(t))) {
    void* p = mmap(nullptr, bytes + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::runtime_error("no address space");
    data = static_cast<unsigned char*>(p);
    view.data = data, view.dtype = t;
    watch_lazily(data, bytes, writable, name, [this, t, seed](uint64_t first, size_t n) {
      for (size_t i = first / static_cast<size_t>(size_of(t)), end = (first + n) / static_cast<size_t>(size_of(t));
           i < end; ++i)
        view.set(static_cast<int64_t>(i), element(i, seed));
    });
  }
  LargeTensor(const LargeTensor&) = delete;
  ~LargeTensor() { munmap(data, bytes + kGuard); }
  static constexpr size_t kGuard = 4096;
};

}  // namespace

Verdict run_large(const Case& c, int64_t sample) {
  const Problem& p = c.p;
  Verdict v;
  rc::PlanHandle plan;
  if (const char* why = rc::plan(p, limits(c), c.variant, &plan)) {
    v.error = std::string("no plan: ") + why;
    return v;
  }
  v.family = plan->family, v.name = plan->name;
  const bool weight = p.pass == Pass::bwd_weight;
  const int64_t taps = p.kh * p.kw, inputs = p.n * p.c * p.h * p.w, outputs = p.n * p.c * p.ho * p.wo;
  unwatch();
  LargeTensor x(inputs, p.dtype, "x", false, 1),
      f(weight ? outputs : p.c * taps, p.dtype, weight ? "grad" : "w", false, 2);
  LargeTensor out(weight ? p.c * taps : outputs, p.dtype, "out", true, 3);
  LargeTensor workspace(std::max<int64_t>(1, plan->workspace_bytes), DType::f32, "workspace", true, 4);
  options.seed = c.schedule, options.sample = sample;
  const int e = rc::launch(
      *plan, {x.data, weight ? nullptr : f.data, nullptr, weight ? f.data : nullptr, out.data, nullptr, workspace.data},
      nullptr);
  options.sample = 0;
  if (e) {
    v.error = rc::error_message(e);
    return v;
  }
  const auto at = [&](int64_t n, int64_t ch, int64_t y, int64_t z, int64_t h, int64_t w) {
    return static_cast<uint64_t>(p.channels_last ? ((n * h + y) * w + z) * p.c + ch : ((n * p.c + ch) * h + y) * w + z);
  };
  if (p.channels_last) {
    LargeTensor turned(inputs, p.dtype, "NCHW", true, 5);
    options.sample = sample;
    const int error = rc::transpose(x.data, turned.data, p.n, p.h * p.w, p.c, size_of(p.dtype), nullptr);
    options.sample = 0;
    if (error) v.error = rc::error_message(error);
    for (const auto& [place, thread] : watched("NCHW")->writers) {
      const auto i = static_cast<int64_t>(2 * place) / size_of(p.dtype), plane = p.h * p.w, pixel = i % plane;
      if (turned.view.get(i) != element(at(i / plane / p.c, i / plane % p.c, pixel / p.w, pixel % p.w, p.h, p.w), 1))
        v.error = "transposed wrongly at " + std::to_string(i);
    }
    if (watched("NCHW")->writers.empty()) v.error = "no block has transposed anything";
    if (!v.error.empty()) return v;
  }
  const auto want = [&](int64_t i) {
    double sum = 0;
    const auto product = [&](int64_t n, int64_t ch, int64_t y, int64_t z, int64_t ky, int64_t kx, double by) {
      const int64_t iy = y + ky - p.pad_top, ix = z + kx - p.pad_left;
      if (iy >= 0 && iy < p.h && ix >= 0 && ix < p.w) sum += element(at(n, ch, iy, ix, p.h, p.w), 1) * by;
    };
    if (weight) {
      const int64_t ch = i / taps, ky = i % taps / p.kw, kx = i % p.kw;
      for (int64_t n = 0; n < p.n; ++n)
        for (int64_t y = 0; y < p.ho; ++y)
          for (int64_t z = 0; z < p.wo; ++z) product(n, ch, y, z, ky, kx, element(at(n, ch, y, z, p.ho, p.wo), 2));
      return sum;
    }
    int64_t n = i / (p.c * p.ho * p.wo), rest = i % (p.c * p.ho * p.wo), ch, pixel;
    if (p.channels_last) ch = rest % p.c, pixel = rest / p.c;
    else ch = rest / (p.ho * p.wo), pixel = rest % (p.ho * p.wo);
    for (int64_t ky = 0; ky < p.kh; ++ky)
      for (int64_t kx = 0; kx < p.kw; ++kx)
        product(n, ch, pixel / p.wo, pixel % p.wo, ky, kx,
                element(static_cast<uint64_t>(ch * taps + (p.flip ? taps - 1 - ky * p.kw - kx : ky * p.kw + kx)), 2));
    return sum;
  };
  std::set<int64_t> written;
  for (const auto& [place, thread] : watched("out")->writers)
    written.insert(static_cast<int64_t>(2 * place) / size_of(p.dtype));
  if (written.empty()) v.error = "no block has written anything";
  const double most = v.family == "fft" ? 4e-6 * static_cast<double>(taps) / 4 : 0;
  size_t wrong = 0, step = 1 + written.size() * static_cast<size_t>(weight ? p.n * p.ho * p.wo : taps) / 20000000,
         k = 0;
  for (int64_t i : written) {
    if (k++ % step && i != *written.rbegin()) continue;
    const double exact = want(i), got = out.view.get(i),
                 by = most + (most > 0 && size_of(p.dtype) == 2 ? 0.51 * ulp_of(exact, p.dtype) : 0);
    const bool ok = most > 0 ? std::fabs(got - exact) <= by : got == rounded(exact, p.dtype);
    if (!ok && wrong++ == 0)
      v.error = "out[" + std::to_string(i) + "] is " + std::to_string(got) + ", not " + std::to_string(exact);
  }
  if (wrong) v.error += " (" + std::to_string(wrong) + " of " + std::to_string(written.size()) + " written)";
  return v;
}

}  // namespace ptx_run
