// What each instruction does, after the PTX ISA. An opcode that is not in the table can't be decoded.
#include <cmath>
#include <unordered_map>

#include "numbers.h"
#include "ptx.h"

namespace ptx_run {
namespace {

// ---- loops over lanes ----

template <class D, class F, class... S>
inline __attribute__((always_inline)) void each(Warp& w, const Inst& i, uint32_t lanes, F f, const S*... s) {
  D* d = w.at<D>(i.op[0]);
  if (lanes == ~0u) {
#pragma GCC ivdep
    for (int l = 0; l < 32; ++l) d[l] = f(s[l]...);
  } else {
    for (int l = 0; l < 32; ++l)
      if (lanes >> l & 1) d[l] = f(s[l]...);
  }
}
template <class D, class A, class F>
void unary(Warp& w, const Inst& i, uint32_t lanes, F f) {
  each<D>(w, i, lanes, f, w.at<A>(i.op[1]));
}
template <class D, class A, class B, class F>
void binary(Warp& w, const Inst& i, uint32_t lanes, F f) {
  each<D>(w, i, lanes, f, w.at<A>(i.op[1]), w.at<B>(i.op[2]));
}
template <class D, class A, class B, class C, class F>
void ternary(Warp& w, const Inst& i, uint32_t lanes, F f) {
  each<D>(w, i, lanes, f, w.at<A>(i.op[1]), w.at<B>(i.op[2]), w.at<C>(i.op[3]));
}
void set_predicate(Warp& w, uint32_t place, uint32_t lanes, uint32_t value) {
  uint32_t& p = w.predicate(place);
  p = (p & ~lanes) | (value & lanes);
}
template <class T, class F>
void compare(Warp& w, const Inst& i, uint32_t lanes, F f) {
  const T *a = w.at<T>(i.op[1]), *b = w.at<T>(i.op[2]);
  uint32_t r = 0;
  for (int l = 0; l < 32; ++l) r |= static_cast<uint32_t>(f(a[l], b[l])) << l;
  set_predicate(w, i.op[0], lanes, r);
}
template <class T>
void select(Warp& w, const Inst& i, uint32_t lanes) {
  const uint32_t p = w.predicate(i.op[3]);
  T* d = w.at<T>(i.op[0]);
  const T *a = w.at<T>(i.op[1]), *b = w.at<T>(i.op[2]);
  for (int l = 0; l < 32; ++l) d[l] = lanes >> l & 1 ? (p >> l & 1 ? a[l] : b[l]) : d[l];
}

// ---- memory ----

template <Space space, class M, int n>
void load(Warp& w, const Inst& i, uint32_t lanes) {
  using R = std::conditional_t<sizeof(M) == 1, uint16_t, M>;
  R* d[n];
  for (int v = 0; v < n; ++v) d[v] = w.at<R>(i.op[v]);
  for (int l = 0; l < 32; ++l)
    if (lanes >> l & 1) {
      const unsigned char* p = w.block->memory<space>(w, i, l, w.address(i, i.op[n], l), n * sizeof(M), false);
      for (int v = 0; v < n; ++v) {
        M m;
        std::memcpy(&m, p + v * sizeof m, sizeof m);
        d[v][l] = m;
      }
    }
}
template <Space space, class M, int n>
void store(Warp& w, const Inst& i, uint32_t lanes) {
  for (int l = 0; l < 32; ++l)
    if (lanes >> l & 1) {
      unsigned char* p = w.block->memory<space>(w, i, l, w.address(i, i.op[0], l), n * sizeof(M), true);
      for (int v = 0; v < n; ++v) std::memcpy(p + v * sizeof(M), &w.at<M>(i.op[v + 1])[l], sizeof(M));
    }
}

// ---- fragments ----

template <int count, bool transposed>
void ldmatrix(Warp& w, const Inst& i, uint32_t) {
  for (int k = 0; k < count; ++k) {
    uint16_t m[8][8];
    for (int r = 0; r < 8; ++r)
      std::memcpy(m[r], w.block->shared(w, i, 8 * k + r, w.address(i, i.op[count], 8 * k + r), 16, false), 16);
    uint32_t* d = w.at<uint32_t>(i.op[k]);
    for (int l = 0; l < 32; ++l) {
      const int r = l / 4, c = l % 4 * 2;
      const uint32_t low = transposed ? m[c][r] : m[r][c], high = transposed ? m[c + 1][r] : m[r][c + 1];
      d[l] = low | high << 16;
    }
  }
}

float (*const kHalf)(uint16_t) = half_to_float;
float (*const kBfloat)(uint16_t) = bfloat_to_float;

// d (16 x 8) = a (16 x depth) b (depth x 8) + c, sums in float32 in the order of the contraction
template <int depth>
void multiply(Warp& w, const Inst& i, int first_c, const float (&a)[16][depth], const float (&b)[depth][8]) {
  float d[16][8];
  for (int r = 0; r < 4; ++r) {
    const float* c = w.at<float>(i.op[first_c + r]);
    for (int l = 0; l < 32; ++l) d[l / 4 + r / 2 * 8][l % 4 * 2 + r % 2] = c[l];
  }
  for (int k = 0; k < depth; ++k)
    for (int m = 0; m < 16; ++m)
      for (int n = 0; n < 8; ++n) d[m][n] = __builtin_fmaf(a[m][k], b[k][n], d[m][n]);
  for (int r = 0; r < 4; ++r) {
    float* to = w.at<float>(i.op[r]);
    for (int l = 0; l < 32; ++l) to[l] = d[l / 4 + r / 2 * 8][l % 4 * 2 + r % 2];
  }
  ++totals.mma;
}
template <int depth, float (*const& convert)(uint16_t)>
void mma_half(Warp& w, const Inst& i, uint32_t) {
  constexpr int regs_a = depth / 4, regs_b = depth / 8;
  float a[16][depth], b[depth][8];
  for (int r = 0; r < regs_a; ++r) {
    const uint32_t* v = w.at<uint32_t>(i.op[4 + r]);
    for (int l = 0; l < 32; ++l)
      for (int h = 0; h < 2; ++h)
        a[l / 4 + r % 2 * 8][l % 4 * 2 + h + r / 2 * 8] = convert(static_cast<uint16_t>(v[l] >> 16 * h));
  }
  for (int r = 0; r < regs_b; ++r) {
    const uint32_t* v = w.at<uint32_t>(i.op[4 + regs_a + r]);
    for (int l = 0; l < 32; ++l)
      for (int h = 0; h < 2; ++h) b[l % 4 * 2 + h + r * 8][l / 4] = convert(static_cast<uint16_t>(v[l] >> 16 * h));
  }
  multiply<depth>(w, i, 4 + regs_a + regs_b, a, b);
}
void mma_tf32(Warp& w, const Inst& i, uint32_t) {  // m16n8k8; the low 13 bits are not read
  float a[16][8], b[8][8];
  for (int l = 0; l < 32; ++l) {
    for (int r = 0; r < 4; ++r)
      a[l / 4 + r % 2 * 8][l % 4 + r / 2 * 4] = bits<float>(w.at<uint32_t>(i.op[4 + r])[l] & 0xffffe000);
    for (int r = 0; r < 2; ++r) b[l % 4 + r * 4][l / 4] = bits<float>(w.at<uint32_t>(i.op[8 + r])[l] & 0xffffe000);
  }
  multiply<8>(w, i, 10, a, b);
}

// ---- warps ----

template <bool butterfly>
void shuffle(Warp& w, const Inst& i, uint32_t lanes) {  // d, p, value, lane or mask, clamp and segment, members
  uint32_t* d = w.at<uint32_t>(i.op[0]);
  const uint32_t *a = w.at<uint32_t>(i.op[2]), *b = w.at<uint32_t>(i.op[3]), *c = w.at<uint32_t>(i.op[4]);
  uint32_t from[32], inside = 0;
  std::memcpy(from, a, sizeof from);
  for (int l = 0; l < 32; ++l)
    if (lanes >> l & 1) {
      const int segment = c[l] >> 8 & 31, clamp = c[l] & 31, arg = b[l] & 31;
      const int most = (l & segment) | (clamp & ~segment), least = l & segment;
      int j = butterfly ? l ^ arg : least | (arg & ~segment);
      const bool ok = j <= most;
      if (!ok) j = l;
      if (!(lanes >> j & 1)) w.block->fault(w, i, l, "shuffle from lane " + std::to_string(j) + ", which is not there");
      d[l] = from[j];
      inside |= static_cast<uint32_t>(ok) << l;
    }
  set_predicate(w, i.op[1], lanes, inside);
}

uint32_t permute(uint32_t a, uint32_t b, uint32_t s) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t r = 0;
  for (int k = 0; k < 4; ++k) {
    const uint32_t sel = s >> 4 * k & 15, byte = both >> 8 * (sel & 7) & 255;
    r |= (sel & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * k;
  }
  return r;
}

// ---- the table ----

using Table = OpcodeTable;

template <class T>
constexpr char letter() {
  return sizeof(T) == 2 ? 'h' : sizeof(T) == 4 ? 'w' : 'd';
}
template <class... T>
std::string letters() {
  return {letter<T>()...};
}

#define UNARY(name, D, A, expr)                                              \
  put(t, name, letters<D, A>(), [](Warp& w, const Inst& i, uint32_t lanes) { \
    unary<D, A>(w, i, lanes, [](A a) -> D { return static_cast<D>(expr); }); \
  })
#define BINARY(name, D, A, B, expr)                                                   \
  put(t, name, letters<D, A, B>(), [](Warp& w, const Inst& i, uint32_t lanes) {       \
    binary<D, A, B>(w, i, lanes, [](A a, B b) -> D { return static_cast<D>(expr); }); \
  })
#define TERNARY(name, D, A, B, C, expr)                                                        \
  put(t, name, letters<D, A, B, C>(), [](Warp& w, const Inst& i, uint32_t lanes) {             \
    ternary<D, A, B, C>(w, i, lanes, [](A a, B b, C c) -> D { return static_cast<D>(expr); }); \
  })
#define COMPARE(name, T, expr)                               \
  put(t, name, std::string("p") + letter<T>() + letter<T>(), \
      [](Warp& w, const Inst& i, uint32_t lanes) { compare<T>(w, i, lanes, [](T a, T b) -> bool { return expr; }); })

// Signed sums wrap: they are computed unsigned.
template <class S>
void integers(Table& t, const std::string& width) {
  using U = std::make_unsigned_t<S>;
  for (const char* kind : {"s", "u"}) {
    const std::string type = kind + width;
    BINARY("add." + type, U, U, U, a + b);
    BINARY("sub." + type, U, U, U, a - b);
    BINARY("mul.lo." + type, U, U, U, static_cast<uint64_t>(a) * b);
    TERNARY("mad.lo." + type, U, U, U, U, static_cast<uint64_t>(a) * b + c);
  }
  BINARY("min.s" + width, S, S, S, a < b ? a : b);
  BINARY("max.s" + width, S, S, S, a > b ? a : b);
  BINARY("min.u" + width, U, U, U, a < b ? a : b);
  BINARY("max.u" + width, U, U, U, a > b ? a : b);
  UNARY("neg.s" + width, U, U, 0 - a);
  UNARY("not.b" + width, U, U, ~a);
  BINARY("and.b" + width, U, U, U, a & b);
  BINARY("or.b" + width, U, U, U, a | b);
  BINARY("xor.b" + width, U, U, U, a ^ b);
  constexpr unsigned most = 8 * sizeof(S);
  BINARY("shl.b" + width, U, U, uint32_t, b >= most ? 0 : static_cast<uint64_t>(a) << b);
  BINARY("shr.u" + width, U, U, uint32_t, b >= most ? 0 : a >> b);
  BINARY("shr.b" + width, U, U, uint32_t, b >= most ? 0 : a >> b);
  BINARY("shr.s" + width, S, S, uint32_t, a >> (b >= most ? most - 1 : b));
  // by zero: all ones, as GPUs do; the lowest number by -1 wraps
  BINARY("div.s" + width, S, S, S, b == 0 ? -1 : b == -1 ? 0 - static_cast<U>(a) : a / b);
  BINARY("rem.s" + width, S, S, S, b == 0 ? a : b == -1 ? 0 : a % b);
  BINARY("div.u" + width, U, U, U, b == 0 ? ~U{0} : a / b);
  BINARY("rem.u" + width, U, U, U, b == 0 ? a : a % b);
  for (const char* kind : {"s", "u", "b"}) {
    put(t, "selp." + (kind + width), letters<U, U, U>() + "p", select<U>);
    UNARY("mov." + (kind + width), U, U, a);
    COMPARE("setp.eq." + (kind + width), U, a == b);
    COMPARE("setp.ne." + (kind + width), U, a != b);
  }
  COMPARE("setp.lt.s" + width, S, a < b);
  COMPARE("setp.le.s" + width, S, a <= b);
  COMPARE("setp.gt.s" + width, S, a > b);
  COMPARE("setp.ge.s" + width, S, a >= b);
  COMPARE("setp.lt.u" + width, U, a < b);
  COMPARE("setp.le.u" + width, U, a <= b);
  COMPARE("setp.gt.u" + width, U, a > b);
  COMPARE("setp.ge.u" + width, U, a >= b);
}

template <class F, class U>
void floats(Table& t, const std::string& width) {
  const std::string type = "f" + width;
  for (const char* round : {".", ".rn."}) {
    BINARY("add" + (round + type), F, F, F, a + b);
    BINARY("sub" + (round + type), F, F, F, a - b);
    BINARY("mul" + (round + type), F, F, F, a * b);
    BINARY("div" + (round + type), F, F, F, a / b);
  }
  TERNARY("fma.rn." + type, F, F, F, F, std::fma(a, b, c));
  BINARY("min." + type, F, F, F, a != a ? b : b != b ? a : a < b ? a : b);
  BINARY("max." + type, F, F, F, a != a ? b : b != b ? a : a > b ? a : b);
  UNARY("neg." + type, F, F, -a);
  UNARY("abs." + type, F, F, std::fabs(a));
  BINARY("copysign." + type, F, F, F, std::copysign(b, a));  // the sign of a on b
  UNARY("mov." + type, U, U, a);
  put(t, "selp." + type, letters<F, F, F>() + "p", select<U>);
  COMPARE("setp.eq." + type, F, a == b);
  COMPARE("setp.ne." + type, F, a < b || a > b);
  COMPARE("setp.lt." + type, F, a < b);
  COMPARE("setp.le." + type, F, a <= b);
  COMPARE("setp.gt." + type, F, a > b);
  COMPARE("setp.ge." + type, F, a >= b);
  COMPARE("setp.equ." + type, F, !(a < b || a > b));
  COMPARE("setp.neu." + type, F, !(a == b));
  COMPARE("setp.ltu." + type, F, !(a >= b));
  COMPARE("setp.leu." + type, F, !(a > b));
  COMPARE("setp.gtu." + type, F, !(a <= b));
  COMPARE("setp.geu." + type, F, !(a < b));
}

template <Space space, class M, int n>
void accesses(Table& t, const std::string& where, const std::string& vector, const char* type) {
  const char kind = sizeof(M) == 1 ? 'h' : letter<M>();  // a byte comes in 16 bits
  const std::string values(n, kind);
  for (const char* cached : {"", ".nc"}) {
    if (*cached && space != Space::global) continue;
    put(t, "ld" + where + cached + vector + "." + type, values + "a", load<space, M, n>);
  }
  if (space != Space::param && sizeof(M) > 1)
    put(t, "st" + where + vector + "." + type, "a" + values, store<space, M, n>);
}
template <Space space, class M>
void accesses(Table& t, const std::string& where, std::initializer_list<const char*> types) {
  for (const char* type : types) {
    accesses<space, M, 1>(t, where, "", type);
    accesses<space, M, 2>(t, where, ".v2", type);
    if constexpr (sizeof(M) <= 4) accesses<space, M, 4>(t, where, ".v4", type);
  }
}
template <Space space>
void space_accesses(Table& t, const std::string& where) {
  accesses<space, uint8_t>(t, where, {"u8", "b8"});
  accesses<space, uint16_t>(t, where, {"u16", "b16"});
  accesses<space, uint32_t>(t, where, {"u32", "s32", "b32", "f32"});
  accesses<space, uint64_t>(t, where, {"u64", "s64", "b64", "f64"});
}

template <class To, class From>
void convert(Table& t, const std::string& to, const std::string& from) {
  UNARY("cvt." + to + "." + from, To, From, a);
}

Table make_table() {
  Table t;
  integers<int16_t>(t, "16");
  integers<int32_t>(t, "32");
  integers<int64_t>(t, "64");
  floats<float, uint32_t>(t, "32");
  floats<double, uint64_t>(t, "64");

  BINARY("mul.wide.u16", uint32_t, uint16_t, uint16_t, static_cast<uint32_t>(a) * b);
  BINARY("mul.wide.s16", int32_t, int16_t, int16_t, a* b);
  BINARY("mul.wide.u32", uint64_t, uint32_t, uint32_t, static_cast<uint64_t>(a) * b);
  BINARY("mul.wide.s32", int64_t, int32_t, int32_t, static_cast<int64_t>(a) * b);
  TERNARY("mad.wide.u32", uint64_t, uint32_t, uint32_t, uint64_t, static_cast<uint64_t>(a) * b + c);
  TERNARY("mad.wide.s32", uint64_t, int32_t, int32_t, uint64_t, static_cast<uint64_t>(static_cast<int64_t>(a) * b) + c);
  BINARY("mul.hi.s32", int32_t, int32_t, int32_t, static_cast<int64_t>(a) * b >> 32);
  BINARY("mul.hi.u32", uint32_t, uint32_t, uint32_t, static_cast<uint64_t>(a) * b >> 32);
  BINARY("mul.hi.u64", uint64_t, uint64_t, uint64_t, static_cast<unsigned __int128>(a) * b >> 64);
  BINARY("mul.hi.s64", int64_t, int64_t, int64_t, static_cast<__int128>(a) * b >> 64);
  TERNARY("prmt.b32", uint32_t, uint32_t, uint32_t, uint32_t, permute(a, b, c));
  TERNARY("shf.r.wrap.b32", uint32_t, uint32_t, uint32_t, uint32_t, (static_cast<uint64_t>(b) << 32 | a) >> (c & 31));
  TERNARY("shf.l.wrap.b32", uint32_t, uint32_t, uint32_t, uint32_t,
          (static_cast<uint64_t>(b) << 32 | a) << (c & 31) >> 32);
  put(t, "bfi.b32", "wwwww", [](Warp& w, const Inst& i, uint32_t lanes) {
    each<uint32_t>(
        w, i, lanes,
        [](uint32_t a, uint32_t b, uint32_t from, uint32_t bits) {
          from &= 255, bits &= 255;
          const uint32_t mask = from > 31 ? 0 : (bits > 31 ? ~0u : (1u << bits) - 1) << from;
          return (b & ~mask) | (from > 31 ? 0 : a << from & mask);
        },
        w.at<uint32_t>(i.op[1]), w.at<uint32_t>(i.op[2]), w.at<uint32_t>(i.op[3]), w.at<uint32_t>(i.op[4]));
  });
  // words of two halves, 64 bits of two words; mov.b32 and mov.b64 of {...} are decoded as these
  BINARY("pack.b32", uint32_t, uint16_t, uint16_t, a | static_cast<uint32_t>(b) << 16);
  BINARY("pack.b64", uint64_t, uint32_t, uint32_t, a | static_cast<uint64_t>(b) << 32);
  put(t, "unpack.b32", "hhw", [](Warp& w, const Inst& i, uint32_t lanes) {
    for (int l = 0; l < 32; ++l)
      if (lanes >> l & 1) {
        const uint32_t v = w.at<uint32_t>(i.op[2])[l];
        w.at<uint16_t>(i.op[0])[l] = static_cast<uint16_t>(v),
        w.at<uint16_t>(i.op[1])[l] = static_cast<uint16_t>(v >> 16);
      }
  });
  put(t, "unpack.b64", "wwd", [](Warp& w, const Inst& i, uint32_t lanes) {
    for (int l = 0; l < 32; ++l)
      if (lanes >> l & 1) {
        const uint64_t v = w.at<uint64_t>(i.op[2])[l];
        w.at<uint32_t>(i.op[0])[l] = static_cast<uint32_t>(v),
        w.at<uint32_t>(i.op[1])[l] = static_cast<uint32_t>(v >> 32);
      }
  });

#define PREDICATE(name, operands, expr)                                                  \
  put(t, name, operands, [](Warp& w, const Inst& i, uint32_t lanes) {                    \
    const uint32_t a = w.predicate(i.op[1]), b = operands[2] ? w.predicate(i.op[2]) : 0; \
    static_cast<void>(b);                                                                \
    set_predicate(w, i.op[0], lanes, expr);                                              \
  })
  PREDICATE("and.pred", "ppp", a & b);
  PREDICATE("or.pred", "ppp", a | b);
  PREDICATE("xor.pred", "ppp", a ^ b);
  PREDICATE("not.pred", "pp", ~a);
  PREDICATE("mov.pred", "pp", a);

  convert<uint32_t, uint16_t>(t, "u32", "u16");
  convert<int32_t, int16_t>(t, "s32", "s16");
  convert<int64_t, int16_t>(t, "s64", "s16");
  convert<uint16_t, uint64_t>(t, "u16", "u64");
  convert<uint64_t, uint16_t>(t, "u64", "u16");
  convert<uint16_t, uint32_t>(t, "u16", "u32");
  convert<uint32_t, uint64_t>(t, "u32", "u64");
  convert<uint64_t, uint32_t>(t, "u64", "u32");
  convert<int64_t, int32_t>(t, "s64", "s32");
  convert<double, float>(t, "f64", "f32");
  convert<float, double>(t, "rn.f32", "f64");
  convert<float, int32_t>(t, "rn.f32", "s32");
  convert<float, uint32_t>(t, "rn.f32", "u32");
  UNARY("cvt.rni.f32.f32", float, float, __builtin_rintf(a));
  UNARY("cvt.rni.f64.f64", double, double, __builtin_rint(a));
  UNARY("cvt.f32.f16", float, uint16_t, half_to_float(a));
  UNARY("cvt.f32.bf16", float, uint16_t, bfloat_to_float(a));
  UNARY("cvt.rn.f16.f32", uint16_t, float, float_to_half(a));
  UNARY("cvt.rn.bf16.f32", uint16_t, float, float_to_bfloat(a));
  UNARY("cvt.rna.tf32.f32", uint32_t, float, float_to_tf32(a));
  // the first operand becomes the upper half
  BINARY("cvt.rn.f16x2.f32", uint32_t, float, float, static_cast<uint32_t>(float_to_half(a)) << 16 | float_to_half(b));
  BINARY("cvt.rn.bf16x2.f32", uint32_t, float, float,
         static_cast<uint32_t>(float_to_bfloat(a)) << 16 | float_to_bfloat(b));
  UNARY("ex2.approx.ftz.f32", float, float, flush(static_cast<float>(std::exp2(static_cast<double>(flush(a))))));
  UNARY("rcp.approx.ftz.f32", float, float, flush(1 / flush(a)));
  UNARY("rcp.rn.f32", float, float, 1 / a);

  space_accesses<Space::shared>(t, ".shared");
  space_accesses<Space::global>(t, ".global");
  space_accesses<Space::generic>(t, "");
  space_accesses<Space::param>(t, ".param");
  put(t, "cvta.to.global.u64", "dd", t.at("mov.b64").run);
  put(t, "cvta.global.u64", "dd", t.at("mov.b64").run);
  UNARY("cvta.shared.u64", uint64_t, uint64_t, a + kSharedWindow);
  UNARY("cvta.to.shared.u64", uint64_t, uint64_t, a - kSharedWindow);
  for (const char* where : {".L1", ".L2", ""})
    put(t, std::string("prefetch.global") + where, "a", [](Warp&, const Inst&, uint32_t) {});

  for (const char* through : {"ca", "cg"})
    put(t, std::string("cp.async.") + through + ".shared.global", "aAi", [](Warp& w, const Inst& i, uint32_t lanes) {
      for (int l = 0; l < 32; ++l)
        if (lanes >> l & 1)
          w.block->copy(w, i, l, w.at<uint32_t>(i.op[0])[l] + i.op[3],
                        w.at<uint64_t>(i.op[1])[l] + static_cast<uint64_t>(i.imm), static_cast<int>(i.op[2]));
    });
  put(t, "cp.async.commit_group", "", [](Warp& w, const Inst&, uint32_t lanes) {
    for (int l = 0; l < 32; ++l) w.committed[l] += lanes >> l & 1;
  });
  put(t, "cp.async.wait_group", "i",
      [](Warp& w, const Inst& i, uint32_t lanes) { w.block->land(w, lanes, static_cast<int>(i.op[0])); });
  put(t, "cp.async.wait_all", "", [](Warp& w, const Inst&, uint32_t lanes) { w.block->land(w, lanes, -1); });

  const auto none = [](Warp&, const Inst&, uint32_t) {};
  put(t, "bra", "", none, Kind::branch);
  put(t, "bra.uni", "", none, Kind::branch);
  put(t, "ret", "", none, Kind::exit);
  put(t, "exit", "", none, Kind::exit);
  for (const char* name : {"bar.sync", "barrier.sync.aligned"})
    for (const char* operands : {"w", "ww"})
      put(t, name + ("/" + std::to_string(std::string(operands).size())), operands,
          [](Warp& w, const Inst& i, uint32_t) { w.block->arrive(w, i, true); }, Kind::aligned);
  for (const char* name : {"bar.arrive", "barrier.arrive.aligned"})
    put(t, name, "ww", [](Warp& w, const Inst& i, uint32_t) { w.block->arrive(w, i, false); }, Kind::aligned);
  put(t, "bar.warp.sync", "w", [](Warp& w, const Inst&, uint32_t) {
    ++w.epoch;
    w.meet();
  }, Kind::members);
  put(t, "shfl.sync.bfly.b32", "wpwwww", shuffle<true>, Kind::members);
  put(t, "shfl.sync.idx.b32", "wpwwww", shuffle<false>, Kind::members);
  put(
      t, "vote.sync.ballot.b32", "wpw",
      [](Warp& w, const Inst& i, uint32_t lanes) {
        const uint32_t v = w.predicate(i.op[1]) & lanes;
        for (int l = 0; l < 32; ++l)
          if (lanes >> l & 1) w.at<uint32_t>(i.op[0])[l] = v;
      },
      Kind::members);
  const std::string matrix = "ldmatrix.sync.aligned.m8n8.";
  put(t, matrix + "x1.shared.b16", "wa", ldmatrix<1, false>, Kind::aligned);
  put(t, matrix + "x2.shared.b16", "wwa", ldmatrix<2, false>, Kind::aligned);
  put(t, matrix + "x4.shared.b16", "wwwwa", ldmatrix<4, false>, Kind::aligned);
  put(t, matrix + "x2.trans.shared.b16", "wwa", ldmatrix<2, true>, Kind::aligned);
  put(t, matrix + "x4.trans.shared.b16", "wwwwa", ldmatrix<4, true>, Kind::aligned);
  const std::string mma = "mma.sync.aligned.", by = ".row.col.f32.";
  put(t, mma + "m16n8k16" + by + "f16.f16.f32", "wwwwwwwwwwwwww", mma_half<16, kHalf>, Kind::aligned);
  put(t, mma + "m16n8k16" + by + "bf16.bf16.f32", "wwwwwwwwwwwwww", mma_half<16, kBfloat>, Kind::aligned);
  put(t, mma + "m16n8k8" + by + "f16.f16.f32", "wwwwwwwwwww", mma_half<8, kHalf>, Kind::aligned);
  put(t, mma + "m16n8k8" + by + "bf16.bf16.f32", "wwwwwwwwwww", mma_half<8, kBfloat>, Kind::aligned);
  put(t, mma + "m16n8k8" + by + "tf32.tf32.f32", "wwwwwwwwwwwwww", mma_tf32, Kind::aligned);
  put_hopper(t);
  return t;
}

}  // namespace

void put(OpcodeTable& t, const std::string& name, const std::string& operands, Run run, Kind kind) {
  t.emplace(name, Opcode{name, operands, run, kind});
}

int results_of(const Opcode& o) {
  const std::string& n = o.name;
  const auto begins = [&](const char* with) { return n.rfind(with, 0) == 0; };
  if (o.kind == Kind::branch || o.kind == Kind::exit || o.operands.empty() || o.operands[0] == 'a' || o.operands[0] == 'i' ||
      begins("bar"))
    return 0;
  if (begins("ld")) return static_cast<int>(o.operands.find('a'));  // and ldmatrix
  if (begins("mma.")) return 4;
  return begins("unpack") || begins("shfl") ? 2 : 1;
}

const Opcode* find_opcode(std::string_view name) {
  static const Table table = make_table();
  const auto found = table.find(std::string(name));
  return found == table.end() ? nullptr : &found->second;
}

}  // namespace ptx_run
