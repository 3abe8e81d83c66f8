// The machine that the stand-in CUDA runtime plays. What it does is written to standard output, a line per call.
#pragma once
#include <set>

struct Machine {
  bool old_driver = false;     // older than the runtime: no call succeeds
  std::set<int> without_code;  // devices that no code of this program runs on
  bool loads_in_captures = true;  // drivers before 12.3 load no kernel while a stream captures
};
extern Machine machine;
