// Runs a case through the project's own host code on the PTX that nvcc made, and compares with float64.
#pragma once
#include <string>

#include "cases.h"

namespace ptx_run {

struct Verdict {
  std::string error;  // "" if fine
  double worst = 0;   // error over tolerance
  std::string family, name;
};

Verdict run(const Case& c);
// Of tensors too large to hold: `sample` blocks at both ends of the grid and in between, and every output that they have
// written.
Verdict run_large(const Case& c, int64_t sample);

}  // namespace ptx_run
