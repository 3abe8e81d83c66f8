// Constants of the time model that every kernel's planner uses, so that their costs compare: microseconds on one thread
// of a processor with two vector multiply-adds a cycle. Used to choose between kernels, never to promise a time.
#pragma once

namespace replknet_ext::cpu {

constexpr double kFmaPerMicrosecond = 6000;  // vector multiply-adds at 3 GHz
constexpr double kFftSlack = 1.3, kFftWeightSlack = 1.3;  // measured time over that of the vector operations

}  // namespace replknet_ext::cpu
