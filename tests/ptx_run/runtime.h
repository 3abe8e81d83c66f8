// The device that the stub of the CUDA runtime pretends to have, and the kernels it knows.
#pragma once
#include <functional>
#include <string>

#include "ptx.h"

namespace ptx_run {

struct Device {
  int capability = 90, sms = 132, shared_per_block = 227 << 10, shared_per_sm = 228 << 10;
  std::string message;  // of the last error
};
extern Device device;
void each_module(const std::function<void(Module&)>& f);

}  // namespace ptx_run
