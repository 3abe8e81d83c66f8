// One launch with all that decides how it goes, and the lists of them that are run.
#pragma once
#include <string>
#include <vector>

#include "cuda/backend.h"

namespace ptx_run {

using namespace replknet_ext;

// exact: multiples of 1/32, whose sums are exact in float32; normal; wild: magnitudes that differ by many powers of 2;
// infinite: some Inf and NaN in x
enum class Data { exact, normal, wild, infinite };

struct Case {
  Problem p{};
  int variant = -1;
  bool bias = false;
  Data data = Data::exact;
  int shift = 0;                   // elements that tensors lie off a 256-byte boundary
  int sms = 132;                   // of the device; where they are few, a block has more to do
  int capability = 0, shared = 0;  // of the device: other than that of the command line
  uint64_t seed = 1, schedule = 0;
};

// As a failure prints it, and back. Throws std::invalid_argument.
std::string text_of(const Case& c);
Case case_of(const std::string& text);

// The limits of a case's device, as the project asks the runtime for them.
cuda::DeviceLimits limits(const Case& c);

struct Filter {
  std::string variant, family;  // part of a variant's name; a family's name; "": all
  bool takes(const cuda::LaunchPlan& plan) const;
};
using Groups = std::vector<std::vector<Case>>;

// For every variant, dtype, memory format and precision: problems that it supports, `most` of each at the most, those
// first that differ most from the ones before.
Groups table(const Filter& filter, int most, uint64_t seed);
// Problems of any shape on any device, on the variant that the planner chooses or on another that supports them.
std::vector<Case> any(int count, uint64_t seed);
// For every variant and memory format: more than 2^32 elements, in images or in channels.
std::vector<Case> large(const Filter& filter);
// Layers of the papers' networks as the planner runs them.
std::vector<Case> layers(const Filter& filter);

}  // namespace ptx_run
