#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "runtime.h"
#include "values.h"

namespace ptx_run {
namespace rc = replknet_ext::cuda;
namespace {

// Relative errors of a sum over the sum of absolute values: of the operands, and of sums in any order
double tolerance(const Case& c, const std::string& family, const std::string& name) {
  if (family == "fft") return 4e-6;
  const Problem& p = c.p;
  const double terms = static_cast<double>(p.pass == Pass::fwd ? p.kh * p.kw : p.n * p.ho * p.wo);
  const double sums = (8 + 2 * std::sqrt(terms)) * (p.dtype == DType::f64 ? 0x1p-53 : 0x1p-24);
  if (name.find("bf16x3") != std::string::npos) return sums + (c.data == Data::wild ? 0x1.4p-15 : 0x1p-15);
  if (name.find("tf32") != std::string::npos) return sums + 0x1p-10;
  return sums;
}

// Which outputs see a non-finite input (2), and which it may spoil (1)
std::vector<char> reach(const Problem& p, const Values& x, const rc::LaunchPlan& plan) {
  std::vector<char> r(static_cast<size_t>(p.n * p.c * p.ho * p.wo), 0);
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isfinite(x[i])) continue;
    const auto e = static_cast<int64_t>(i), plane = e / (p.h * p.w), iy = e / p.w % p.h, ix = e % p.w;
    for (int64_t y = 0; y < p.ho; ++y)
      for (int64_t z = 0; z < p.wo; ++z) {
        const int64_t top = iy + p.pad_top - p.kh + 1, bottom = iy + p.pad_top, left = ix + p.pad_left - p.kw + 1,
                      right = ix + p.pad_left;
        const bool sees = y >= top && y <= bottom && z >= left && z <= right;
        const bool near =
            (plan.spill_rows < 0 || (y >= top - plan.spill_rows && y <= bottom + plan.spill_rows)) &&
            (plan.spill_columns < 0 || (z >= left - plan.spill_columns && z <= right + plan.spill_columns));
        char& at = r[static_cast<size_t>((plane * p.ho + y) * p.wo + z)];
        at = std::max<char>(at, sees ? 2 : near);
      }
  }
  return r;
}

void compare(const Case& c, const Tensor& got, const Values& want, const Values& scale,
             const std::vector<int64_t>* place, const std::vector<char>& reached, const char* what, Verdict* v) {
  const bool fft = v->family == "fft", gelu = c.p.activation == Activation::gelu && c.p.pass == Pass::fwd;
  const double relative = tolerance(c, v->family, v->name);
  double plane_scale = 0;
  for (double s : scale)
    if (std::isfinite(s)) plane_scale = std::max(plane_scale, s);
  size_t wrong = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double g = got.get(place ? (*place)[i] : static_cast<int64_t>(i));
    bool ok;
    double ratio = 0;
    if (c.data == Data::exact && !fft && !gelu) {
      ok = g == rounded(want[i], got.dtype);
    } else {
      double t = relative * (fft ? plane_scale : scale[i]) +
                 (gelu ? 1.2 * relative * scale[i] + 1e-6 * std::max(0.1, std::fabs(want[i])) : 0);
      if (size_of(got.dtype) == 2) t += 0.51 * ulp_of(std::fabs(want[i]) + t, got.dtype);
      if (got.dtype == DType::f32) t += 0.51 * ulp_of(want[i], DType::f32);
      ratio = std::fabs(g - want[i]) / (t + 1e-300);
      ok = ratio <= 1;  // false for NaN
      if (want[i] == g) ok = true, ratio = 0;
      if (!reached.empty() && reached[i]) {
        const bool relu = c.p.activation == Activation::relu;  // of -Inf: 0
        ok = !std::isfinite(g) || (reached[i] == 1 ? ok : relu && g == 0 && want[i] == 0);
        ratio = 0;
      }
    }
    v->worst = std::max(v->worst, ratio);
    if (!ok && wrong++ == 0) {
      std::ostringstream s;
      s << what << "[" << i << "] is " << g << ", not " << want[i];
      v->error = s.str();
    }
  }
  if (wrong) v->error += " (" + std::to_string(wrong) + " of " + std::to_string(want.size()) + " wrong)";
}

// A tensor of channels_last to NCHW and back by the project's own transposes: "" or what is wrong.
std::string turn(const Case& c, const Values& x, const std::vector<int64_t>& places) {
  const Problem& p = c.p;
  const int64_t count = p.n * p.c * p.h * p.w;
  unwatch();
  Tensor given, want, turned, back;
  given.allocate(count, p.dtype, c.shift, "channels_last", false);
  want.allocate(count, p.dtype, 0, "expected", false);
  turned.allocate(count, p.dtype, 0, "NCHW", true);
  back.allocate(count, p.dtype, c.shift, "back", true);
  for (size_t i = 0; i < x.size(); ++i) given.set(places[i], x[i]), want.set(static_cast<int64_t>(i), x[i]);
  options.seed = c.schedule;
  const auto differ = [&](const Tensor& a, const Tensor& b) {
    return std::memcmp(a.data, b.data, static_cast<size_t>(count * size_of(p.dtype))) != 0;
  };
  if (const int e = rc::transpose(given.data, turned.data, p.n, p.h * p.w, p.c, size_of(p.dtype), nullptr))
    return std::string("transpose: ") + rc::error_message(e);
  if (differ(turned, want)) return "transposed to NCHW wrongly";
  if (const int e = rc::transpose(turned.data, back.data, p.n, p.c, p.h * p.w, size_of(p.dtype), nullptr))
    return std::string("transpose: ") + rc::error_message(e);
  return differ(back, given) ? "transposed to channels_last wrongly" : "";
}

}  // namespace

Verdict run(const Case& c) {
  const Problem& p = c.p;
  Verdict v;
  rc::PlanHandle plan;
  if (const char* why = rc::plan(p, limits(c), c.variant, &plan)) {
    v.error = std::string("no plan: ") + why;
    return v;
  }
  v.family = plan->family, v.name = plan->name;
  Random random(c.seed);
  const bool weight = p.pass == Pass::bwd_weight;
  const auto draw = [&](int64_t count, double scale, bool factor) {
    Values x(static_cast<size_t>(count));
    for (double& e : x) {
      if (c.data == Data::exact) {
        e = static_cast<double>(random.upto(-16, 16)) / 32;
        continue;
      }
      e = random.normal() * scale;
      if (c.data == Data::wild) {
        const int64_t most = p.dtype == DType::f16 ? 4 : 20;
        e = std::ldexp(e, static_cast<int>(random.upto(-most, most)));
        // the largest numbers that a kernel takes for finite
        const bool tf32 = v.name.find("tf32") != std::string::npos,
                   sum3 = v.name.find("bf16x3") != std::string::npos && weight;
        const double largest = tf32 ? 0x1.ffcp127 : sum3 ? 0x1.fep127 : 0x1.fffffep127;
        if (p.dtype == DType::f32 && v.family != "fft")
          e = factor ? e * 0x1p-60 : random.upto(0, 20) ? e : std::copysign(largest, e);
      }
      e = rounded(e, p.dtype);
    }
    return x;
  };
  const int64_t taps = p.kh * p.kw;
  Values x = draw(p.n * p.c * p.h * p.w, 1, false);
  if (c.data == Data::infinite)
    for (int k = 0; k < 3; ++k) {
      const double values[] = {INFINITY, -INFINITY, NAN};
      x[random.next() % x.size()] = values[random.upto(0, 2)];
    }
  const Values f = weight ? draw(p.n * p.c * p.ho * p.wo,
                                 1 / std::sqrt(static_cast<double>(std::max<int64_t>(1, p.n * p.ho * p.wo))), true)
                          : draw(p.c * taps, 1 / std::sqrt(static_cast<double>(taps)), true);
  const Values bias = draw(p.c, 1, true);
  const auto places = [&](int64_t h, int64_t w) {  // of NCHW elements in memory
    std::vector<int64_t> at(static_cast<size_t>(p.n * p.c * h * w));
    size_t k = 0;
    for (int64_t n = 0; n < p.n; ++n)
      for (int64_t ch = 0; ch < p.c; ++ch)
        for (int64_t i = 0; i < h * w; ++i)
          at[k++] = p.channels_last ? (n * h * w + i) * p.c + ch : (n * p.c + ch) * h * w + i;
    return at;
  };
  const auto in_places = places(p.h, p.w), out_places = places(p.ho, p.wo);
  if (p.channels_last) v.error = turn(c, x, in_places);
  if (!v.error.empty()) return v;
  unwatch();
  Tensor tx, tf, tbias, tout, tgrad_bias, workspace;
  tx.allocate(p.n * p.c * p.h * p.w, p.dtype, c.shift, "x", false);
  for (size_t i = 0; i < x.size(); ++i) tx.set(in_places[i], x[i]);
  tf.allocate(static_cast<int64_t>(f.size()), p.dtype, c.shift, weight ? "grad" : "w", false);
  for (size_t i = 0; i < f.size(); ++i) tf.set(weight ? out_places[i] : static_cast<int64_t>(i), f[i]);
  tout.allocate(weight ? p.c * taps : p.n * p.c * p.ho * p.wo, p.dtype, c.shift, "out", true);
  if (c.bias && !weight) {
    tbias.allocate(p.c, p.dtype, c.shift, "bias", false);
    for (size_t i = 0; i < bias.size(); ++i) tbias.set(static_cast<int64_t>(i), bias[i]);
  }
  if (c.bias && weight) tgrad_bias.allocate(p.c, p.dtype, c.shift, "grad_bias", true);
  if (plan->workspace_bytes) workspace.allocate((plan->workspace_bytes + 3) / 4, DType::f32, 0, "workspace", true);
  rc::Tensors t{
      tx.data,       weight ? nullptr : tf.data, tbias.data, weight ? tf.data : nullptr, tout.data, tgrad_bias.data,
      workspace.data};
  options.seed = c.schedule;
  if (const int e = rc::launch(*plan, t, nullptr)) {
    v.error = rc::error_message(e);
    return v;
  }
  const Result want = reference(p, x, f, c.bias && !weight ? &bias : nullptr);
  compare(c, tout, want.out, want.scale, weight ? nullptr : &out_places,
          c.data == Data::infinite ? reach(p, x, *plan) : std::vector<char>(), "out", &v);
  if (tgrad_bias.data && v.error.empty())
    compare(c, tgrad_bias, want.bias, want.bias_scale, nullptr, {}, "grad_bias", &v);
  return v;
}

}  // namespace ptx_run
