#include "cases.h"

#include <algorithm>
#include <bitset>
#include <sstream>
#include <stdexcept>

#include "names.h"
#include "runtime.h"
#include "values.h"

namespace ptx_run {
namespace rc = replknet_ext::cuda;
namespace {

constexpr Named<Data> kData[] = {
    {"exact", Data::exact}, {"normal", Data::normal}, {"wild", Data::wild}, {"infinite", Data::infinite}};

struct Shape {
  int h, w, kh, kw;
  int top = -99, bottom = 0, left = 0, right = 0;  // -99: "same"
};
const Shape kShapes[] = {{56, 56, 31, 31},
                         {27, 56, 21, 31},
                         {27, 28, 29, 29},
                         {28, 28, 29, 29},
                         {14, 14, 27, 27},
                         {7, 7, 13, 13},
                         {27, 56, 11, 13},
                         {27, 30, 13, 13},
                         {24, 24, 27, 27},
                         {19, 40, 17, 29},
                         {19, 48, 17, 29},
                         {19, 40, 11, 13},
                         {19, 48, 11, 13},
                         {19, 56, 11, 41},
                         {19, 80, 13, 27},
                         {19, 96, 13, 31},
                         {19, 56, 5, 51},
                         {56, 19, 51, 5},
                         {19, 28, 5, 49},
                         {19, 67, 9, 13},
                         {27, 67, 21, 31},
                         {19, 97, 9, 13},
                         {19, 97, 17, 31},
                         {35, 56, 21, 31},
                         {10, 12, 13, 13},
                         {12, 10, 7, 13},
                         {7, 9, 8, 13},
                         {14, 14, 13, 13},
                         {14, 14, 5, 5},
                         {14, 14, 3, 3},
                         {16, 16, 31, 31},
                         {16, 15, 13, 12},
                         {8, 8, 9, 9},
                         {8, 7, 11, 10},
                         {11, 13, 9, 9},
                         {17, 19, 11, 11},
                         {13, 12, 6, 8},
                         {33, 34, 30, 30},
                         {12, 31, 1, 17},
                         {31, 12, 17, 1},
                         {9, 40, 3, 32},
                         {5, 67, 7, 7},
                         {41, 6, 7, 7},
                         {23, 1, 9, 9},
                         {1, 23, 9, 9},
                         {6, 5, 13, 15},
                         {20, 20, 63, 63},
                         {9, 9, 2, 2},
                         {7, 5, 1, 1},
                         {1, 1, 1, 1},
                         {28, 28, 3, 3},
                         {28, 30, 5, 5},
                         {15, 28, 7, 7},
                         {29, 27, 9, 9},
                         {20, 21, 7, 5, 0, 0, 0, 0},
                         {9, 7, 9, 7, 0, 0, 0, 0},
                         {7, 6, 3, 3, 5, 5, 6, 6},
                         {11, 10, 5, 4, 0, 3, 4, 1},
                         {16, 15, 5, 3, -2, -1, -3, -2},
                         {16, 15, 5, 3, -2, 6, 4, -3},
                         {40, 70, 65, 65},
                         {70, 40, 33, 35},
                         {19, 28, 13, 21},
                         {19, 28, 11, 13},
                         {30, 28, 29, 5},
                         {20, 20, 27, 27},
                         {19, 20, 13, 12},
                         {12, 11, 13, 15},
                         {15, 36, 9, 29},
                         {15, 44, 9, 29},
                         {15, 52, 9, 29},
                         {15, 60, 9, 31},
                         {30, 56, 27, 5},
                         {14, 14, 27, 5}};

Case case_of_shape(const Shape& s, int n, int c) {
  Case k;
  Problem& p = k.p;
  p.n = n, p.c = c, p.h = s.h, p.w = s.w, p.kh = s.kh, p.kw = s.kw;
  const bool same = s.top == -99;
  p.pad_top = same ? s.kh / 2 : s.top, p.pad_left = same ? s.kw / 2 : s.left;
  const int bottom = same ? (s.kh - 1) / 2 : s.bottom, right = same ? (s.kw - 1) / 2 : s.right;
  p.ho = s.h + p.pad_top + bottom - s.kh + 1, p.wo = s.w + p.pad_left + right - s.kw + 1;
  return k;
}

// Products and overhead of a problem, which is about its time here.
int64_t cost(const Problem& p) { return p.n * p.c * (p.ho * p.wo * p.kh * p.kw + 40000); }

int row_groups(const rc::LaunchPlan& plan) {
  for (const rc::PlanDetail& detail : plan.details)
    if (detail.name && std::string(detail.name) == "row_groups") return static_cast<int>(detail.value);
  return 1;
}

// What a problem has that others may lack, as bits.
using Features = std::bitset<256>;
Features features(const Case& c, const rc::LaunchPlan& plan) {
  Features f;
  size_t place = 0;
  const auto put = [&](int64_t value, int64_t values) {
    f.set(place + static_cast<size_t>(std::min(std::max<int64_t>(value, 0), values - 1)));
    place += static_cast<size_t>(values);
  };
  const Problem& p = c.p;
  const auto alignment = [&](int64_t width) {
    const int64_t m = ((p.channels_last ? p.c : width) | c.shift) * size_of(p.dtype) | 16;
    return __builtin_ctzll(static_cast<unsigned long long>(m));
  };
  put(p.n == 1 ? 0 : p.n < 8 ? 1 : p.n == 8 ? 2 : 3, 4);
  put(alignment(p.w) * 5 + alignment(p.wo), 25);
  put(c.shift > 0, 2);
  put(static_cast<int>(p.activation) * 2 + (p.channels_last ? p.c % 2 : p.wo % 2), 6);
  put(c.bias, 2);
  put(p.flip, 2);
  put(static_cast<int>(c.data), 4);
  put(c.schedule > 0, 2);
  put(p.kh % 2 * 2 + p.kw % 2, 4);
  put(p.h % 2 * 2 + p.w % 2, 4);
  put(p.ho == p.h ? p.wo == p.w ? 0 : 1 : 2, 3);
  put(c.sms == 1 ? 0 : c.sms < 8 ? 1 : 2, 3);
  put(plan.parts, 4);
  put(__builtin_ctz(static_cast<unsigned>(row_groups(plan) | 8)), 4);
  put(plan.workspace_bytes > 0, 2);
  put(plan.blocks > 1, 2);
  put(plan.shared_bytes > 48 << 10, 2);
  put(plan.warps, 24);
  put(p.kh > p.h, 2);
  put(p.kw > p.w, 2);
  put(static_cast<int>(std::min<int64_t>(p.c, 9)), 10);
  return f;
}

// What one group of `table` has in common.
struct Kind {
  Pass pass;
  int variant;
  DType dtype;
  bool channels_last;
  Precision precision;
};

Case random_case(const Kind& kind, const Shape& s, int n, Random* random) {
  const int channels[] = {1, 2, 3, 4, 5, 6, 8, 12, 16, 17, 24, 32}, shifts[] = {0, 0, 1, 2, 4, 8}, sms[] = {132, 132, 1, 4};
  Case c = case_of_shape(s, n, channels[random->upto(0, n > 8 ? 4 : 11)]);
  Problem& p = c.p;
  p.pass = kind.pass, p.dtype = kind.dtype, p.channels_last = kind.channels_last, p.precision = kind.precision;
  c.variant = kind.variant;
  if (cost(p) > 30000000) p.c = 1 + p.c % 2;
  if (cost(p) > 60000000) p.n = 1 + p.n % 2;
  c.data = static_cast<Data>(random->upto(0, 2)), c.bias = random->upto(0, 2) > 0;
  c.seed = random->next() % 100000, c.schedule = random->upto(0, 1) ? c.seed + 1 : 0;
  c.shift = shifts[random->upto(0, 5)], c.sms = sms[random->upto(0, 3)];
  if (p.pass == Pass::fwd) {
    p.flip = random->upto(0, 3) == 0;
    p.activation = static_cast<Activation>(random->upto(0, 2));
    if (p.activation != Activation::gelu && random->upto(0, 3) == 0) c.data = Data::infinite;
  }
  return c;
}

using Found = std::vector<std::pair<Case, Features>>;

// Problems that a kind supports; none where the filter does not take its plans.
Found problems(const Kind& kind, const std::vector<Shape>& shapes, const Filter& filter, uint64_t seed) {
  Random random(seed + 1000 * static_cast<uint64_t>(kind.variant) + (kind.pass == Pass::fwd ? 0 : 500));
  Found found;
  for (int round = 0; round < 8 && found.size() < 80; ++round)  // some variants take few shapes
    for (const Shape& s : shapes)
      for (int n : {1, 3, 8, 9, 17, 67}) {
        const Case c = random_case(kind, s, n, &random);
        rc::PlanHandle plan;
        if (cost(c.p) > 90000000 || rc::plan(c.p, limits(c), kind.variant, &plan)) continue;
        if (!filter.takes(*plan)) return {};
        if (kind.precision != Precision::ieee &&
            std::string(plan->name).find(name_of(kind.precision, kPrecisions)) == std::string::npos)
          continue;  // more exact than asked: the same kernel as for ieee
        found.emplace_back(c, features(c, *plan));
      }
  return found;
}

// The order in which each problem has the most that those before it lack.
std::vector<Case> most_different(Found found, int most) {
  std::vector<Case> chosen;
  Features seen;
  for (int k = 0; k < most && !found.empty(); ++k) {
    size_t best = 0, lacking = 0;
    for (size_t i = 0; i < found.size(); ++i)
      if (const size_t fresh = (found[i].second & ~seen).count(); fresh > lacking) lacking = fresh, best = i;
    if (lacking == 0) seen.reset();
    seen |= found[best].second;
    chosen.push_back(found[best].first);
    found.erase(found.begin() + static_cast<long>(best));
  }
  return chosen;
}

}  // namespace

cuda::DeviceLimits limits(const Case& c) {
  auto& d = device;
  static const Device usual = d;
  d.sms = c.sms, d.capability = c.capability ? c.capability : usual.capability;
  d.shared_per_block = c.shared ? c.shared : usual.shared_per_block;
  d.shared_per_sm = c.shared ? c.shared + 1024 : usual.shared_per_sm;
  rc::DeviceLimits l{};
  if (const int e = rc::device_limits(0, &l)) throw std::runtime_error(rc::error_message(e));
  return l;
}

bool Filter::takes(const cuda::LaunchPlan& plan) const {
  return std::string(plan.name).find(variant) != std::string::npos && (family.empty() || plan.family == family);
}

std::string text_of(const Case& c) {
  const Problem& p = c.p;
  std::ostringstream s;
  s << (p.pass == Pass::fwd ? "fwd" : "bwd_weight") << " n=" << p.n << " c=" << p.c << " h=" << p.h << " w=" << p.w
    << " kh=" << p.kh << " kw=" << p.kw << " ho=" << p.ho << " wo=" << p.wo << " top=" << p.pad_top
    << " left=" << p.pad_left << " dtype=" << name_of(p.dtype, kDTypes) << " last=" << p.channels_last
    << " flip=" << p.flip << " act=" << name_of(p.activation, kActivations)
    << " precision=" << name_of(p.precision, kPrecisions)
    << " alg=" << name_of(p.algorithm, kAlgorithms) << " bias=" << c.bias
    << " data=" << name_of(c.data, kData) << " sms=" << c.sms << " capability=" << c.capability
    << " shared=" << c.shared << " shift=" << c.shift << " variant=" << c.variant << " seed=" << c.seed
    << " schedule=" << c.schedule;
  return s.str();
}

Case case_of(const std::string& text) {
  Case c;
  Problem& p = c.p;
  std::istringstream s(text);
  for (std::string word; s >> word;) {
    const size_t at = word.find('=');
    const std::string key = word.substr(0, at), value = at == std::string::npos ? "" : word.substr(at + 1);
    const auto number = [&] { return std::stoll(value); };
    if (key == "fwd") p.pass = Pass::fwd;
    else if (key == "bwd_weight") p.pass = Pass::bwd_weight;
    else if (key == "n") p.n = number();
    else if (key == "c") p.c = number();
    else if (key == "h") p.h = number();
    else if (key == "w") p.w = number();
    else if (key == "kh") p.kh = number();
    else if (key == "kw") p.kw = number();
    else if (key == "ho") p.ho = number();
    else if (key == "wo") p.wo = number();
    else if (key == "top") p.pad_top = number();
    else if (key == "left") p.pad_left = number();
    else if (key == "dtype") p.dtype = value_of(key.c_str(), value, kDTypes);
    else if (key == "last") p.channels_last = number();
    else if (key == "flip") p.flip = number();
    else if (key == "act") p.activation = value_of(key.c_str(), value, kActivations);
    else if (key == "precision") p.precision = value_of(key.c_str(), value, kPrecisions);
    else if (key == "alg") p.algorithm = value_of(key.c_str(), value, kAlgorithms);
    else if (key == "bias") c.bias = number();
    else if (key == "data") c.data = value_of(key.c_str(), value, kData);
    else if (key == "capability") c.capability = static_cast<int>(number());
    else if (key == "shared") c.shared = static_cast<int>(number());
    else if (key == "sms") c.sms = static_cast<int>(number());
    else if (key == "shift") c.shift = static_cast<int>(number());
    else if (key == "variant") c.variant = static_cast<int>(number());
    else if (key == "seed") c.seed = static_cast<uint64_t>(number());
    else if (key == "schedule") c.schedule = static_cast<uint64_t>(number());
    else throw std::invalid_argument(word);
  }
  return c;
}

Groups table(const Filter& filter, int most, uint64_t seed) {
  std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
  for (int length : {14, 20, 28, 36, 42, 56, 63, 72, 90, 112, 144, 176}) {  // planes and filters that fill an FFT
    const int h = 2 * length / 3 - 1, k = length - h;
    shapes.push_back({h, h + 1, 2 * k - 1, k});
    shapes.push_back({h + 1, h, k, k + 1});
  }
  Groups all;
  for (Pass pass : {Pass::fwd, Pass::bwd_weight})
    for (int variant = 0; variant < rc::variant_count(pass); ++variant)
      for (DType dtype : {DType::f16, DType::bf16, DType::f32, DType::f64})
        for (bool last : {false, true})
          for (Precision precision : {Precision::ieee, Precision::tf32, Precision::bf16x3}) {
            if (precision != Precision::ieee && dtype != DType::f32) continue;
            Found found = problems({pass, variant, dtype, last, precision}, shapes, filter, seed);
            if (!found.empty()) all.push_back(most_different(std::move(found), most));
          }
  return all;
}

std::vector<Case> any(int count, uint64_t seed) {
  std::vector<Case> all;
  Random r(seed);
  while (static_cast<int>(all.size()) < count) {
    Shape s{};
    const auto size = [&](int most) { return static_cast<int>(r.upto(0, 3) ? r.upto(1, most / 3) : r.upto(1, most)); };
    s.kh = size(40), s.kw = size(40), s.h = size(60), s.w = size(60);
    s.top = static_cast<int>(r.upto(0, 1) ? s.kh / 2 : r.upto(-3, s.kh + 2)),
    s.left = static_cast<int>(r.upto(0, 1) ? s.kw / 2 : r.upto(-3, s.kw + 2));
    s.bottom = static_cast<int>(std::max<int64_t>(r.upto(-3, s.kh + 2), s.kh - s.h - s.top));
    s.right = static_cast<int>(std::max<int64_t>(r.upto(-3, s.kw + 2), s.kw - s.w - s.left));
    Case c = case_of_shape(s, static_cast<int>(r.upto(0, 2) ? r.upto(1, 9) : r.upto(1, 40)),
                           static_cast<int>(r.upto(1, r.upto(0, 2) ? 4 : 40)));
    Problem& p = c.p;
    if (cost(p) > 40000000) continue;
    p.pass = r.upto(0, 2) ? Pass::fwd : Pass::bwd_weight;
    p.dtype = static_cast<DType>(r.upto(0, 3));
    p.channels_last = r.upto(0, 1);
    if (p.dtype == DType::f32) p.precision = static_cast<Precision>(r.upto(0, 2));
    if (p.pass == Pass::fwd) {
      p.flip = r.upto(0, 3) == 0;
      if (!p.flip) p.activation = static_cast<Activation>(r.upto(0, 2));
    }
    c.bias = r.upto(0, 1) && !p.flip, c.data = static_cast<Data>(r.upto(0, 2)),
    c.shift = static_cast<int>(r.upto(0, 2) ? 0 : r.upto(1, 9));
    if (p.pass == Pass::fwd && p.activation != Activation::gelu && r.upto(0, 3) == 0) c.data = Data::infinite;
    c.sms = static_cast<int>(r.upto(0, 2) ? 132 : r.upto(1, 8));
    const int devices[][2] = {{0, 0}, {0, 0}, {80, 163 << 10}, {86, 99 << 10}, {120, 99 << 10}, {100, 227 << 10}};
    const auto& device = devices[r.upto(0, 5)];
    c.capability = device[0], c.shared = device[1];
    c.seed = r.next() % 1000000, c.schedule = r.upto(0, 1) ? r.next() % 1000000 : 0;
    c.variant = static_cast<int>(r.upto(-1, rc::variant_count(p.pass) - 1));
    rc::PlanHandle plan;
    if (rc::plan(p, limits(c), c.variant, &plan)) c.variant = -1;
    if (rc::plan(p, limits(c), c.variant, &plan)) continue;
    all.push_back(c);
  }
  return all;
}

std::vector<Case> large(const Filter& filter) {
  std::vector<Case> all;
  int turn = 0;
  for (Pass pass : {Pass::fwd, Pass::bwd_weight})
    for (int variant = 0; variant < rc::variant_count(pass); ++variant) {
      for (bool last : {false, true})
        for (bool images : {true, false})
          for (const Shape& s : kShapes) {
            if (s.h * s.w < 49 || (pass == Pass::bwd_weight && images)) continue;
            Case c = case_of_shape(s, 1, 1);
            Problem& p = c.p;
            const int64_t planes = (9ll << 29) / (s.h * s.w);
            if (images) p.c = 24, p.n = planes / 24 + 3;
            else p.n = pass == Pass::fwd ? 24 : 1, p.c = planes / p.n + 3;
            p.pass = pass, p.channels_last = last, c.variant = variant, c.sms = 1 << 24;
            bool found = false;
            for (DType dtype : turn % 2 ? std::vector<DType>{DType::f16, DType::f32, DType::f64}
                                        : std::vector<DType>{DType::bf16, DType::f32, DType::f64})
              for (Precision precision : {Precision::ieee, Precision::tf32, Precision::bf16x3}) {
                p.dtype = dtype, p.precision = precision;
                rc::PlanHandle plan;
                if (found || rc::plan(p, limits(c), variant, &plan) || !filter.takes(*plan) ||
                    (pass == Pass::bwd_weight && plan->workspace_bytes))
                  continue;
                found = true, ++turn;
                all.push_back(c);
              }
            if (found) break;
          }
    }
  return all;
}

std::vector<Case> layers(const Filter& filter) {
  std::vector<Case> all;
  const int sizes[][4] = {{128, 56, 31, 31}, {256, 28, 29, 29}, {512, 14, 27, 27},  {1024, 7, 13, 13},
                          {192, 96, 31, 31}, {384, 48, 29, 29}, {768, 24, 27, 27},  {1536, 12, 13, 13},
                          {256, 80, 27, 27}, {512, 40, 27, 27}, {1024, 20, 27, 27}, {2048, 10, 13, 13},
                          {124, 56, 51, 5},  {249, 28, 49, 5},  {499, 14, 47, 5},   {998, 7, 13, 5},
                          {124, 56, 5, 51},  {249, 28, 5, 49},  {499, 14, 5, 47},   {998, 7, 5, 13},
                          {128, 56, 5, 5},   {320, 14, 13, 13}, {640, 7, 13, 13},   {96, 56, 7, 7},
                          {768, 7, 7, 7},    {240, 28, 5, 5},   {1152, 7, 5, 5}};
  for (const auto& s : sizes)
    for (int n : {64, 1})
      for (DType dtype : {DType::f16, DType::bf16, DType::f32})
        for (bool last : {false, true})
          for (Precision precision : {Precision::ieee, Precision::tf32}) {
            if (precision == Precision::tf32 && dtype != DType::f32) continue;
            Case c = case_of_shape({s[1], s[1], s[2], s[3]}, n, s[0]);
            c.p.dtype = dtype, c.p.channels_last = last, c.p.precision = precision, c.p.flip = last != (n == 1);
            rc::Route route;
            if (rc::plan_route(c.p, limits(c), -1, &route) || !filter.takes(*route.plan)) continue;
            c.p = route.plan->problem;
            all.push_back(c);
          }
  return all;
}

}  // namespace ptx_run
