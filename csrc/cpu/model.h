// Constants of the time model that every kernel's planner uses, so that their costs compare: microseconds on one thread
// of a processor with two vector multiply-adds a cycle. Used to choose between kernels, never to promise a time.
#pragma once

namespace replknet_ext::cpu {

constexpr double kFmaPerMicrosecond = 6000;  // vector multiply-adds at 3 GHz

}  // namespace replknet_ext::cpu
