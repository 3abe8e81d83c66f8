// The smallest kernel family, for tests/cuda/test_new_family.py: its planner. One variant, bfloat16, forward, NCHW, that
// claims to be faster than any other.
#include "../family.h"

namespace replknet_ext::cuda {
namespace {

class Planner {
 public:
  using Plan = LaunchPlan;
  Planner(const Problem& p, const DeviceLimits&) : p_(p) {}
  static int count(Pass pass) { return pass == Pass::fwd ? 1 : 0; }
  static const char* name(Pass, int) { return "stand_in_1"; }
  const char* refuse() const {
    if (p_.dtype != DType::bf16 || p_.channels_last) return "only bfloat16 in NCHW";
    return p_.activation == Activation::none ? nullptr : "no activation";
  }
  const char* refuse(int) const { return nullptr; }
  bool plan(int, LaunchPlan* best) const {
    best->warps = best->blocks_per_sm = 1, best->blocks = p_.n * p_.c, best->cycles = 1;
    return true;
  }
  const char* none(int) const { return "never"; }

 private:
  const Problem& p_;
};

}  // namespace

const Family stand_in_family = family_of<Planner>("stand_in");

}  // namespace replknet_ext::cuda
