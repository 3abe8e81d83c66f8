// The CPU kernels without torch and Python: what sanitizers and callgrind run. Problems come on stdin, one per line:
//
//   name pass n c h w kh kw top bottom left right dtype layout activation
//
//   driver check         every kernel of every instruction set of this machine that takes the problem, against sums in
//                        double; work cut into 1, 2 and 3 ranges; every buffer of its exact size
//   driver run ISA NAME  one call of the kernel NAME (or "all") of one instruction set, in `measured`; prints a line per call
//
// Inputs are multiples of 1/32 up to 1/2, so that the direct kernels must be exact in every dtype.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/backend.h"
#include "names.h"

using namespace replknet_ext;

// Instruction sets that were left out of the build.
namespace replknet_ext::cpu {
#ifdef DRIVER_WITHOUT_BASE
namespace base { const Isa table{}; }
#endif
#ifdef DRIVER_WITHOUT_AVX2
namespace avx2 { const Isa table{}; }
#endif
#ifdef DRIVER_WITHOUT_AVX512
namespace avx512 { const Isa table{}; }
#endif
}  // namespace replknet_ext::cpu

namespace {

struct Line {
  std::string name, pass;
  int64_t n, c, h, w, kh, kw, top, bottom, left, right;
  std::string dtype, layout, activation;
};

std::vector<Line> read_lines() {
  std::vector<Line> lines;
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream in(text);
    Line l;
    if (in >> l.name >> l.pass >> l.n >> l.c >> l.h >> l.w >> l.kh >> l.kw >> l.top >> l.bottom >> l.left >> l.right >>
        l.dtype >> l.layout >> l.activation)
      lines.push_back(l);
    else if (!text.empty()) std::fprintf(stderr, "cannot read '%s'\n", text.c_str()), std::exit(2);
  }
  return lines;
}

Problem problem_of(const Line& l) {
  const int64_t ho = l.h + l.top + l.bottom - l.kh + 1, wo = l.w + l.left + l.right - l.kw + 1;
  Problem p{};
  const QueryPass pass = value_of("pass", l.pass, kPasses);
  if (pass == QueryPass::bwd_input)  // as bindings/arguments.cpp: forward convolution of the gradient, rotated filter
    p = Problem{l.n, l.c, ho, wo, l.kh, l.kw, l.h, l.w, l.kh - 1 - l.top, l.kw - 1 - l.left};
  else
    p = Problem{l.n, l.c, l.h, l.w, l.kh, l.kw, ho, wo, l.top, l.left};
  p.flip = pass == QueryPass::bwd_input;
  p.pass = pass == QueryPass::bwd_weight ? Pass::bwd_weight : Pass::fwd;
  p.channels_last = l.layout == "nhwc";
  p.dtype = value_of("dtype", l.dtype, kDTypes);
  p.activation = value_of("activation", l.activation, kActivations);
  return p;
}

// ---- values ----

int element_bytes(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Nearest value with `digits` significant bits and a smallest step, ties to even: how a result is stored.
double rounded(double v, DType dtype) {
  if (dtype == DType::f64 || v == 0) return v;
  if (dtype == DType::f32) return static_cast<float>(v);
  const int digits = dtype == DType::f16 ? 11 : 8, least = dtype == DType::f16 ? -24 : -133;
  int exponent;
  std::frexp(v, &exponent);
  const int step = std::max(exponent - digits, least);
  return std::ldexp(std::nearbyint(std::ldexp(v, -step)), step);
}
void put(char* at, DType dtype, double v) {
  if (dtype == DType::f64) return void(std::memcpy(at, &v, 8));
  const float f = static_cast<float>(v);
  if (dtype == DType::f32) return void(std::memcpy(at, &f, 4));
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  uint16_t half = bits >> 16;
  if (dtype == DType::f16) {  // inputs are normal numbers or zero
    const uint16_t sign = (bits >> 16) & 0x8000;
    half = f == 0 ? sign : sign | static_cast<uint16_t>(((bits & 0x7fffffff) - 0x38000000u) >> 13);
  }
  std::memcpy(at, &half, 2);
}
double get(const char* at, DType dtype) {
  double d;
  float f;
  uint16_t half;
  if (dtype == DType::f64) return std::memcpy(&d, at, 8), d;
  if (dtype == DType::f32) return std::memcpy(&f, at, 4), f;
  std::memcpy(&half, at, 2);
  if (dtype == DType::bf16) {
    const uint32_t bits = uint32_t(half) << 16;
    return std::memcpy(&f, &bits, 4), f;
  }
  const int exponent = (half >> 10) & 31, mantissa = half & 1023;
  const double sign = half & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

uint32_t random_state;
double draw() {
  random_state = random_state * 1664525u + 1013904223u;
  return (int(random_state >> 16) % 33 - 16) / 32.0;
}
std::vector<double> draw_many(int64_t count) {
  std::vector<double> values(count);
  for (double& v : values) v = draw();
  return values;
}

// ---- memory ----

// Exactly `bytes` bytes on the heap, filled with what is NaN in every dtype. `skip` bytes before them make them as badly
// aligned as a tensor may be.
class Buffer {
 public:
  Buffer(int64_t bytes, int64_t skip) : skip_(skip), base_(static_cast<char*>(std::malloc(bytes + skip))) {
    std::memset(base_.get(), 0xff, bytes + skip);
  }
  char* data() const { return base_.get() + skip_; }

 private:
  struct Free { void operator()(char* p) const { std::free(p); } };
  int64_t skip_;
  std::unique_ptr<char, Free> base_;
};
class Aligned {
 public:
  explicit Aligned(int64_t bytes) {
    void* p = nullptr;
    if (posix_memalign(&p, cpu::kAlign, std::max<int64_t>(bytes, 1)) != 0) std::abort();
    std::memset(p, 0xff, bytes);
    base_.reset(static_cast<char*>(p));
  }
  char* data() const { return base_.get(); }

 private:
  struct Free { void operator()(char* p) const { std::free(p); } };
  std::unique_ptr<char, Free> base_;
};

// Place of (image, channel, pixel) in a tensor.
int64_t place(const Problem& p, int64_t plane, int64_t image, int64_t channel, int64_t pixel) {
  return p.channels_last ? (image * plane + pixel) * p.c + channel : (image * p.c + channel) * plane + pixel;
}
Buffer maps(const Problem& p, int64_t plane, const std::vector<double>* values, int64_t skip) {
  const int bytes = element_bytes(p.dtype);
  Buffer buffer(p.n * p.c * plane * bytes, skip * bytes);
  for (int64_t i = 0; values != nullptr && i < p.n * p.c * plane; i++)
    put(buffer.data() + place(p, plane, i / plane / p.c, i / plane % p.c, i % plane) * bytes, p.dtype, (*values)[i]);
  return buffer;
}
Buffer plain(const Problem& p, int64_t count, const std::vector<double>* values, int64_t skip) {
  const int bytes = element_bytes(p.dtype);
  Buffer buffer(count * bytes, skip * bytes);
  for (int64_t i = 0; values != nullptr && i < count; i++) put(buffer.data() + i * bytes, p.dtype, (*values)[i]);
  return buffer;
}

// ---- a problem with its operands and its result in double ----

struct Case {
  std::vector<double> x, second, bias;  // second: the filter or, in bwd_weight, the gradient
  std::vector<double> result, scale;    // sums, and sums of absolute values; before bias and activation
};

Case make_case(const Problem& p) {
  const int64_t taps = p.kh * p.kw, in = p.h * p.w, out = p.ho * p.wo;
  const bool weight = p.pass == Pass::bwd_weight;
  random_state = 12345;
  Case k{draw_many(p.n * p.c * in), draw_many(weight ? p.n * p.c * out : p.c * taps), draw_many(p.c), {}, {}};
  k.result.assign(weight ? p.c * taps : p.n * p.c * out, 0);
  k.scale = k.result;
  for (int64_t plane = 0; plane < p.n * p.c; plane++)
    for (int64_t y = 0; y < p.ho; y++)
      for (int64_t i = std::max<int64_t>(0, p.pad_top - y); i < std::min(p.kh, p.h + p.pad_top - y); i++)
        for (int64_t x = 0; x < p.wo; x++)
          for (int64_t j = std::max<int64_t>(0, p.pad_left - x); j < std::min(p.kw, p.w + p.pad_left - x); j++) {
            const int64_t channel = plane % p.c, tap = p.flip ? taps - 1 - (i * p.kw + j) : i * p.kw + j;
            const int64_t to = weight ? channel * taps + tap : plane * out + y * p.wo + x;
            const double product = k.x[plane * in + (y + i - p.pad_top) * p.w + x + j - p.pad_left] *
                                   (weight ? k.second[plane * out + y * p.wo + x] : k.second[channel * taps + tap]);
            k.result[to] += product, k.scale[to] += std::fabs(product);
          }
  return k;
}

extern "C" __attribute__((noinline)) void measured(const std::function<void()>& call) { call(); }

// The kernel's whole work, cut into `ranges` for each phase, every range with scratch of its own.
void call_kernel(const Problem& p, const cpu::Kernel& kernel, const cpu::Plan& plan, cpu::Tensors t, int64_t ranges) {
  const Aligned shared(plan.shared);
  t.shared = shared.data();
  for (int phase = 0; phase < 2; phase++) {
    const int64_t units = phase == 0 ? plan.units : plan.finish_units, runs = std::min(ranges, units);
    for (int64_t i = 0; i < runs; i++) {
      const Aligned scratch(plan.scratch);
      kernel.run(p, plan, t, phase, units * i / runs, units * (i + 1) / runs, scratch.data());
    }
  }
}

struct Operands {
  Buffer x, second, bias, out;
  Operands(const Problem& p, const Case& k, int64_t skip)
      : x(maps(p, p.h * p.w, &k.x, skip)),
        second(p.pass == Pass::bwd_weight ? maps(p, p.ho * p.wo, &k.second, skip)
                                          : plain(p, p.c * p.kh * p.kw, &k.second, skip)),
        bias(plain(p, p.c, &k.bias, skip)),
        out(p.pass == Pass::bwd_weight ? plain(p, p.c * p.kh * p.kw, nullptr, skip)
                                       : maps(p, p.ho * p.wo, nullptr, skip)) {}
  cpu::Tensors tensors(const Problem& p) const {
    cpu::Tensors t{x.data()};
    (p.pass == Pass::bwd_weight ? t.grad : t.w) = second.data();
    if (p.pass == Pass::fwd && !p.flip) t.bias = bias.data();
    t.out = out.data();
    return t;
  }
};

// Largest error of a result: 0 where it must be exact, else relative to the plane's largest sum of |x||w|.
std::string compare(const Problem& p, const Case& k, const cpu::Kernel& kernel, const char* out) {
  const bool weight = p.pass == Pass::bwd_weight, fft = kernel.algorithm == Algorithm::fft;
  const int64_t plane = weight ? p.kh * p.kw : p.ho * p.wo, planes = weight ? p.c : p.n * p.c;
  const double eps = p.dtype == DType::f16 ? 0x1p-11 : p.dtype == DType::bf16 ? 0x1p-8 : 0;
  for (int64_t i = 0; i < planes; i++) {
    const double largest = *std::max_element(&k.scale[i * plane], &k.scale[i * plane] + plane);
    for (int64_t j = 0; j < plane; j++) {
      double v = k.result[i * plane + j];
      if (!weight && !p.flip) v += k.bias[i % p.c];
      if (p.activation == Activation::relu) v = std::max(v, 0.0);
      if (p.activation == Activation::gelu) v = 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
      const int64_t at = weight ? i * plane + j : place(p, plane, i / p.c, i % p.c, j);
      const double got = get(out + at * element_bytes(p.dtype), p.dtype);
      const bool exact = !fft && p.activation != Activation::gelu;
      const double allowed = exact ? 0 : 1e-6 * (largest + 1) + eps * std::fabs(v);
      if (!(std::fabs(got - (exact ? rounded(v, p.dtype) : v)) <= allowed)) {
        std::ostringstream text;
        text << "plane " << i << ", element " << j << ": " << got << ", wanted " << v << " within " << allowed;
        return text.str();
      }
    }
  }
  return "";
}

std::vector<const cpu::Isa*> isas() {
  std::vector<const cpu::Isa*> all;
  const auto add = [&](const cpu::Isa& isa) { if (isa.name != nullptr) all.push_back(&isa); };
  add(cpu::base::table);
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add(cpu::avx2::table);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    add(cpu::avx512::table);
#endif
  return all;
}
template <class F>
void each_kernel(const cpu::Isa& isa, const Problem& p, const F& f) {
  const cpu::Kernel* list = p.pass == Pass::fwd ? isa.fwd : isa.bwd_weight;
  const int count = p.pass == Pass::fwd ? isa.fwd_count : isa.bwd_weight_count;
  for (int i = 0; i < count; i++) {
    cpu::Plan plan{};
    if (list[i].plan(p, 3, &plan) == nullptr) f(list[i], plan);
  }
}

int check() {
  int failed = 0;
  std::string key;
  Case k;
  std::vector<std::string> ran;
  for (const Line& line : read_lines()) {
    const Problem p = problem_of(line);
    if (key != line.name + line.pass) key = line.name + line.pass, k = make_case(p);  // the same for every dtype
    for (const cpu::Isa* isa : isas())
      each_kernel(*isa, p, [&](const cpu::Kernel& kernel, const cpu::Plan& plan) {
        const std::string name = std::string(isa->name) + " " + line.pass + " " + kernel.name;
        if (std::find(ran.begin(), ran.end(), name) == ran.end()) ran.push_back(name);
        std::vector<char> first;
        for (int ranges = 1; ranges <= 3; ranges++) {
          const Operands o(p, k, 1);
          call_kernel(p, kernel, plan, o.tensors(p), ranges);
          const size_t bytes = k.result.size() * element_bytes(p.dtype);
          std::string wrong;
          if (ranges == 1) wrong = compare(p, k, kernel, o.out.data()), first.assign(o.out.data(), o.out.data() + bytes);
          else if (std::memcmp(first.data(), o.out.data(), bytes) != 0) wrong = "other bits than in one range";
          if (wrong.empty()) continue;
          failed++;
          std::printf("%s %s %s %s %s, %d ranges: %s\n", name.c_str(), line.name.c_str(), line.dtype.c_str(),
                      line.layout.c_str(), line.activation.c_str(), ranges, wrong.c_str());
        }
      });
  }
  for (const std::string& name : ran) std::printf("ran %s\n", name.c_str());
  return failed != 0;
}

int run(const std::string& isa_name, const std::string& wanted) {
  for (const cpu::Isa* isa : isas()) {
    if (isa->name != isa_name) continue;
    for (const Line& line : read_lines()) {
      const Problem p = problem_of(line);
      const Case k = make_case(p);
      each_kernel(*isa, p, [&](const cpu::Kernel& kernel, const cpu::Plan& plan) {
        if (wanted != "all" && wanted != kernel.name) return;
        const Operands o(p, k, 0);
        const Aligned shared(plan.shared), scratch(plan.scratch);
        cpu::Tensors t = o.tensors(p);
        t.shared = shared.data();
        measured([&] {
          const int64_t units[] = {plan.units, plan.finish_units};
          for (int phase = 0; phase < 2; phase++)
            if (units[phase] > 0) kernel.run(p, plan, t, phase, 0, units[phase], scratch.data());
        });
        std::printf("%s %s %s %s %s\n", line.name.c_str(), line.pass.c_str(), line.dtype.c_str(), line.layout.c_str(),
                    kernel.name);
      });
    }
    return 0;
  }
  std::fprintf(stderr, "this machine has no %s\n", isa_name.c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  try {
    if (mode == "check" && argc == 2) return check();
    if (mode == "run" && argc == 4) return run(argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "driver: %s\n", error.what());
    return 2;
  }
  std::fprintf(stderr, "usage: driver check | driver run ISA NAME, problems on stdin\n");
  return 2;
}
